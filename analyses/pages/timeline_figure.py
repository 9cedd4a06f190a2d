"""The timeline: loss, exact match and every feature's probes of one run, on one compute axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.panels import Legend, Panel, Shade, over_compute, stack_panels
from qfl_interp.plots.theme import (
    FONT_SIZE,
    GREY,
    PURPLE,
    STEEL,
    THIRD_STYLES,
    VERMILLION,
    format_power,
    plain,
    words,
)
from qfl_interp.tables import column, distinct, records, select

Mean = Literal["geometric", "arithmetic"]

_STEP: Final = "step %{customdata[0]:,}"
_PROBE_LOSS: Final = {"log_loss": "test log loss (nats)", "mse": "test mean squared error"}
# Losses below this are drawn at this level on a log axis.
_LOSS_FLOOR: Final = 1e-12


def timeline_figure(
    metrics: pd.DataFrame,
    emergence_curves: pd.DataFrame,
    emergence: pd.DataFrame,
    *,
    mean: Mean = "geometric",
    log_loss: bool = True,
    extra_panels: Sequence[Panel] = (),
) -> go.Figure:
    """When the loss falls, and when each feature becomes decodable, on one logarithmic compute axis.

    Panels from the top: validation loss, exact match, one for each feature in the order of
    `emergence_curves`, then `extra_panels`. The transition is shaded across all of them.

    Args:
        metrics: Table "metrics" of the run.
        emergence_curves: Table "emergence_curve".
        emergence: Table "emergence": transition, onsets and verdicts. May be empty.
        mean: Which mean over a third's labels is drawn; the paper takes the geometric one.
        log_loss: Whether losses have a logarithmic axis.
        extra_panels: Further lenses on the same axis.
    """
    panels = [loss_panel(metrics, log_y=log_loss, plateau_loss=_plateau(emergence)), exact_panel(metrics)]
    for feature in distinct(emergence_curves, "feature"):
        curves, verdicts = select(emergence_curves, feature=feature), select(emergence, feature=feature)
        panels.append(feature_panel(curves, verdicts, mean=mean, log_y=log_loss))
    transition, note = _transition(emergence)
    return stack_panels([*panels, *extra_panels], transition, filename="timeline", note=note)


def loss_figure(metrics: pd.DataFrame, *, log_loss: bool = True) -> go.Figure:
    """Training and validation loss and exact match over compute, for a run that is not analysed yet."""
    panels = [loss_panel(metrics, log_y=log_loss, train=True), exact_panel(metrics)]
    return stack_panels(panels, None, filename="loss")


def loss_panel(
    metrics: pd.DataFrame, *, log_y: bool = True, plateau_loss: float = math.nan, train: bool = False
) -> Panel:
    """Validation loss over the answer alone and as the paper counts.

    Args:
        metrics: Table "metrics".
        log_y: Whether y is logarithmic.
        plateau_loss: Level of the plateau, drawn as a dashed line; NaN for none.
        train: Whether the training loss is drawn too.
    """
    series = [
        ("val_loss", "as the paper counts (= scored)", {"color": STEEL, "width": 1.5, "dash": "dash"}),
        ("val_loss_answer", "over the answer alone", {"color": PURPLE, "width": 2.2}),
    ]
    if train:
        series.insert(0, ("train_loss", "training batches (= scored)", {"color": GREY, "width": 0.8}))
    traces = [_metric_trace(metrics, name, label, line, ":.4f") for name, label, line in series]
    values = np.concatenate([np.asarray(trace.y, dtype=float) for trace in traces])
    y_range = _loss_range(values, log_y)
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
        title="Loss" if train else "Validation loss",
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


def feature_panel(
    curves: pd.DataFrame, verdicts: pd.DataFrame, *, mean: Mean = "geometric", log_y: bool = True
) -> Panel:
    """One feature's probe loss by third of the answer, with its controls, onsets and verdicts.

    Args:
        curves: Rows of "emergence_curve" of one feature.
        verdicts: Rows of "emergence" of that feature. May be empty.
        mean: Which mean over a third's labels is drawn.
        log_y: Whether y is logarithmic.
    """
    feature = distinct(curves, "feature")[0]
    thirds = [third for third in THIRD_STYLES if third in distinct(curves, "third")]
    if len(thirds) > 1 and "all" in thirds:
        thirds.remove("all")
    by_third = {third: over_compute(select(curves, third=third)) for third in thirds}
    shown = pd.concat([by_third[third] for third in thirds])
    controls = [f"baseline_{mean}", "shuffled_geometric"]
    y_range = _loss_range(shown[[mean, *controls]].to_numpy(dtype=float).ravel(), log_y)
    traces: list[go.Scatter] = []
    for third in thirds:
        traces += _third_traces(by_third[third], third, mean)
    notes = []
    for third in thirds:
        for row in records(select(verdicts, third=third)):
            notes.append(f'<span style="color:{THIRD_STYLES[third].color}">{third}:</span> {verdict_text(row)}')
            if math.isfinite(row["onset_flops"]):
                traces.append(_onset_trace(by_third[third], row, third, mean, y_range[0]))
    return Panel(
        title=words(feature),
        subtitle=f"probe loss on held-out examples, {mean} mean over each third's labels",
        traces=tuple(traces),
        y_title=_PROBE_LOSS[distinct(curves, "metric")[0]],
        y_range=y_range,
        note="   ·   ".join(notes),
        log_y=log_y,
        legend=Legend("features", _control_entries()),
    )


def verdict_text(row: Mapping[str, Any]) -> str:
    """A verdict and its lead in a few words: "quiet 0.21 decades before"."""
    text = f"<b>{plain(row['verdict'])}</b>" + ("" if row["certain"] else " (uncertain)")
    lead = row["lead_log10"]
    if not math.isfinite(lead):
        return text
    side = "before" if lead >= 0 else "after"
    return f"{text} {abs(lead):.2f} decades {side}"


def _plateau(emergence: pd.DataFrame) -> float:
    """The plateau's loss, NaN where no transition was found."""
    rows = records(emergence)
    return float(rows[0]["plateau_loss"]) if rows and rows[0]["transition_found"] else math.nan


