"""Projected loss of the clusters of a POLCA direction over compute, and the exact loss of the same tokens below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from qfl_interp.analyses.lenses.polca.clusters import Cluster, drawn_curves, telling
from qfl_interp.plots.axes import training_axis
from qfl_interp.plots.lines import curve, places, stem, value_range
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import PANEL_SIDES, Legend, Panel, Shade, stack_panels
from qfl_interp.plots.text import room, text_width
from qfl_interp.plots.theme import FONT_SIZE, GREY, VERMILLION
from qfl_interp.tables import column, distinct, select

_MOST_DIRECTIONS: Final = 2
# What is said of a break by its verdict; of the others, that the exact loss shows it.
_BREAKS: Final = {"hidden": "hidden", "plateau": "on a plateau", "learned": "where its tokens are learned"}
_BAND_OPACITY: Final = 0.16
_HALF: Final = "(middle half %{customdata[0]"


class _Mark(NamedTuple):
    """A vertical line, and its text as an annotation; each may be missing."""

    lines: tuple[go.Scatter, ...] = ()
    texts: tuple[dict[str, Any], ...] = ()


def polca_figure(
    curves: pd.DataFrame,
    clusters: pd.DataFrame,
    direction: int | None = None,
    *,
    transition: Shade | None = None,
    unit: str = "nats",
) -> go.Figure:
    """Projected loss by cluster over compute, and below it the exact loss of the same tokens.

    Thick lines are means, bands the middle half of the tokens, dashed lines medoids. The large marker is the mean of
    the tokens' breaks, their sharpest turns: filled if the exact loss is flat there. The vertical dashed line is the
    checkpoint that gave the direction, the dotted one that from which the exact loss stays flat. The six largest
    clusters are drawn.

    Args:
        curves: Table "polca_curves": direction, basis_step, cluster, step, flops, mean, medoid, q25, q75, exact_mean,
            exact_q25, exact_q75; one row a step and cluster.
        clusters: Table "polca_clusters": direction, basis_step, cluster, name, curves ("projected" or one of the
            baselines "exact_loss", "loss_change", "fisher"), n_tokens, medoid_context, medoid_target, f1, fall,
            break_step, break_flops, hidden, in_flat, tau_step; one row a cluster.
        direction: Which one; None for the first two of `telling`.
        transition: Of the validation loss, shaded; None for none.
        unit: What the loss is counted in.

    Raises:
        ValueError: A table has no row or several of one key, the clusters are of several kinds of curves, the
            direction is not among them, or a cluster has no curve.
    """
    if clusters.empty:
        raise ValueError(
            "a figure of POLCA needs a cluster, got none. Run `qfl polca` on this run first; where that finds none, "
            "look at more directions or steps, or for smaller clusters."
        )
    require_rows(clusters, "polca", ("curves",), ("direction", "cluster"))
    chosen = telling(clusters)[:_MOST_DIRECTIONS] if direction is None else [direction]
    of = curves, clusters
    panels = [panel for one in chosen for panel in (polca_panel(*of, one, unit), _exact(*of, one, unit))]
    return stack_panels(panels, transition, filename="polca")


def polca_panel(curves: pd.DataFrame, clusters: pd.DataFrame, direction: int, unit: str = "nats") -> Panel:
    """Projected loss along one direction over compute, by cluster.

    Args:
        curves: Table "polca_curves".
        clusters: Table "polca_clusters".
        direction: Which one.
        unit: What the loss is counted in.

    Raises:
        ValueError: As in `polca_figure`.
    """
    drawn = drawn_curves(curves, clusters, direction, unit)
    y_range = _range(drawn, "mean", "medoid", "q25", "q75")
    basis = _basis_mark(drawn[0], y_range)
    quantity = drawn[0].quantity
    left_out = len(select(clusters, direction=direction)) - len(drawn)
    more = f", without {left_out} smaller clusters" if left_out else ""
    n_directions = len(distinct(clusters, "direction"))
    if n_directions > 1:
        more += f"; {n_directions} directions have clusters"
    lines = [line for one in drawn for line in _curves(one)]
    return Panel(
        title=quantity.of(direction),
        subtitle=f"{quantity.name} by cluster of tokens{more}",
        note="mean, middle half (band), medoid (dashed); marker: mean break, filled where the exact loss is flat",
        traces=(*basis.lines, *_bands(drawn, "q25", "q75"), *lines, *_breaks(drawn, "mean", y_range[0])),
        y_title=quantity.axis,
        y_range=y_range,
        height=190,
        legend=Legend(f"polca {direction}"),
        annotations=basis.texts,
    )


def _exact(curves: pd.DataFrame, clusters: pd.DataFrame, direction: int, unit: str) -> Panel:
    drawn = drawn_curves(curves, clusters, direction, unit)
    y_range = _range(drawn, "exact_mean", "exact_q75")
    basis, tau = _basis_mark(drawn[0], y_range), _tau_mark(drawn[0], y_range)
    hover = f"%{{y:.3f}} {unit} {_HALF}:.3f}} to %{{customdata[1]:.3f}}) · step %{{customdata[2]:,}}"
    beside = ("exact_q25", "exact_q75", "step")
    lines = [
        curve(
            one.curve, "exact_mean", one.name, one.color, legendgroup=one.group, beside=beside,
            hover=f"{hover}<extra>{one.name}, exact</extra>",
        )
        for one in drawn
    ]  # fmt: skip
    bands, marks = _bands(drawn, "exact_q25", "exact_q75"), _breaks(drawn, "exact_mean", y_range[0])
    return Panel(
        title="Exact loss",
        subtitle="of the same tokens",
        traces=(*basis.lines, *tau.lines, *bands, *lines, *marks),
        y_title=f"loss ({unit})",
        y_range=y_range,
        height=110,
        legend=Legend(f"polca {direction}"),
        annotations=tau.texts,
    )


def _range(drawn: Sequence[Cluster], *names: str) -> tuple[float, float]:
    """Lowest and highest value, and 0, with a line of text above."""
    return value_range(*(one.curve[list(names)] for one in drawn), below=0.05, above=0.14)


def _bands(drawn: Sequence[Cluster], low: str, high: str) -> list[go.Scatter]:
    """The middle half of each cluster's tokens."""
    bands = []
    for one in drawn:
        rows, red_green_blue = one.curve, ", ".join(map(str, hex_to_rgb(one.color)))
        outline = pd.concat([rows.assign(end=rows[low]), rows[::-1].assign(end=rows[::-1][high])])
        look: dict[str, Any] = {"fill": "toself", "fillcolor": f"rgba({red_green_blue}, {_BAND_OPACITY})"}
        look |= {"line": {"width": 0}, "legendgroup": one.group, "showlegend": False}
        bands.append(curve(outline, "end", f"{one.name}, middle half", one.color, **look))
    return bands


