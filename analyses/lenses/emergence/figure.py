"""When each feature becomes decodable: its probes' loss over compute, with the verdicts, below the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.analyses.lens import NO_SHADING, Shading
from qfl_interp.analyses.lenses.probe.views import SCORES
from qfl_interp.analyses.pages.timeline_figure import loss_range, timeline_figure
from qfl_interp.plots.axes import axis_of_columns, training_axis
from qfl_interp.plots.lines import LOSS_FLOOR, STEP, curve, legend_entry, over_training, places, stem
from qfl_interp.plots.panels import Legend, Panel, Shade
from qfl_interp.plots.theme import GREY, THIRD_STYLES, plain, words
from qfl_interp.tables import column, distinct, records, select

Mean = Literal["geometric", "arithmetic"]

# Legend entries that toggle the controls and the onsets of all panels at once.
_CONTROLS: Final = (
    legend_entry("untrained model", group="untrained", line={"color": GREY, "dash": "dot"}),
    legend_entry("shuffled labels", group="shuffled", line={"color": GREY, "width": 0.8}),
    legend_entry(
        "onset", mode="markers", marker={"symbol": "circle-open", "size": 11, "color": GREY, "line": {"width": 2}}
    ),
)


def emergence_figure(
    metrics: pd.DataFrame,
    emergence_curves: pd.DataFrame,
    emergence: pd.DataFrame,
    *,
    mean: Mean = "geometric",
    log_loss: bool = True,
    unit: str = "nats",
) -> go.Figure:
    """When the loss falls, and when each feature becomes decodable, on one logarithmic axis of training.

    Panels from the top: validation loss, exact match, one for each feature of `emergence` (where it is empty, of the
    curves). The transition is shaded across all of them.

    Args:
        metrics: Table "metrics" of the run, or "validate" of a suite.
        emergence_curves: Table "emergence_curve".
        emergence: Table "emergence": transition, onsets and verdicts. May be empty.
        mean: Which mean over a third's labels is drawn; the paper takes the geometric one.
        log_loss: Whether losses have a logarithmic axis.
        unit: What the loss is counted in.
    """
    features = distinct(emergence, "feature") or distinct(emergence_curves, "feature")
    shown = pd.DataFrame(emergence_curves.loc[emergence_curves["feature"].isin(features)])
    panels = feature_panels(shown, emergence, mean=mean, log_y=log_loss)
    return timeline_figure(metrics, panels, shading(emergence), log_loss=log_loss, unit=unit)


def feature_panels(
    curves: pd.DataFrame, verdicts: pd.DataFrame, *, mean: Mean = "geometric", log_y: bool = True
) -> list[Panel]:
    """A panel for each feature of the curves; arguments as of `feature_panel`, of all features."""
    return [
        feature_panel(select(curves, feature=feature), select(verdicts, feature=feature), mean=mean, log_y=log_y)
        for feature in distinct(curves, "feature")
    ]


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
    by_third = {third: over_training(select(curves, third=third)) for third in thirds}
    drawn = [mean, f"baseline_{mean}", "shuffled_geometric"]
    y_range = loss_range(*(part[drawn] for part in by_third.values()), log_y=log_y)
    traces = [trace for third, part in by_third.items() for trace in _third_traces(part, third, mean)]
    notes = []
    for third in thirds:
        for row in records(select(verdicts, third=third)):
            notes.append(f'<span style="color:{THIRD_STYLES[third].color}">{third}:</span> {verdict_text(row)}')
            if math.isfinite(row[f"onset_{axis_of_columns(verdicts, 'onset').column}"]):
                traces.append(_onset_trace(by_third[third], row, third, mean, y_range[0]))
    return Panel(
        title=words(feature),
        subtitle=f"probe loss on held-out examples, {mean} mean over each third's labels",
        traces=tuple(traces),
        y_title=SCORES[distinct(curves, "metric")[0]].loss_title,
        y_range=y_range,
        note="   ·   ".join(notes),
        log_y=log_y,
        legend=Legend("features", _CONTROLS),
    )


def verdict_text(row: Mapping[str, Any]) -> str:
    """A verdict and its lead in a few words: "quiet 0.21 decades before"."""
    text = f"<b>{plain(row['verdict'])}</b>" + ("" if row["certain"] else " (uncertain)")
    lead = row["lead_log10"]
    if not math.isfinite(lead):
        return text
    side = "before" if lead >= 0 else "after"
    return f"{text} {abs(lead):.2f} decades {side}"


def shading(emergence: pd.DataFrame) -> Shading:
    """The band of the loss transition and its plateau, or the reason why there is none."""
    if emergence.empty:
        return NO_SHADING
    row = records(emergence)[0]
    if row["transition_found"]:
        axis = axis_of_columns(emergence, "transition_start").column
        start, end = float(row[f"transition_start_{axis}"]), float(row[f"transition_end_{axis}"])
        return Shading(Shade(start, end, "loss transition"), "", float(row["plateau_loss"]))
    reason = plain(row["transition_reason"])
    return Shading(None, "no loss transition found" + (f": {reason}" if reason else ""))


def _third_traces(rows: pd.DataFrame, third: str, mean: Mean) -> list[go.Scatter]:
    """One third's curve with its two controls: the untrained model (dotted) and shuffled labels (thin)."""
    style, untrained = THIRD_STYLES[third], f"baseline_{mean}"
    hover = "%{y:.4f} (untrained %{customdata[1]:.3f}, shuffled %{customdata[2]:.3f}) · n = %{customdata[3]} labels · "
    look: dict[str, Any] = {"size": 5.5, "symbol": style.symbol, "legendgroup": third}
    look |= {"hover": f"{hover}{STEP}<extra>{third}</extra>"}
    look |= {"beside": ("step", untrained, "shuffled_geometric", "n_labels")}
    dotted: dict[str, Any] = {"width": 1.4, "dash": "dot", "opacity": 0.65, "legendgroup": "untrained"}
    thin: dict[str, Any] = {"width": 0.7, "opacity": 0.5, "legendgroup": "shuffled"}
    return [
        curve(rows, untrained, f"{third}, untrained model", style.color, showlegend=False, **dotted),
        curve(rows, "shuffled_geometric", f"{third}, shuffled labels", style.color, showlegend=False, **thin),
        curve(rows, mean, style.name, style.color, **look),
    ]


def _onset_trace(rows: pd.DataFrame, verdict: Mapping[str, Any], third: str, mean: Mean, floor: float) -> go.Scatter:
    """A large open marker on the curve where the feature was learned, with a stem down to the axis."""
    style = THIRD_STYLES[third]
    axis = training_axis(rows)
    onset = float(verdict[f"onset_{axis.column}"])
    losses = np.log(np.maximum(column(rows, mean), LOSS_FLOOR))
    height = float(np.exp(np.interp(math.log(onset), np.log(places(rows)), losses)))
    low, high = verdict["lead_low"], verdict["lead_high"]
    interval = f" (range {low:.2f} to {high:.2f})" if math.isfinite(low) and math.isfinite(high) else ""
    steps = f"between steps {verdict['onset_step_before']:,.0f} and {verdict['onset_step_after']:,.0f}"
    hover = f"{verdict_text(verdict)}{interval} · learned at {axis.text(onset)}, {steps}"
    look = (f"{third}, onset", style.color, f"{style.symbol}-open")
    return stem(onset, height, floor, *look, size=12, group="onset", hover=hover)
