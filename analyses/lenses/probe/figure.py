"""Where a feature is decodable: a layer x label map of probe loss, with a slider over steps."""

from __future__ import annotations

from typing import Any, Final, Literal

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.analyses.lenses.probe.views import SCORES, View
from qfl_interp.plots.grid import Grid
from qfl_interp.plots.lines import finite
from qfl_interp.plots.maps import CellMap, axis_title, require_rows
from qfl_interp.plots.slider import over_steps
from qfl_interp.plots.theme import new_figure, words
from qfl_interp.tables import distinct, select

Beside = Literal["score", "shuffled"]

_HOVER_COLUMNS: Final = (
    "test_loss",
    "test_score",
    "shuffled_test_loss",
    "shuffled_test_score",
    "label_mean",
    "n_test",
)

# Losses below this share the last colour.
_LOSS_FLOOR: Final = 1e-4


def probe_heatmap(
    probe: pd.DataFrame, feature: str, *, beside: Beside = "score", step: int | None = None, slider: bool = True
) -> go.Figure:
    """Test loss by layer and label at one step, a second map beside it, and a slider over all steps.

    Colours are the same at every step, and brighter is better in both maps. The loss's colour is logarithmic.
    Cells whose probe could not be fitted (the label does not vary) are grey with a cross.

    Args:
        probe: Table "probe"; rows of other features and of untrained models are left out.
        feature: Which feature's probes.
        beside: The second map: the test score (accuracy or R2), or the test loss of probes trained on shuffled labels.
        step: The step shown first; None for the last.
        slider: Whether the figure goes through all steps; without it, it shows this one, in the colours of all.

    Raises:
        ValueError: The table has no row of this feature and source, none at the step, or several in a cell.
    """
    rows = select(probe, feature=feature, source="trained")
    if rows.empty:
        raise ValueError(
            f"the probe table must have rows of feature {feature!r} with source 'trained', got none among "
            f"{sorted(distinct(probe, 'feature'))}. Probe this feature first."
        )
    require_rows(rows, "probe", (), ("step", "layer", "head", "label"))
    names = SCORES[distinct(rows, "metric")[0]]
    fitted = select(rows, fitted=True)
    loss = View("test_loss", names.loss_title, floor=_LOSS_FLOOR)
    second = View("test_score", names.score, names.number)
    low, high = loss.ends(fitted)
    ends = (low, high), second.ends(fitted)
    if beside == "shuffled":
        second = View("shuffled_test_loss", f"shuffled-label control{names.unit}", floor=_LOSS_FLOOR)
        ends = (low, high), (low, float(finite(fitted["shuffled_test_loss"]).max(initial=high)))
    hover = (
        "layer %{y}, label %{x}<br>"
        f"{names.loss} %{{customdata[0]:.4f}}{names.unit} (shuffled labels %{{customdata[2]:.4f}})<br>"
        f"{names.score} %{{customdata[1]:.4f}} (shuffled labels %{{customdata[3]:.4f}})<br>"
        "mean label %{customdata[4]:.2f}, n = %{customdata[5]:,} test examples"
    )
    cells = CellMap.by_place(rows, "label")
    grid = Grid([min(max(26 * len(cells.down), 110), 480) + 6], 2, 2)
    figure = new_figure(f"probes_{feature}", grid.height, {"l": 52, "r": 20, "t": 92, "b": 56})
    maps = []
    for index, (view, shown) in enumerate(zip((loss, second), ends, strict=True)):
        cell = grid.cell(index)
        maps.append((view, f"coloraxis{cell.suffix}", cells.within(cell)))
        axis = view.axis(shown, cell.x_domain)
        figure.update_layout({**cells.layout(cell), f"coloraxis{cell.suffix}": axis})
        figure.add_annotation(axis_title("label", cell.y_domain[0], x=sum(cell.x_domain) / 2))
        figure.add_trace(maps[index][2].crosses("layer %{y}, label %{x}<br>no probe fitted: the label does not vary"))
    # The second map has the first one's layers.
    figure.update_layout(yaxis2={"matches": "y", "showticklabels": False, "ticks": "", "title": {"text": ""}})

    def draw(part: pd.DataFrame) -> list[dict[str, Any]]:
        shown = select(part, fitted=True)
        return [
            at.heat(shown, view.column, hover, beside=_HOVER_COLUMNS, floor=view.floor, coloraxis=axis)
            for view, axis, at in maps
        ]

    title, how = words(feature) + _given_away(rows), {"step": step, "slider": slider}
    return over_steps(figure, rows, draw, table="probe", title=title, above=60, **how)


def _given_away(rows: pd.DataFrame) -> str:
    """Which labels the next token gives away, as the title goes on."""
    if "next_token" not in rows:  # a table of before
        return ""
    labels = distinct(select(rows, next_token=True), "label")
    return f" (next token: label {', '.join(map(str, labels))})" if labels else ""
