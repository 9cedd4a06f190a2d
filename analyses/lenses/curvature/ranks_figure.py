"""The soft rank of the residual stream at every layer and position, with a slider over steps."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.analyses.lenses.curvature.ranks import ALL_SCORED
from qfl_interp.plots.grid import Cell
from qfl_interp.plots.lines import finite
from qfl_interp.plots.maps import CellMap, axis_title, bar_span, color_axis, require_rows
from qfl_interp.plots.slider import AXIS_HEIGHT, over_steps
from qfl_interp.plots.theme import new_figure

_BESIDE: Final = ("participation_ratio", "entropy_rank", "n_samples")
_HOVER: Final = (
    "layer %{y}, position %{x}<br>stable rank %{z:.3f}<br>not centred: participation ratio "
    "%{customdata[0]:.3f}, entropy rank %{customdata[1]:.3f}<br>%{customdata[2]:,} examples"
)


def soft_rank_figure(
    ranks: pd.DataFrame, *, centred: bool = True, step: int | None = None, slider: bool = True
) -> go.Figure:
    """The stable rank at every layer and position, with a slider over steps; the same colours at every step.

    A cross: fewer than 2 examples reach the position, or (centred) all of them have the same tokens up to it.

    Args:
        ranks: Table "soft_ranks".
        centred: Of the features less their mean over examples, or as they are.
        step: The step shown first; None for the last.
        slider: Whether the figure goes through all steps; without it, it shows this one, in the colours of all.

    Raises:
        ValueError: The table has no row of a single position, several in a cell, or none at the step.
    """
    name = "stable_rank_centred" if centred else "stable_rank"
    rows = pd.DataFrame(ranks[ranks["position"] != ALL_SCORED]) if len(ranks) else ranks
    require_rows(rows, "curvature", (), ("step", "layer", "position"))
    cells, cell = CellMap.by_place(rows, "position"), Cell(1, (0.0, 1.0), (0.0, 1.0))
    title = "Soft rank of the residual stream" + ("" if centred else ", mean not subtracted")
    figure = new_figure("soft_ranks", max(24 * len(cells.down), 90) + 58, {"l": 52, "r": 20, "t": 92, "b": AXIS_HEIGHT})
    figure.add_trace(cells.crosses("layer %{y}, position %{x}<br>no rank"))
    high = float(finite(rows[name], 1.01).max()) if len(finite(rows[name])) else 2.0
    figure.update_layout(
        cells.layout(cell, dtick=None) | {"coloraxis": color_axis("stable rank", 1.0, high, span=bar_span(0.0, 0.5))},
        annotations=[axis_title("position", 0.0)],
    )

    def draw(part: pd.DataFrame) -> list[dict[str, Any]]:
        return [cells.heat(part, name, _HOVER, beside=_BESIDE)]

    return over_steps(figure, rows, draw, table="soft_ranks", title=title, above=62, step=step, slider=slider)
