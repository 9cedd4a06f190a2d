"""Marks in the figures of POLCA: when clusters break, the checkpoint of the basis, from when on the loss is flat."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from analyses.lenses.polca.clusters import Cluster
from qfl_interp.plots.lines import stem
from qfl_interp.plots.theme import FONT_SIZE, GREY, VERMILLION
from qfl_interp.tables import column


class Mark(NamedTuple):
    """A vertical line, and its text as an annotation; each may be missing."""

    lines: tuple[go.Scatter, ...] = ()
    texts: tuple[dict[str, Any], ...] = ()


def break_mark(one: Cluster, name: str, floor: float) -> list[go.Scatter]:
    """A large marker on a cluster's curve at the mean of its tokens' breaks, with a stem down to `floor`.

    Filled where the exact loss is flat; nothing for a break that is unknown or at 0 FLOPs.
    """
    at = float(one.row["break_flops"])
    if not at > 0:
        return []
    height = float(np.interp(math.log(at), np.log(column(one.curve, "flops")), column(one.curve, name)))
    said = {"hidden": "hidden", "plateau": "on a plateau"}.get(one.verdict, "visible in the exact loss")
    hover = (
        f"{said}: breaks at step {one.row['break_step']:,.0f}, falls {abs(one.row['fall']):.3g} {one.quantity.unit}<br>"
        f"medoid: {one.medoid}"
    )
    look: dict[str, Any] = {"opacity": 1, "line": {"width": 2, "color": one.color}, "size": 10, "group": one.group}
    symbol = one.symbol if one.verdict else f"{one.symbol}-open"
    return [stem(at, height, floor, f"{one.name}, break", one.color, symbol, hover=hover, **look)]


def basis_mark(one: Cluster, y_range: tuple[float, float]) -> Mark:
    """The checkpoint that gave the direction."""
    return _vertical(one, one.row["basis_step"], y_range, "basis: step {:,}", {"color": GREY, "dash": "dash"}, 0.82)


def tau_mark(one: Cluster, y_range: tuple[float, float]) -> Mark:
    """The step from which the exact loss stays flat; its text keeps off the line of the basis."""
    tau = one.row["tau_step"]
    left_from = 0.2 if one.row["basis_step"] > tau else 0.82
    return _vertical(one, tau, y_range, "flat from step {:,}", {"color": VERMILLION, "dash": "dot"}, left_from)


def _vertical(
    one: Cluster, step: float, y_range: tuple[float, float], text: str, look: dict[str, Any], left_from: float
) -> Mark:
    """A line at a step with its text beside it; only text where the axis starts later; nothing for NaN.

    Beyond the share `left_from` of the axis the text stands to the left.
    """
    if not math.isfinite(step):
        return Mark()
    steps, flops = column(one.curve, "step"), column(one.curve, "flops")
    at, name = float(np.interp(step, steps, flops)), text.format(int(step))
    place = math.log(at / flops[0]) / math.log(flops[-1] / flops[0]) if at > flops[0] else 0.0
    left = place > left_from
    label = {"x": math.log10(at), "y": y_range[1], "text": name if step >= steps[0] else f"← {name}", "yanchor": "top"}
    label |= {"xanchor": "right" if left else "left", "xshift": -3 if left else 3}
    label |= {"font": {"color": look["color"], "size": FONT_SIZE - 1}}
    still = {"mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    line = go.Scatter({"x": [at, at], "y": list(y_range), "name": name, "line": {"width": 1.3, **look}, **still})
    return Mark((line,) if step >= steps[0] else (), (label,))
