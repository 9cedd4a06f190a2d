"""POLCA's figure where there is no cluster: mean curves of all tokens along the directions they move most."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.lenses.polca.clusters import QUANTITIES
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, Shade, over_compute, stack_panels
from qfl_interp.plots.theme import GREY, ordered_colors
from qfl_interp.tables import column, groups, select

# More curves than these cannot be told apart.
_MOST: Final = 6
_ROOM: Final = 0.08


def polca_means_figure(means: pd.DataFrame, *, transition: Shade | None = None) -> go.Figure:
    """Mean curve over all tokens along each direction over compute, and below it their mean exact loss.

    For an analysis that found no cluster, which its note says. The six directions are drawn whose mean moves most.

    Args:
        means: direction, basis_step, step, flops, n_tokens, curves (as in table "polca_clusters"), mean, exact_mean;
            one row a direction and step, losses in nats.
        transition: Of the validation loss, shaded; None for none.

    Raises:
        ValueError: There is no row, several of one direction and step, several kinds of curves, or none above 0 FLOPs.
    """
    require_rows(means, "polca", ("curves",), ("direction", "step"))
    moved = {int(direction): _moved(rows) for direction, rows in groups(means, "direction")}
    chosen = sorted(sorted(moved, key=lambda direction: -moved[direction])[:_MOST])
    parts = [over_compute(select(means, direction=direction)) for direction in chosen]
    return stack_panels([_means(parts, chosen, len(moved)), _exact(parts[0])], transition, filename="polca")


def _moved(rows: pd.DataFrame) -> float:
    """How far the mean of a direction is from its first value at the last step."""
    ordered = column(rows.sort_values("step"), "mean")
    return abs(float(ordered[-1] - ordered[0]))


def _means(parts: list[pd.DataFrame], chosen: list[int], n_directions: int) -> Panel:
    """The mean curves."""
    quantity = QUANTITIES[str(parts[0]["curves"].iloc[0])]
    n_tokens = int(column(parts[0], "n_tokens")[0])
    subtitle = f"no cluster found: mean over all {n_tokens:,} tokens"
    if len(chosen) < n_directions:
        subtitle += f" along the {len(chosen)} of {n_directions} directions it moves most"
    return Panel(
        title=quantity.title,
        subtitle=subtitle,
        note="for clusters take more directions or checkpoints, or a smaller min_cluster_size or min_samples",
        traces=tuple(
            _line(part, "mean", _name(part, one), color)
            for part, one, color in zip(parts, chosen, ordered_colors(len(parts)), strict=True)
        ),
        y_title=quantity.axis,
        y_range=_range(np.concatenate([column(part, "mean") for part in parts])),
        height=190,
        legend=Legend("polca means"),
    )


def _name(part: pd.DataFrame, direction: int) -> str:
    """What the legend calls a direction; baselines that know none have -1."""
    return f"direction {direction}, step {int(column(part, 'basis_step')[0]):,}" if direction >= 0 else "mean"


def _exact(part: pd.DataFrame) -> Panel:
    """The exact loss of the same tokens."""
    return Panel(
        title="Exact loss",
        subtitle="of the same tokens",
        traces=(_line(part, "exact_mean", "exact", GREY),),
        y_title="loss (nats)",
        y_range=_range(column(part, "exact_mean")),
        height=110,
    )


def _line(part: pd.DataFrame, name: str, text: str, color: str) -> go.Scatter:
    """A column over compute."""
    return go.Scatter(
        x=column(part, "flops"),
        y=column(part, name),
        customdata=column(part, "step")[:, None],
        mode="lines",
        name=text,
        line={"color": color, "width": 2},
        hovertemplate=f"%{{y:.3g}} · step %{{customdata[0]:,}}<extra>{text}</extra>",
    )


def _range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value, and 0, with a little room."""
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    room = _ROOM * ((high - low) or 1.0)
    return low - room, high + room
