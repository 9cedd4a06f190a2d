"""Sharpness beside its edge, the loss along the steps taken, soft ranks and learning coefficients over compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.lenses.curvature.ranks import ALL_SCORED
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, Shade, over_compute, stack_panels
from qfl_interp.plots.theme import (
    GREY,
    PURPLE,
    STEEL,
    VERMILLION,
    ordered_colors,
)
from qfl_interp.tables import column, groups, select

# Beyond the edge of stability along the step: the quadratic model raises the loss.
_STEP_EDGE: Final = 2.0
_STEP_LIMITS: Final = (-1.0, 6.0)
_COEFFICIENT: Final = "learning_coefficient"


class _Look(NamedTuple):
    """A curve: its column, how it is called and drawn."""

    column: str
    name: str
    color: str
    dash: str = "solid"


_SHARPNESS: Final = (
    _Look("sharpness", "λ of H", PURPLE),
    _Look("edge", "its edge, 2/lr", PURPLE, "dot"),
    _Look("preconditioned_sharpness", "λ of P½HP½ (Adam)", VERMILLION),
    _Look("adam_edge", "its edge, (2+2β)/((1−β)lr)", VERMILLION, "dot"),
    _Look("step_curvature", "along the step, d'Hd/|d|²", STEEL),
)
_STEP: Final = (
    _Look("step_sharpness", "to the next checkpoint", STEEL),
    _Look("update_sharpness", "the next update alone", VERMILLION),
)
_ANGLES: Final = (
    _Look("cos_gradient_step", "−gradient", PURPLE),
    _Look("cos_preconditioned_step", "−P gradient", VERMILLION),
    _Look("cos_gradient_update", "−gradient, one update", PURPLE, "dot"),
    _Look("cos_step_cumulative", "way since the start", STEEL),
)


def curvature_figure(rows: pd.DataFrame, ranks: pd.DataFrame, *, transition: Shade | None = None) -> go.Figure:
    """Everything that `curvature_panels` shows, the loss along the steps and the weights' norm, over compute.

    Args:
        rows: Table "curvature", one row a step, with the columns of "learning_coefficient" where it was sampled.
        ranks: Table "soft_ranks".
        transition: Of the validation loss, shaded; None for none.

    Raises:
        ValueError: A table has no row, or several of one key.
    """
    panels = curvature_panels(rows, ranks)
    shown = over_compute(rows)
    extra = [_step_panel(shown), _norm_panel(shown)]
    return stack_panels([panels[0], *extra, *panels[1:]], transition, filename="curvature")


def curvature_panels(rows: pd.DataFrame, ranks: pd.DataFrame) -> list[Panel]:
    """Sharpness with its edges, the steps' angles, the stable rank by layer, and learning coefficients where sampled.

    Curves that a run does not have (Adam's without saved moments, edges without a learning rate) are left out.

    Args:
        rows: Table "curvature".
        ranks: Table "soft_ranks".

    Raises:
        ValueError: As `curvature_figure`.
    """
    require_rows(rows, "curvature", (), ("step",))
    require_rows(ranks, "curvature", (), ("step", "layer", "position"))
    shown = over_compute(rows)
    panels = [_sharpness_panel(shown), _angle_panel(shown), _rank_panel(ranks)]
    if _COEFFICIENT in shown and np.isfinite(column(shown, _COEFFICIENT)).any():
        panels.append(_coefficient_panel(shown))
    return panels


def _sharpness_panel(rows: pd.DataFrame) -> Panel:
    """Eigenvalues, their edges and the curvature along the step, on a logarithmic axis."""
    traces = _curves(rows, _SHARPNESS, "sharpness", positive=True)
    values = _values(traces)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.1, 1.0)
    below = any((column(rows, look.column) <= 0).any() for look in _SHARPNESS if look.column in rows)
    gaps = "; gaps: not positive" if below else ""
    return Panel(
        title="Sharpness",
        subtitle=f"largest eigenvalue of the loss's Hessian on training examples; dotted: the edge of stability{gaps}",
        traces=tuple(traces),
        y_title="curvature (nats)",
        y_range=(low / 1.5, max(high, 1.05 * low) * 1.5),
        log_y=True,
        legend=Legend("sharpness"),
    )


def _step_panel(rows: pd.DataFrame) -> Panel:
    """Sharpness relative to the step, held within the panel."""
    low, high = _STEP_LIMITS
    traces = _curves(rows, _STEP, "sharpness along the step", limits=_STEP_LIMITS)
    return Panel(
        title="Sharpness along the step",
        subtitle=f"2 c₂/|c₁|; above {_STEP_EDGE:g} the quadratic model raises the loss; beyond the panel: at its edge",
        traces=(*traces, _level(rows, _STEP_EDGE), _level(rows, 0.0)),
        y_title="2 c₂/|c₁|",
        y_range=(low - 0.3, high + 0.3),
        height=130,
        legend=Legend("along the step"),
    )


def _angle_panel(rows: pd.DataFrame) -> Panel:
    """Cosines."""
    return Panel(
        title="Alignment",
        subtitle="cosine of the step to the next checkpoint with ...",
        traces=(*_curves(rows, _ANGLES, "cosine"), _level(rows, 0.0)),
        y_title="cosine",
        y_range=(-1.05, 1.05),
        height=130,
        legend=Legend("alignment"),
    )


def _norm_panel(rows: pd.DataFrame) -> Panel:
    """The length of the weights."""
    traces = _curves(rows, (_Look("weight_norm", "|θ|", PURPLE),), "norm")
    values = _values(traces)
    room = 0.08 * float(np.ptp(values)) or 0.01 * float(values.max())
    return Panel(
        title="Weight norm",
        traces=tuple(trace.update(showlegend=False) for trace in traces),
        y_title="|θ|",
        y_range=(float(values.min()) - room, float(values.max()) + room),
        height=90,
    )


def _rank_panel(ranks: pd.DataFrame) -> Panel:
    """The stable rank of each layer's residual stream over all scored positions, centred (solid) and not (dotted)."""
    shown = over_compute(select(ranks, position=ALL_SCORED))
    layers = groups(shown, "layer")
    traces = []
    for (layer, part), color in zip(layers, ordered_colors(len(layers)), strict=True):
        looks = (
            _Look("stable_rank_centred", f"layer {layer}", color),
            _Look("stable_rank", f"layer {layer}, not centred", color, "dot"),
        )
        centred, plain = _curves(part, looks, "stable rank", group=f"rank {layer}")
        traces += [plain.update(showlegend=False), centred]
    values = _values(traces)
    return Panel(
        title="Soft rank of the residual stream",
        subtitle="stable rank over all scored positions; dotted: mean not subtracted",
        traces=tuple(traces),
        y_title="stable rank",
        y_range=(min(1.0, float(values.min())) - 0.1, 1.06 * float(values.max())),
        legend=Legend("soft ranks"),
    )


def _coefficient_panel(rows: pd.DataFrame) -> Panel:
    """The local learning coefficient, with a standard deviation between chains on both sides."""
    rows = rows.dropna(subset=[_COEFFICIENT])
    value, spread = column(rows, _COEFFICIENT), column(rows, f"{_COEFFICIENT}_std")
    finite, n_chains = column(rows, "n_finite_chains"), column(rows, "n_chains")
    trace = go.Scatter(
        x=column(rows, "flops"),
        y=value,
        error_y={"type": "data", "array": spread, "thickness": 1, "width": 2},
        customdata=np.stack([spread, finite, n_chains, column(rows, "step")], axis=1),
        mode="lines+markers",
        name="learning coefficient",
        line={"color": PURPLE, "width": 2},
        marker={"size": 5, "symbol": np.where(finite < n_chains, "circle-open", "circle")},
        showlegend=False,
        hovertemplate="%{y:.3g} ± %{customdata[0]:.2g} (%{customdata[1]} of %{customdata[2]} chains) · step "
        "%{customdata[3]:,}<extra>learning coefficient</extra>",
    )
    low, high = float(np.min(value - spread)), float(np.max(value + spread))
    room = 0.06 * (high - low) or 1.0
    return Panel(
        title="Local learning coefficient",
        subtitle="mean of the chains ± standard deviation between them; open: a chain left for infinity",
        traces=(trace, _level(rows, 0.0)),
        y_title="coefficient",
        y_range=(min(low, 0.0) - room, high + room),
        height=130,
    )


def _curves(
    rows: pd.DataFrame,
    looks: Sequence[_Look],
    what: str,
    *,
    positive: bool = False,
    limits: tuple[float, float] | None = None,
    group: str = "",
) -> list[go.Scatter]:
    """The curves that have a value; on a logarithmic axis (`positive`) where they are above 0."""
    traces = []
    for look in looks:
        values = column(rows, look.column)
        kept = np.where(values > 0, values, np.nan) if positive else values
        if not np.isfinite(kept).any():
            continue
        place = kept if limits is None else np.clip(kept, *limits)
        traces.append(
            go.Scatter(
                x=column(rows, "flops"),
                y=place,
                customdata=np.stack([values, column(rows, "step")], axis=1),
                mode="lines" if look.dash == "dot" else "lines+markers",
                name=look.name,
                line={"color": look.color, "width": 1.4 if look.dash == "dot" else 2, "dash": look.dash},
                marker={"size": 4},
                legendgroup=group or look.column,
                showlegend=True,
                hovertemplate=f"%{{customdata[0]:.4g}} · step %{{customdata[1]:,}}<extra>{what}: {look.name}</extra>",
            )
        )
    return traces


def _values(traces: Sequence[go.Scatter]) -> np.ndarray:
    """All finite heights of the curves."""
    parts = [np.asarray(trace.y, dtype=float) for trace in traces]
    joined = np.concatenate(parts) if parts else np.empty(0)
    return joined[np.isfinite(joined)]


def _level(rows: pd.DataFrame, value: float) -> go.Scatter:
    """A horizontal line that neither the hover nor the legend lists."""
    flops = column(rows, "flops")
    return go.Scatter(
        x=[flops.min(), flops.max()],
        y=[value, value],
        mode="lines",
        name=f"{value:g}",
        line={"color": GREY, "width": 1.1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
