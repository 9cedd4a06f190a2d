"""The timeline: loss and exact match of one run, and every lens' panels below them, on one compute axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.lens import NO_SHADING, Shading
from qfl_interp.plots.panels import Legend, Panel, over_compute, stack_panels
from qfl_interp.plots.theme import FONT_SIZE, PURPLE, STEEL, VERMILLION
from qfl_interp.tables import column

STEP: Final = "step %{customdata[0]:,}"
# Losses below this are drawn at this level on a log axis.
LOSS_FLOOR: Final = 1e-12


def timeline_figure(
    metrics: pd.DataFrame, panels: Sequence[Panel] = (), shading: Shading = NO_SHADING, *, log_loss: bool = True
) -> go.Figure:
    """Validation loss, exact match and the lenses' panels on one logarithmic compute axis.

    Args:
        metrics: Table "metrics" of the run.
        panels: Of the lenses, from the top.
        shading: Where the loss falls: shaded across all panels.
        log_loss: Whether the loss has a logarithmic axis.
    """
    first = [loss_panel(metrics, log_y=log_loss, plateau_loss=shading.plateau_loss), exact_panel(metrics)]
    return stack_panels([*first, *panels], shading.band, filename="timeline", note=shading.note)


def loss_panel(metrics: pd.DataFrame, *, log_y: bool = True, plateau_loss: float = math.nan) -> Panel:
    """Validation loss over the answer alone and as the paper counts.

    Args:
        metrics: Table "metrics".
        log_y: Whether y is logarithmic.
        plateau_loss: Level of the plateau, drawn as a dashed line; NaN for none.
    """
    series = [
        ("val_loss", "as the paper counts (= scored)", {"color": STEEL, "width": 1.5, "dash": "dash"}),
        ("val_loss_answer", "over the answer alone", {"color": PURPLE, "width": 2.2}),
    ]
    traces = [_metric_trace(metrics, name, label, line, ":.4f") for name, label, line in series]
    values = np.concatenate([np.asarray(trace.y, dtype=float) for trace in traces])
    y_range = loss_range(values, log_y)
    annotations: tuple[dict[str, Any], ...] = ()
    if math.isfinite(plateau_loss):
        flops = column(over_compute(metrics), "flops")
        traces.append(_level(flops[0], flops[-1], plateau_loss, VERMILLION, f"plateau {plateau_loss:.3f}"))
        annotations = (
            {
                "x": math.log10(flops[0]),
                "y": math.log10(plateau_loss) if log_y else plateau_loss,
                "text": f"plateau {plateau_loss:.3f}",
                "xanchor": "left",
                "yanchor": "top",
                "font": {"color": VERMILLION, "size": FONT_SIZE - 1},
            },
        )
    return Panel(
        title="Validation loss",
        traces=tuple(traces),
        y_title="nats per token",
        y_range=y_range,
        log_y=log_y,
        legend=Legend("loss"),
        annotations=annotations,
    )


def exact_panel(metrics: pd.DataFrame) -> Panel:
    """Exact match on the validation set, both counts."""
    series = [
        ("val_exact", "as the paper counts (= scored)", {"color": STEEL, "width": 1.5, "dash": "dash"}),
        ("val_exact_answer", "over the answer alone", {"color": PURPLE, "width": 2.2}),
    ]
    traces = [_metric_trace(metrics, name, label, line, ":.2%") for name, label, line in series]
    return Panel(
        title="Exact match",
        subtitle="validation examples with every scored token right",
        traces=tuple(traces),
        y_title="fraction",
        y_range=(-0.04, 1.04),
        height=110,
        legend=Legend("loss"),
    )


def loss_range(values: np.ndarray, log_y: bool) -> tuple[float, float]:
    """Lowest and highest loss to show, with room; on a log axis not below the floor."""
    values = values[np.isfinite(values)]
    if not len(values):
        return (0.1, 1.0)
    high = float(values.max())
    if not log_y:
        return (0.0, 1.06 * max(high, LOSS_FLOOR))
    low = max(float(values.min()), LOSS_FLOOR)
    room = max((max(high, low) / low) ** 0.06, 1.03)
    return (low / room, max(high, low) * room)


def _metric_trace(metrics: pd.DataFrame, name: str, label: str, line: dict[str, Any], number: str) -> go.Scatter:
    """One column of the metrics over compute, where it was measured."""
    rows = over_compute(metrics.dropna(subset=[name]))
    return go.Scatter(
        x=column(rows, "flops"),
        y=column(rows, name),
        customdata=column(rows, "step")[:, None],
        mode="lines",
        name=label,
        line=line,
        legendgroup=label,
        hovertemplate=f"%{{y{number}}} · {STEP}",
    )


def _level(start: float, end: float, value: float, color: str, name: str) -> go.Scatter:
    """A horizontal line that neither the hover nor the legend lists."""
    line = {"color": color, "width": 1.2, "dash": "dot"}
    return go.Scatter(
        x=[start, end],
        y=[value, value],
        mode="lines",
        line=line,
        name=name,
        hoverinfo="skip",
        showlegend=False,
    )
