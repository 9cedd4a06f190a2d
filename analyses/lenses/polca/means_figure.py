"""POLCA's figure where there is no cluster: mean curves of all tokens along the directions they move most."""

from __future__ import annotations

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.analyses.lenses.polca.clusters import quantity_of
from qfl_interp.plots.lines import STEP, curve, over_training, value_range
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, Shade, stack_panels
from qfl_interp.plots.theme import GREY, ordered_colors
from qfl_interp.polca.trajectories import NO_DIRECTION
from qfl_interp.tables import column, groups, select

# More curves than these cannot be told apart.
_MOST: Final = 6
_HOVER: Final = f"%{{y:.3g}} · {STEP}"


def means_figure(means: pd.DataFrame, *, transition: Shade | None = None, unit: str = "nats") -> go.Figure:
    """Mean curve over all tokens along each direction over compute, and below it their mean exact loss.

    For an analysis that found no cluster, which its note says. The six directions are drawn whose mean moves most.

    Args:
        means: direction, basis_step, step, flops, n_tokens, curves (as in table "polca_clusters"), mean, exact_mean;
            one row a direction and step.
        transition: Of the validation loss, shaded; None for none.
        unit: What the loss is counted in.

    Raises:
        ValueError: There is no row, several of one direction and step, several kinds of curves, or none after step 0.
    """
    require_rows(means, "polca", ("curves",), ("direction", "step"))
    # How far the mean of each direction is from its first value at the last step.
    paths = {int(one): column(rows.sort_values("step"), "mean") for one, rows in groups(means, "direction")}
    moved = {direction: abs(float(path[-1] - path[0])) for direction, path in paths.items()}
    chosen = sorted(sorted(moved, key=lambda direction: -moved[direction])[:_MOST])
    parts = [over_training(select(means, direction=direction)) for direction in chosen]
    exact = curve(parts[0], "exact_mean", "exact", GREY, hover=_HOVER)
    below = Panel(
        title="Exact loss",
        subtitle="of the same tokens",
        traces=(exact,),
        y_title=f"loss ({unit})",
        y_range=value_range(exact, below=0.08, above=0.08),
        height=110,
    )
    return stack_panels([_means(parts, len(moved), unit), below], transition, filename="polca")


def _means(parts: list[pd.DataFrame], n_directions: int, unit: str) -> Panel:
    quantity = quantity_of(str(parts[0]["curves"].iloc[0]), unit)
    subtitle = f"no cluster found: mean over all {int(column(parts[0], 'n_tokens')[0]):,} tokens"
    if len(parts) < n_directions:
        subtitle += f" along the {len(parts)} of {n_directions} directions it moves most"
    colors = ordered_colors(len(parts))
    traces = []
    for part, color in zip(parts, colors, strict=True):
        direction, step = (int(column(part, name)[0]) for name in ("direction", "basis_step"))
        name = "mean" if direction == NO_DIRECTION else f"direction {direction}, step {step:,}"
        traces.append(curve(part, "mean", name, color, hover=_HOVER))
    return Panel(
        title=quantity.title,
        subtitle=subtitle,
        note="for clusters take more directions or checkpoints, or a smaller min_cluster_size or min_samples",
        traces=tuple(traces),
        y_title=quantity.axis,
        y_range=value_range(*traces, below=0.08, above=0.08),
        height=190,
        legend=Legend("polca means"),
    )
