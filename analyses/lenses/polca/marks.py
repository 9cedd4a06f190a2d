"""Marks in the figures of POLCA: when clusters break, the checkpoint of the basis, from when on the loss is flat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.lenses.polca.clusters import Cluster
from qfl_interp.plots.theme import FONT_SIZE, GREY, VERMILLION
from qfl_interp.tables import column


def breaks(found: Sequence[Cluster], parts: Sequence[pd.DataFrame], name: str, floor: float) -> list[go.Scatter]:
    """A large marker on each curve at the mean of its tokens' breaks, with a stem down to `floor`.

    Filled where the exact loss is flat; nothing for a break that is unknown or at 0 FLOPs.
    """
    traces = []
    for one, part in zip(found, parts, strict=True):
        at = float(one.row["break_flops"])
        if not at > 0:
            continue
        height = float(np.interp(math.log(at), np.log(column(part, "flops")), column(part, name)))
        marker = {"symbol": [one.symbol if one.verdict else f"{one.symbol}-open", "line-ns"], "size": [10, 0]}
        said = {"hidden": "hidden", "plateau": "on a plateau"}.get(one.verdict, "visible in the exact loss")
        traces.append(
            go.Scatter(
                x=[at, at],
                y=[height, floor],
                mode="lines+markers",
                name=f"{one.name}, break",
                line={"color": one.color, "width": 1.2, "dash": "dot"},
                marker=marker | {"color": one.color, "opacity": 1, "line": {"width": 2, "color": one.color}},
                legendgroup=one.group,
                showlegend=False,
                hovertemplate=f"{said}: breaks at step {one.row['break_step']:,.0f}, falls {abs(one.row['fall']):.3g} "
                f"{one.quantity.unit}<br>medoid: {one.medoid}<extra>{one.name}, break</extra>",
            )
        )
    return traces


def basis_mark(
    part: pd.DataFrame, one: Cluster, y_range: tuple[float, float]
) -> tuple[list[go.Scatter], tuple[dict[str, Any], ...]]:
    """The checkpoint that gave the direction."""
    return _vertical(part, one.row["basis_step"], y_range, (GREY, "dash"), "basis: step {:,}")


def tau_mark(
    part: pd.DataFrame, one: Cluster, y_range: tuple[float, float]
) -> tuple[list[go.Scatter], tuple[dict[str, Any], ...]]:
    """The step from which the exact loss stays flat; its text keeps off the line of the basis."""
    tau = one.row["tau_step"]
    look = (VERMILLION, "dot")
    return _vertical(part, tau, y_range, look, "flat from step {:,}", to_left=one.row["basis_step"] > tau)


def _vertical(
    part: pd.DataFrame,
    step: float,
    y_range: tuple[float, float],
    look: tuple[str, str],
    text: str,
    *,
    to_left: bool = False,
) -> tuple[list[go.Scatter], tuple[dict[str, Any], ...]]:
    """A vertical line at a step with its text beside it; only text where the axis starts later; nothing for NaN."""
    if not math.isfinite(step):
        return [], ()
    steps, flops = column(part, "step"), column(part, "flops")
    at, name, (color, dash) = float(np.interp(step, steps, flops)), text.format(int(step)), look
    place = math.log(at / flops[0]) / math.log(flops[-1] / flops[0]) if at > flops[0] else 0.0
    left = place > (0.2 if to_left else 0.82)
    label = {
        "x": math.log10(at),
        "y": y_range[1],
        "text": name if step >= steps[0] else f"← {name}",
        "xanchor": "right" if left else "left",
        "xshift": -3 if left else 3,
        "yanchor": "top",
        "font": {"color": color, "size": FONT_SIZE - 1},
    }
    line = go.Scatter(
        x=[at, at],
        y=list(y_range),
        mode="lines",
        name=name,
        line={"color": color, "width": 1.3, "dash": dash},
        showlegend=False,
        hoverinfo="skip",
    )
    return [line] if step >= steps[0] else [], (label,)
