"""Projected loss of the clusters of a POLCA direction over compute, and the exact loss of the same tokens below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from analyses.lenses.polca.clusters import Cluster, drawn_clusters, telling
from analyses.lenses.polca.marks import basis_mark, breaks, tau_mark
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, Shade, over_compute, stack_panels
from qfl_interp.tables import column, distinct, select

_MOST_DIRECTIONS: Final = 2
_BAND_OPACITY: Final = 0.16
_KEY: Final = ("direction", "cluster", "step")


def polca_figure(
    curves: pd.DataFrame,
    clusters: pd.DataFrame,
    direction: int | None = None,
    *,
    transition: Shade | None = None,
) -> go.Figure:
    """Projected loss by cluster over compute, and below it the exact loss of the same tokens.

    Thick lines are means, bands the middle half of the tokens, dashed lines medoids. The large marker is the mean of
    the tokens' breaks, their sharpest turns: filled if the exact loss is flat there. The vertical dashed line is the
    checkpoint that gave the direction, the dotted one that from which the exact loss stays flat. The six largest
    clusters are drawn.

    Args:
        curves: Table "polca_curves": direction, basis_step, cluster, step, flops, mean, medoid, q25, q75, exact_mean,
            exact_q25, exact_q75; one row a step and cluster, losses in nats.
        clusters: Table "polca_clusters": direction, basis_step, cluster, name, curves ("projected" or one of the
            baselines "exact_loss", "loss_change", "fisher"), n_tokens, medoid_context, medoid_target, f1, fall,
            break_step, break_flops, hidden, in_flat, tau_step; one row a cluster.
        direction: Which one; None for the first two of `telling`.
        transition: Of the validation loss, shaded; None for none.

    Raises:
        ValueError: A table has no row or several of one key, the clusters are of several kinds of curves, the
            direction is not among them, or a cluster has no curve.
    """
    if clusters.empty:
        raise ValueError(
            "a figure of POLCA needs a cluster, got none. Run `qfl polca` on this run first; where that finds none, "
            "look at more directions or steps, or for smaller clusters."
        )
    require_rows(clusters, "polca", ("curves",), _KEY[:2])
    chosen = telling(clusters)[:_MOST_DIRECTIONS] if direction is None else [direction]
    panels = [panel for one in chosen for panel in (polca_panel(curves, clusters, one), _exact(curves, clusters, one))]
    return stack_panels(panels, transition, filename="polca")


def polca_panel(curves: pd.DataFrame, clusters: pd.DataFrame, direction: int) -> Panel:
    """Projected loss along one direction over compute, by cluster.

    Args:
        curves: Table "polca_curves".
        clusters: Table "polca_clusters".
        direction: Which one.

    Raises:
        ValueError: As in `polca_figure`.
    """
    found = drawn_clusters(clusters, direction)
    parts = _parts(curves, found, direction)
    y_range = _range([part[name] for part in parts for name in ("mean", "medoid", "q25", "q75")])
    traces = [_band(part, one, "q25", "q75") for one, part in zip(found, parts, strict=True)]
    quantity = found[0].quantity
    lines = [_lines(part, one) for one, part in zip(found, parts, strict=True)]
    traces += [line for pair in lines for line in pair]
    traces += breaks(found, parts, "mean", y_range[0])
    marks, texts = basis_mark(parts[0], found[0], y_range)
    left_out = len(select(clusters, direction=direction)) - len(found)
    more = f", without {left_out} smaller clusters" if left_out else ""
    n_directions = len(distinct(clusters, "direction"))
    if n_directions > 1:
        more += f"; {n_directions} directions have clusters"
    return Panel(
        title=quantity.of(direction),
        subtitle=f"{quantity.name} by cluster of tokens{more}",
        note="mean, middle half (band), medoid (dashed); marker: mean break, filled where the exact loss is flat",
        traces=(*marks, *traces),
        y_title=quantity.axis,
        y_range=y_range,
        height=190,
        legend=Legend(f"polca {direction}"),
        annotations=texts,
    )


def _exact(curves: pd.DataFrame, clusters: pd.DataFrame, direction: int) -> Panel:
    """The exact loss of the clusters of a direction."""
    found = drawn_clusters(clusters, direction)
    parts = _parts(curves, found, direction)
    y_range = _range([part[name] for part in parts for name in ("exact_mean", "exact_q75")])
    traces = [_band(part, one, "exact_q25", "exact_q75") for one, part in zip(found, parts, strict=True)]
    for one, part in zip(found, parts, strict=True):
        quartiles = part[["exact_q25", "exact_q75", "step"]].to_numpy(dtype=float)
        traces.append(
            go.Scatter(
                x=column(part, "flops"),
                y=column(part, "exact_mean"),
                customdata=quartiles,
                mode="lines",
                name=one.name,
                line={"color": one.color, "width": 2},
                legendgroup=one.group,
                hovertemplate="%{y:.3f} nats (middle half %{customdata[0]:.3f} to %{customdata[1]:.3f}) · "
                f"step %{{customdata[2]:,}}<extra>{one.name}, exact</extra>",
            )
        )
    traces += breaks(found, parts, "exact_mean", y_range[0])
    marks, texts = tau_mark(parts[0], found[0], y_range)
    basis, _ = basis_mark(parts[0], found[0], y_range)
    return Panel(
        title="Exact loss",
        subtitle="of the same tokens",
        traces=(*basis, *marks, *traces),
        y_title="loss (nats)",
        y_range=y_range,
        height=110,
        legend=Legend(f"polca {direction}"),
        annotations=texts,
    )


def _parts(curves: pd.DataFrame, found: Sequence[Cluster], direction: int) -> list[pd.DataFrame]:
    """The curve of each cluster, where a log axis can show it."""
    require_rows(curves, "polca", (), _KEY)
    parts = [select(curves, direction=direction, cluster=one.row["cluster"]) for one in found]
    lacking = [one.row["cluster"] for one, part in zip(found, parts, strict=True) if part.empty]
    if lacking:
        raise ValueError(
            f"every cluster of direction {direction} must have a curve, got none of cluster {lacking[0]} in the curves "
            "table. Hand in both tables of one analysis."
        )
    return [over_compute(part) for part in parts]


def _range(values: Sequence[Any]) -> tuple[float, float]:
    """Lowest and highest value, and 0, with a little room below and a line of text above."""
    joined = np.concatenate([np.asarray(one, dtype=float) for one in values])
    joined = joined[np.isfinite(joined)]
    low, high = float(joined.min(initial=0.0)), float(joined.max(initial=0.0))
    room = (high - low) or 1.0
    return low - 0.05 * room, high + 0.14 * room


def _band(part: pd.DataFrame, one: Cluster, low: str, high: str) -> go.Scatter:
    """The middle half of a cluster's tokens."""
    x = column(part, "flops")
    red, green, blue = hex_to_rgb(one.color)
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([column(part, low), column(part, high)[::-1]]),
        mode="lines",
        name=f"{one.name}, middle half",
        line={"width": 0},
        fill="toself",
        fillcolor=f"rgba({red}, {green}, {blue}, {_BAND_OPACITY})",
        legendgroup=one.group,
        showlegend=False,
        hoverinfo="skip",
    )


def _lines(part: pd.DataFrame, one: Cluster) -> tuple[go.Scatter, go.Scatter]:
    """A cluster's medoid, dashed, and its mean."""
    shared: dict[str, Any] = {"x": column(part, "flops"), "legendgroup": one.group}
    medoid = go.Scatter(
        **shared,
        y=column(part, "medoid"),
        mode="lines",
        name=f"{one.name}, medoid",
        line={"color": one.color, "width": 1.1, "dash": "dash"},
        showlegend=False,
        hoverinfo="skip",
    )
    mean = go.Scatter(
        **shared,
        y=column(part, "mean"),
        customdata=part[["q25", "q75", "medoid", "step"]].to_numpy(dtype=float),
        mode="lines",
        name=one.legend,
        line={"color": one.color, "width": 2.2},
        showlegend=True,
        hovertemplate=f"%{{y:.3g}} {one.quantity.unit} (middle half %{{customdata[0]:.3g}} to %{{customdata[1]:.3g}}, "
        f"medoid %{{customdata[2]:.3g}}) · step %{{customdata[3]:,}}<extra>{one.name}</extra>",
    )
    return medoid, mean
