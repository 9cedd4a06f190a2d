"""How much of the loss's change the directions of a POLCA basis capture, over compute."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, Shade, over_compute, stack_panels
from qfl_interp.plots.theme import GREY, PURPLE, STEEL, VERMILLION
from qfl_interp.tables import column

# Fractions outside are drawn at the edge: where the loss hardly changes they mean little.
_LIMITS: Final = (-0.5, 1.5)
# Diameters in pixels of the smallest and largest change's point.
_SIZES: Final = (4.0, 11.0)


def captured_figure(intervals: pd.DataFrame, *, transition: Shade | None = None) -> go.Figure:
    """The mean loss's change since the first checkpoint with the part the basis captures, and the share by interval.

    An interval stands at its end. Points of the lower panel are as large as the interval's change of the loss; those
    outside the panel stand at its edge as arrows.

    Args:
        intervals: Table "polca_intervals": step_from, step_to, flops_from, flops_to, loss_change, captured,
            captured_fraction; one row an interval, in nats.
        transition: Of the validation loss, shaded; None for none.

    Raises:
        ValueError: There is no row, several of one interval, or none that ends above 0 FLOPs.
    """
    require_rows(intervals, "polca", (), ("step_from", "step_to"))
    rows = intervals.sort_values("step_to")
    shown = over_compute(
        rows.assign(flops=rows["flops_to"], change=rows["loss_change"].cumsum(), part=rows["captured"].cumsum())
    )
    return stack_panels([_change_panel(shown), _fraction_panel(shown)], transition, filename="polca_captured")


def _change_panel(rows: pd.DataFrame) -> Panel:
    """Change of the loss since the first checkpoint, and its captured part."""
    change, part = column(rows, "change"), column(rows, "part")
    low, high = float(min(change.min(), part.min(), 0.0)), float(max(change.max(), part.max(), 0.0))
    room = 0.06 * (high - low) or 1.0
    looks = {
        "change": ("mean loss over the tokens", {"color": PURPLE, "width": 2.2}),
        "part": ("captured by the directions together", {"color": VERMILLION, "width": 1.8, "dash": "dash"}),
    }
    traces = [
        go.Scatter(
            x=column(rows, "flops"),
            y=column(rows, name),
            customdata=column(rows, "step_to")[:, None],
            mode="lines",
            name=text,
            line=line,
            legendgroup=name,
            hovertemplate=f"%{{y:.3f}} nats · step %{{customdata[0]:,}}<extra>{text}</extra>",
        )
        for name, (text, line) in looks.items()
    ]
    whole = f"{part[-1] / change[-1]:.0%} captured in all" if change[-1] else ""
    return Panel(
        title="Change of the loss",
        subtitle=", ".join(words for words in ("since the first checkpoint", whole) if words),
        traces=tuple(traces),
        y_title="nats per token",
        y_range=(low - room, high + room),
        height=170,
        legend=Legend("change"),
    )


def _fraction_panel(rows: pd.DataFrame) -> Panel:
    """The captured share of every interval's change."""
    rows = rows.dropna(subset=["captured_fraction"])
    fraction, size = column(rows, "captured_fraction"), np.abs(column(rows, "loss_change"))
    low, high = _LIMITS
    symbols = np.where(fraction > high, "triangle-up-open", np.where(fraction < low, "triangle-down-open", "circle"))
    share = np.sqrt(size / size.max(initial=1e-300))
    names = ["captured_fraction", "captured", "loss_change", "step_from", "step_to"]
    points = go.Scatter(
        x=column(rows, "flops"),
        y=np.clip(fraction, low, high),
        customdata=rows[names].to_numpy(dtype=float),
        mode="markers",
        name="captured share",
        marker={
            "color": STEEL,
            "symbol": symbols,
            "size": _SIZES[0] + (_SIZES[1] - _SIZES[0]) * share,
            "opacity": 0.85,
        },
        showlegend=False,
        hovertemplate="%{customdata[0]:.1%}: %{customdata[1]:.2e} of %{customdata[2]:.2e} nats · steps "
        "%{customdata[3]:,} to %{customdata[4]:,}<extra>captured share</extra>",
    )
    flops = column(rows, "flops")
    levels = [_level(flops, value) for value in (0.0, 1.0)] if len(rows) else []
    return Panel(
        title="Captured share of each interval's change",
        subtitle="points as large as the change; arrows: beyond the panel",
        traces=(*levels, points),
        y_title="share",
        y_range=(low - 0.1, high + 0.1),
        height=120,
    )


def _level(flops: np.ndarray, value: float) -> go.Scatter:
    """A horizontal line over the whole axis."""
    look: dict[str, Any] = {"mode": "lines", "line": {"color": GREY, "width": 1.1, "dash": "dot"}}
    return go.Scatter(
        x=[flops.min(), flops.max()], y=[value, value], name=f"{value:.0%}", showlegend=False, hoverinfo="skip", **look
    )
