"""Where a feature is decodable: a layer x label map of probe loss, with a slider over steps."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.grid import Grid
from qfl_interp.plots.lines import finite
from qfl_interp.plots.maps import CellMap, color_axis, require_rows
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


class _Words(NamedTuple):
    """How a probe's loss and score are called, and the numbers of the score written."""

    loss: str
    unit: str
    score: str
    number: str


_WORDS: Final = {
    "log_loss": _Words("test log loss", " (nats)", "test accuracy", ".0%"),
    "mse": _Words("test mean squared error", "", "test R²", ".2f"),
}
# Losses below this share the last colour.
_LOSS_FLOOR: Final = 1e-4


class _Map(NamedTuple):
    """One of the two maps: its column, and how values become colours."""

    title: str
    column: str
    low: float
    high: float
    logarithmic: bool
    number: str | None = None


def probe_heatmap(probe: pd.DataFrame, feature: str, *, beside: Beside = "score", step: int | None = None) -> go.Figure:
    """Test loss by layer and label at one step, a second map beside it, and a slider over all steps.

    Colours are the same at every step, and brighter is better in both maps. The loss's colour is logarithmic.
    Cells whose probe could not be fitted (the label does not vary) are grey with a cross.

    Args:
        probe: Table "probe"; rows of other features and of untrained models are left out.
        feature: Which feature's probes.
        beside: The second map: the test score (accuracy or R2), or the test loss of probes trained on shuffled labels.
        step: The step shown first; None for the last.

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
    names = _WORDS[distinct(rows, "metric")[0]]
    fitted = select(rows, fitted=True)
    loss = _loss_map(fitted, names)
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
    for index, one in enumerate((loss, _second_map(fitted, beside, names, loss))):
        cell = grid.cell(index)
        maps.append((one, f"coloraxis{cell.suffix}", cells.within(cell)))
        scale = "Viridis_r" if one.logarithmic else "Viridis"
        bar = {} if one.logarithmic else {"tickformat": one.number, "nticks": 5}
        axis = color_axis(one.title, one.low, one.high, scale=scale, log=one.logarithmic, span=cell.x_domain, **bar)
        figure.update_layout({**cells.layout(cell, "label"), f"coloraxis{cell.suffix}": axis})
        figure.add_trace(maps[index][2].crosses("layer %{y}, label %{x}<br>no probe fitted: the label does not vary"))
    # The second map has the first one's layers.
    figure.update_layout(yaxis2={"matches": "y", "showticklabels": False, "ticks": "", "title": {"text": ""}})

    def draw(part: pd.DataFrame) -> list[go.Heatmap]:
        shown = select(part, fitted=True)
        floors = [_LOSS_FLOOR if one.logarithmic else None for one, _, _ in maps]
        return [
            at.heat(shown, one.column, hover, beside=_HOVER_COLUMNS, floor=floor, coloraxis=axis)
            for (one, axis, at), floor in zip(maps, floors, strict=True)
        ]

    over_steps(figure, rows, draw, table="probe", title=words(feature), above=60, step=step)
    return figure


def _loss_map(fitted: pd.DataFrame, names: _Words) -> _Map:
    """The map of the test loss, over the range it takes at any step."""
    values = finite(fitted["test_loss"]).clip(_LOSS_FLOOR)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.1, 1.0)
    return _Map(names.loss + names.unit, "test_loss", low, max(high, 1.05 * low), True)


def _second_map(fitted: pd.DataFrame, beside: Beside, names: _Words, loss: _Map) -> _Map:
    """The map on the right."""
    if beside == "shuffled":
        high = float(finite(fitted["shuffled_test_loss"]).max(initial=loss.high))
        return loss._replace(title="shuffled-label control" + names.unit, column="shuffled_test_loss", high=high)
    # R2 has no lower bound; below 0 the mean would do better.
    low = max(float(finite(fitted["test_score"]).min(initial=0.99)), 0.0)
    return _Map(names.score, "test_score", low, 1.0, False, names.number)
