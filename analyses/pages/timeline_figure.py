"""The timeline: loss and exact match of one run, and every lens' panels below them, on one axis of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.analyses.lens import NO_SHADING, Shading
from qfl_interp.plots.lines import LOSS_FLOOR, STEP, curve, finite, level, log_range, over_training, places
from qfl_interp.plots.panels import Legend, Panel, stack_panels
from qfl_interp.plots.theme import FONT_SIZE, PURPLE, STEEL, VERMILLION, ordered_colors

# Both counts of loss and exact match: their ending in the table, name and look.
_COUNTS: Final[tuple[tuple[str, str, str, dict[str, Any]], ...]] = (
    ("", "as the paper counts (= scored)", STEEL, {"width": 1.5, "dash": "dash"}),
    ("_answer", "over the answer alone", PURPLE, {"width": 2.2}),
)


def timeline_figure(
    metrics: pd.DataFrame,
    panels: Sequence[Panel] = (),
    shading: Shading = NO_SHADING,
    *,
    log_loss: bool = True,
    beside: Mapping[str, pd.DataFrame] = MappingProxyType({}),
    unit: str = "nats",
) -> go.Figure:
    """Validation loss, exact match and the lenses' panels on one logarithmic axis of training.

    Args:
        metrics: Table "metrics" of the run, or "validate" of a suite.
        panels: Of the lenses, from the top.
        shading: Where the loss falls: shaded across all panels.
        log_loss: Whether the loss has a logarithmic axis.
        beside: The metrics of other runs by name, drawn over this one's.
        unit: What the loss is counted in.
    """
    first = training_panels(metrics, shading, log_loss=log_loss, beside=beside, unit=unit)
    return stack_panels([*first, *panels], shading.band, filename="timeline", note=shading.note)


def training_panels(
    metrics: pd.DataFrame,
    shading: Shading = NO_SHADING,
    *,
    log_loss: bool = True,
    beside: Mapping[str, pd.DataFrame] = MappingProxyType({}),
    unit: str = "nats",
) -> list[Panel]:
    """The panels of what training logged: loss, and exact match where the task has one. Arguments as of the figure."""
    first = [_loss_panel(metrics, log_loss, shading.plateau_loss, beside, unit)]
    if "val_exact" in metrics:  # a real-valued task has none
        first.append(_exact_panel(metrics, beside))
    return first


def _loss_panel(
    metrics: pd.DataFrame, log_y: bool, plateau_loss: float, beside: Mapping[str, pd.DataFrame], unit: str
) -> Panel:
    """Validation loss, both counts, with the level of its plateau where that is no NaN; other runs' over the answer."""
    traces = _metric(metrics, "val_loss", ".4f") + _others(beside, "val_loss_answer", ".4f")
    y_range = loss_range(*traces, log_y=log_y)
    annotations: tuple[dict[str, Any], ...] = ()
    if math.isfinite(plateau_loss):
        over, text = places(over_training(metrics)), f"plateau {plateau_loss:.3f}"
        traces.append(level(over, plateau_loss, text, VERMILLION, width=1.2))
        place = {"x": math.log10(over[0]), "y": math.log10(plateau_loss) if log_y else plateau_loss}
        look = {"xanchor": "left", "yanchor": "top", "font": {"color": VERMILLION, "size": FONT_SIZE - 1}}
        annotations = ({"text": text, **place, **look},)
    return Panel(
        title="Validation loss",
        traces=tuple(traces),
        y_title="nats per token" if unit == "nats" else unit,
        y_range=y_range,
        log_y=log_y,
        legend=Legend("loss"),
        annotations=annotations,
    )


def _exact_panel(metrics: pd.DataFrame, beside: Mapping[str, pd.DataFrame]) -> Panel:
    """Exact match on the validation set, both counts; other runs' over the answer."""
    traces = _metric(metrics, "val_exact", ".2%") + _others(beside, "val_exact_answer", ".2%", showlegend=False)
    return Panel(
        title="Exact match",
        subtitle="validation examples with every scored token right",
        traces=tuple(traces),
        y_title="fraction",
        y_range=(-0.04, 1.04),
        height=110,
        legend=Legend("loss"),
    )


def loss_range(*shown: Any, log_y: bool) -> tuple[float, float]:
    """Lowest and highest loss to show, with room; on a log axis not below the floor, on a linear one from 0."""
    if log_y or not len(finite(*shown)):
        return log_range(*shown)
    return 0.0, 1.06 * max(float(finite(*shown).max()), LOSS_FLOOR)


def _metric(metrics: pd.DataFrame, name: str, number: str) -> list[go.Scatter]:
    """Both counts of one quantity over training, where it was measured."""
    hover = f"%{{y:{number}}} · {STEP}"
    return [
        curve(over_training(metrics.dropna(subset=[name + ending])), name + ending, text, color, hover=hover, **look)
        for ending, text, color, look in _COUNTS
    ]


def _others(beside: Mapping[str, pd.DataFrame], name: str, number: str, **look: Any) -> list[go.Scatter]:
    """One quantity of other runs, each in a colour of its own."""
    colors = [*ordered_colors(max(len(beside), 2))]
    return [
        curve(
            over_training(metrics.dropna(subset=[name])), name, text, color, hover=f"%{{y:{number}}} · {STEP}",
            width=1.8, legendgroup=f"beside {text}", **look,
        )
        for (text, metrics), color in zip(beside.items(), colors, strict=False)
    ]  # fmt: skip
