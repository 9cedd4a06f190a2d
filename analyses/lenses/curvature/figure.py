"""Sharpness beside its edge, the loss along the steps taken, soft ranks and learning coefficients over compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.analyses.lenses.curvature.ranks import ALL_SCORED
from qfl_interp.plots.lines import curve, finite, level, log_range, over_training, places, value_range
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, Shade, stack_panels
from qfl_interp.plots.theme import PURPLE, STEEL, VERMILLION, ordered_colors
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
    first, *others = curvature_panels(rows, ranks)
    shown = over_training(rows)
    low, high = _STEP_LIMITS
    edges = [level(places(shown), value, f"{value:g}") for value in (_STEP_EDGE, 0.0)]
    along = Panel(
        title="Sharpness along the step",
        subtitle=f"2 c₂/|c₁|; above {_STEP_EDGE:g} the quadratic model raises the loss; beyond the panel: at its edge",
        traces=(*_curves(shown, _STEP, "sharpness along the step", limits=_STEP_LIMITS), *edges),
        y_title="2 c₂/|c₁|",
        y_range=(low - 0.3, high + 0.3),
        height=130,
        legend=Legend("along the step"),
    )
    norm = _curves(shown, [_Look("weight_norm", "|θ|", PURPLE)], "norm", showlegend=False)
    ends = value_range(*norm, include=(), below=0.08, above=0.08)
    length = Panel(title="Weight norm", traces=tuple(norm), y_title="|θ|", y_range=ends, height=90)
    return stack_panels([first, along, length, *others], transition, filename="curvature")


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
    shown = over_training(rows)
    angles = Panel(
        title="Alignment",
        subtitle="cosine of the step to the next checkpoint with ...",
        traces=(*_curves(shown, _ANGLES, "cosine"), level(places(shown), 0.0, "0")),
        y_title="cosine",
        y_range=(-1.05, 1.05),
        height=130,
        legend=Legend("alignment"),
    )
    panels = [_sharpness_panel(shown), angles, _rank_panel(ranks)]
    if _COEFFICIENT in shown and len(finite(shown[_COEFFICIENT])):
        panels.append(_coefficient_panel(shown))
    return panels


def _sharpness_panel(rows: pd.DataFrame) -> Panel:
    """Eigenvalues, their edges and the curvature along the step, on a logarithmic axis."""
    traces = _curves(rows, _SHARPNESS, "sharpness", positive=True)
    below = any((column(rows, look.column) <= 0).any() for look in _SHARPNESS if look.column in rows)
    gaps = "; gaps: not positive" if below else ""
    return Panel(
        title="Sharpness",
        subtitle=f"largest eigenvalue of the mean loss's Hessian; dotted: the edge of stability{gaps}",
        traces=tuple(traces),
        y_title="curvature",
        y_range=log_range(*traces, room=0.0, least=1.5),
        log_y=True,
        legend=Legend("sharpness"),
    )


def _rank_panel(ranks: pd.DataFrame) -> Panel:
    """The stable rank of each layer's residual stream over all scored positions, centred (solid) and not (dotted)."""
    layers = groups(over_training(select(ranks, position=ALL_SCORED)), "layer")
    traces = []
    for (layer, part), color in zip(layers, ordered_colors(len(layers)), strict=True):
        plain = _Look("stable_rank", f"layer {layer}, not centred", color, "dot")
        centred = _Look("stable_rank_centred", f"layer {layer}", color)
        for look in (plain, centred):
            more = {"legendgroup": f"rank {layer}", "showlegend": look is centred}
            traces += _curves(part, [look], "stable rank", **more)
    values = finite(*traces)
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
    lost = column(rows, "n_finite_chains") < column(rows, "n_chains")
    hover = "%{y:.3g} ± %{customdata[0]:.2g} (%{customdata[1]} of %{customdata[2]} chains) · step %{customdata[3]:,}"
    trace = curve(
        rows,
        _COEFFICIENT,
        "learning coefficient",
        PURPLE,
        hover=hover,
        beside=(f"{_COEFFICIENT}_std", "n_finite_chains", "n_chains", "step"),
        size=5,
        error_y={"type": "data", "array": spread, "thickness": 1, "width": 2},
        showlegend=False,
    ).update(marker_symbol=np.where(lost, "circle-open", "circle"))
    return Panel(
        title="Local learning coefficient",
        subtitle="mean of the chains ± standard deviation between them; open: a chain left for infinity",
        traces=(trace, level(places(rows), 0.0, "0")),
        y_title="coefficient",
        y_range=value_range(value - spread, value + spread),
        height=130,
    )


def _curves(
    rows: pd.DataFrame,
    looks: Sequence[_Look],
    what: str,
    *,
    positive: bool = False,
    limits: tuple[float, float] = (-np.inf, np.inf),
    **more: Any,
) -> list[go.Scatter]:
    """The curves that have a value; on a logarithmic axis (`positive`) where they are above 0."""
    traces = []
    for look in looks:
        values = column(rows, look.column)
        shown = np.where(values > 0, values, np.nan) if positive else np.clip(values, *limits)
        if not len(finite(shown)):
            continue
        dotted = look.dash == "dot"
        traces.append(
            curve(
                rows.assign(shown=shown),
                "shown",
                look.name,
                look.color,
                hover=f"%{{customdata[0]:.4g}} · step %{{customdata[1]:,}}<extra>{what}: {look.name}</extra>",
                beside=(look.column, "step"),
                width=1.4 if dotted else 2,
                dash=look.dash,
                size=None if dotted else 4,
                **{"legendgroup": look.column, "showlegend": True} | more,
            )
        )
    return traces
