"""The soft rank of the residual stream at every layer and position, with a slider over steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.lenses.curvature.ranks import ALL_SCORED
from qfl_interp.plots.maps import axis_title, cells, color_bar, crosses, place_axis, place_text, places, require_rows
from qfl_interp.plots.slider import add_steps, bottom_margin, shown_steps, step_title
from qfl_interp.plots.theme import new_figure, short
from qfl_interp.tables import column, select


def soft_rank_figure(ranks: pd.DataFrame, *, centred: bool = True, step: int | None = None) -> go.Figure:
    """The stable rank at every layer and position, with a slider over steps; the same colours at every step.

    A cross: fewer than 2 examples reach the position, or (centred) all of them have the same tokens up to it.

    Args:
        ranks: Table "soft_ranks".
        centred: Of the features less their mean over examples, or as they are.
        step: The step shown first; None for the last.

    Raises:
        ValueError: The table has no row of a single position, several in a cell, or none at the step.
    """
    name = "stable_rank_centred" if centred else "stable_rank"
    rows = pd.DataFrame(ranks[ranks["position"] != ALL_SCORED]) if len(ranks) else ranks
    require_rows(rows, "curvature", (), ("step", "layer", "position"))
    steps, first = shown_steps(rows, step, "soft_ranks")
    found, positions = places(rows), sorted({int(position) for position in rows["position"]})
    title = "Soft rank of the residual stream" + ("" if centred else ", mean not subtracted")
    figure = new_figure("soft_ranks", 150 + max(24 * len(found), 90) + bottom_margin(steps))
    figure.add_trace(
        crosses(positions, [place_text(place) for place in found], {}, "layer %{y}, position %{x}<br>no rank")
    )
    contents = {at: [_rank_map(select(rows, step=at), name, found, positions)] for at in steps}
    figure.add_traces(contents[first])
    values = column(rows, name)
    high = float(np.nanmax(values)) if np.isfinite(values).any() else 2.0
    bar = color_bar("stable rank", 0.0, 0.5)
    axis: dict[str, Any] = {"showgrid": False, "showline": False}
    figure.update_layout(
        margin={"l": 52, "r": 20, "t": 92, "b": bottom_margin(steps)},
        xaxis=axis,
        yaxis=axis | place_axis(found),
        coloraxis={"colorscale": "Viridis", "cmin": 1.0, "cmax": max(high, 1.01), "colorbar": bar},
    )
    titles = {at: step_title(select(rows, step=at), title) for at in steps}
    add_steps(figure, contents, (1,), titles, first, above=62, annotations=[axis_title("position", 0.0)])
    return figure


def _rank_map(rows: pd.DataFrame, name: str, found: Sequence[tuple[int, int]], positions: Sequence[int]) -> go.Heatmap:
    """The map of one step."""
    keys = [(*place, position) for place in found for position in positions]
    grid = cells(rows, ("layer", "head", "position"), keys)
    shape = (len(found), len(positions))
    columns = ("participation_ratio", "entropy_rank", "n_samples")
    return go.Heatmap(
        x=list(positions),
        y=[place_text(place) for place in found],
        z=short(column(grid, name).reshape(shape)),
        customdata=short(np.stack([column(grid, one) for one in columns], axis=-1).reshape(*shape, -1)),
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hovertemplate="layer %{y}, position %{x}<br>stable rank %{z:.3f}<br>not centred: participation ratio "
        "%{customdata[0]:.3f}, entropy rank %{customdata[1]:.3f}<br>%{customdata[2]:,} examples<extra></extra>",
    )