def _transition(emergence: pd.DataFrame) -> tuple[Shade | None, str]:
    """The band, or None and the reason why there is none."""
    rows = records(emergence)
    if not rows:
        return None, "transition not analysed"
    row = rows[0]
    if row["transition_found"]:
        start, end = float(row["transition_start_flops"]), float(row["transition_end_flops"])
        return Shade(start, end, "loss transition"), ""
    reason = plain(row["transition_reason"])
    return None, "no loss transition found" + (f": {reason}" if reason else "")


def _loss_range(values: np.ndarray, log_y: bool) -> tuple[float, float]:
    """Lowest and highest loss to show, with room; on a log axis not below the floor."""
    values = values[np.isfinite(values)]
    if not len(values):
        return (0.1, 1.0)
    high = float(values.max())
    if not log_y:
        return (0.0, 1.06 * max(high, _LOSS_FLOOR))
    low = max(float(values.min()), _LOSS_FLOOR)
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
        hovertemplate=f"%{{y{number}}} · {_STEP}",
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


def _third_traces(rows: pd.DataFrame, third: str, mean: Mean) -> list[go.Scatter]:
    """One third's curve with its two controls: the untrained model (dotted) and shuffled labels (thin)."""
    style = THIRD_STYLES[third]
    flops = column(rows, "flops")
    shared: dict[str, Any] = {"x": flops, "mode": "lines", "hoverinfo": "skip", "showlegend": False}
    untrained = go.Scatter(
        **shared,
        y=column(rows, f"baseline_{mean}"),
        name=f"{third}, untrained model",
        line={"color": style.color, "width": 1.4, "dash": "dot"},
        opacity=0.65,
        legendgroup="untrained",
    )
    shuffled = go.Scatter(
        **shared,
        y=column(rows, "shuffled_geometric"),
        name=f"{third}, shuffled labels",
        line={"color": style.color, "width": 0.7},
        opacity=0.5,
        legendgroup="shuffled",
    )
    numbers = rows[["step", f"baseline_{mean}", "shuffled_geometric", "n_labels"]].to_numpy(dtype=float)
    curve = go.Scatter(
        x=flops,
        y=column(rows, mean),
        customdata=numbers,
        mode="lines+markers",
        name=style.name,
        line={"color": style.color, "width": 2},
        marker={"symbol": style.symbol, "size": 5.5, "color": style.color},
        legendgroup=third,
        hovertemplate="%{y:.4f} (untrained %{customdata[1]:.3f}, shuffled %{customdata[2]:.3f}) · "
        f"n = %{{customdata[3]}} labels · {_STEP}<extra>{third}</extra>",
    )
    return [untrained, shuffled, curve]


def _onset_trace(rows: pd.DataFrame, verdict: Mapping[str, Any], third: str, mean: Mean, floor: float) -> go.Scatter:
    """A large open marker on the curve where the feature was learned, with a stem down to the axis."""
    style = THIRD_STYLES[third]
    onset = float(verdict["onset_flops"])
    losses = np.log(np.maximum(column(rows, mean), _LOSS_FLOOR))
    height = float(np.exp(np.interp(math.log(onset), np.log(column(rows, "flops")), losses)))
    low, high = verdict["lead_low"], verdict["lead_high"]
    interval = f" (range {low:.2f} to {high:.2f})" if math.isfinite(low) and math.isfinite(high) else ""
    steps = f"between steps {verdict['onset_step_before']:,.0f} and {verdict['onset_step_after']:,.0f}"
    return go.Scatter(
        x=[onset, onset],
        y=[height, floor],
        mode="lines+markers",
        name=f"{third}, onset",
        line={"color": style.color, "width": 1.2, "dash": "dot"},
        marker={
            "symbol": [f"{style.symbol}-open", "line-ns"],
            "size": [12, 0],
            "color": style.color,
            "line": {"width": 2},
        },
        legendgroup="onset",
        showlegend=False,
        hovertemplate=f"{verdict_text(verdict)}{interval} · learned at {format_power(onset)} FLOPs, {steps}"
        f"<extra>{third}, onset</extra>",
    )


def _control_entries() -> tuple[go.Scatter, ...]:
    """Legend entries that toggle the controls and the onsets of all panels at once."""
    point: dict[str, Any] = {"x": [None], "y": [None], "hoverinfo": "skip", "showlegend": True}
    return (
        go.Scatter(
            **point,
            mode="lines",
            name="untrained model",
            line={"color": GREY, "dash": "dot"},
            legendgroup="untrained",
        ),
        go.Scatter(
            **point,
            mode="lines",
            name="shuffled labels",
            line={"color": GREY, "width": 0.8},
            legendgroup="shuffled",
        ),
        go.Scatter(
            **point,
            mode="markers",
            name="onset",
            marker={"symbol": "circle-open", "size": 11, "color": GREY, "line": {"width": 2}},
            legendgroup="onset",
        ),
    )