def _curves(one: Cluster) -> list[go.Scatter]:
    """The curve of the token in the middle, dashed, and the mean, which the legend lists."""
    hover = (
        f"%{{y:.3g}} {one.quantity.unit} {_HALF}:.3g}} to %{{customdata[1]:.3g}}, medoid %{{customdata[2]:.3g}}) · "
        f"step %{{customdata[3]:,}}<extra>{one.name}</extra>"
    )
    dashed: dict[str, Any] = {"width": 1.1, "dash": "dash", "legendgroup": one.group, "showlegend": False}
    whole: dict[str, Any] = {"width": 2.2, "legendgroup": one.group, "showlegend": True, "hover": hover}
    return [
        curve(one.curve, "medoid", f"{one.name}, medoid", one.color, **dashed),
        curve(one.curve, "mean", one.legend, one.color, beside=("q25", "q75", "medoid", "step"), **whole),
    ]


def _breaks(drawn: Sequence[Cluster], name: str, floor: float) -> list[go.Scatter]:
    """A large marker on each cluster's curve at the mean of its tokens' breaks, with a stem down to `floor`.

    Filled where the exact loss is flat; none for a break that is unknown or at step 0.
    """
    marks = []
    for one in drawn:
        at = float(one.row[f"break_{training_axis(one.curve).column}"])
        if not at > 0:
            continue
        height = float(np.interp(math.log(at), np.log(places(one.curve)), column(one.curve, name)))
        said = _BREAKS.get(one.verdict, "visible in the exact loss")
        hover = (
            f"{said}: breaks at step {one.row['break_step']:,.0f}, falls {abs(one.row['fall']):.3g} "
            f"{one.quantity.unit}<br>medoid: {one.medoid}"
        )
        look: dict[str, Any] = {"opacity": 1, "line": {"width": 2, "color": one.color}, "size": 10, "group": one.group}
        symbol = one.symbol if one.verdict in ("hidden", "plateau") else f"{one.symbol}-open"
        marks.append(stem(at, height, floor, f"{one.name}, break", one.color, symbol, hover=hover, **look))
    return marks


def _basis_mark(one: Cluster, y_range: tuple[float, float]) -> _Mark:
    """The checkpoint that gave the direction."""
    return _vertical(one, one.row["basis_step"], y_range, "basis: step {:,}", {"color": GREY, "dash": "dash"}, 0.82)


def _tau_mark(one: Cluster, y_range: tuple[float, float]) -> _Mark:
    """The step from which the exact loss stays flat; its text keeps off the line of the basis."""
    tau = one.row["tau_step"]
    left_from = 0.2 if one.row["basis_step"] > tau else 0.82
    return _vertical(one, tau, y_range, "flat from step {:,}", {"color": VERMILLION, "dash": "dot"}, left_from)


def _vertical(
    one: Cluster, step: float, y_range: tuple[float, float], text: str, look: dict[str, Any], left_from: float
) -> _Mark:
    """A line at a step with its text beside it; only text where the axis starts later; nothing for NaN.

    Beyond the share `left_from` of the axis the text stands to the left.
    """
    if not math.isfinite(step):
        return _Mark()
    steps, axis = column(one.curve, "step"), places(one.curve)
    at, name = float(np.interp(step, steps, axis)), text.format(int(step))
    place = math.log(at / axis[0]) / math.log(axis[-1] / axis[0]) if at > axis[0] else 0.0
    size = FONT_SIZE - 1
    # Where the rest of the axis is too short for the text.
    left = place > left_from or (1 - place) * room(PANEL_SIDES) < text_width(name, size) + 6 <= place * room(
        PANEL_SIDES
    )
    label = {"x": math.log10(at), "y": y_range[1], "text": name if step >= steps[0] else f"← {name}", "yanchor": "top"}
    label |= {"xanchor": "right" if left else "left", "xshift": -3 if left else 3}
    label |= {"font": {"color": look["color"], "size": size}}
    still = {"mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    line = go.Scatter({"x": [at, at], "y": list(y_range), "name": name, "line": {"width": 1.3, **look}, **still})
    return _Mark((line,) if step >= steps[0] else (), (label,))
