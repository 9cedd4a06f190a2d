"""Many runs at a glance: loss curves of several tasks, and when their features were learned."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.theme import (
    FONT_SIZE,
    GREY,
    PURPLE,
    STEEL,
    VERMILLION,
    log_flops_axis,
    log_ticks,
    new_figure,
    words,
)
from qfl_interp.tables import column, distinct, groups, records, select

_COLUMNS: Final = 3
_CELL_HEIGHT: Final = 150
_VERDICT_STYLES: Final = {"quiet": (STEEL, "circle"), "loud": (VERMILLION, "square")}
_FADED: Final = 0.55


def losses_figure(metrics: pd.DataFrame, tasks: pd.DataFrame, transitions: pd.DataFrame) -> go.Figure:
    """Validation loss over compute, a small panel a task, one curve a run.

    The dashed line is the task's base rate; the band reaches from the first start to the last end of the runs'
    transitions.

    Args:
        metrics: Columns task, length, seed, flops, val_loss_answer; the rows of several runs.
        tasks: Columns task, length, base_rate; one row a panel, in the order they are drawn.
        transitions: Columns task, length, seed, start_flops, end_flops; runs without a transition have no row.
    """
    rows = math.ceil(len(tasks) / _COLUMNS)
    figure = new_figure("tasks", rows * _CELL_HEIGHT + 70)
    figure.update_layout(margin={"l": 56, "r": 14, "t": 34, "b": 44}, showlegend=False)
    for index, task in enumerate(records(tasks)):
        of_task = {"task": task["task"], "length": task["length"]}
        place = divmod(index, _COLUMNS)
        _loss_cell(figure, index + 1, place, rows, task, select(metrics, **of_task), select(transitions, **of_task))
    return figure


def _loss_cell(
    figure: go.Figure,
    number: int,
    place: tuple[int, int],
    rows: int,
    task: dict[str, Any],
    metrics: pd.DataFrame,
    transitions: pd.DataFrame,
) -> None:
    """One task's panel."""
    suffix = "" if number == 1 else str(number)
    drawn = pd.DataFrame(metrics.loc[(metrics["flops"] > 0) & metrics["val_loss_answer"].notna()])
    flops, losses = column(drawn, "flops"), column(drawn, "val_loss_answer")
    left, width = place[1] / _COLUMNS, 1 / _COLUMNS
    top, height = 1 - place[0] / rows, 1 / rows
    x_axis = log_flops_axis(float(flops.min()), float(flops.max()), title="") | {"anchor": f"y{suffix}"}
    x_axis |= {"domain": [left + 0.045, left + width - 0.015], "dtick": 1, "title": {"text": ""}}
    if place[0] == rows - 1:
        x_axis["title"] = {"text": "training FLOPs"}
    y_axis: dict[str, Any] = {
        "type": "log",
        "anchor": f"x{suffix}",
        "domain": [top - 0.78 * height, top - 0.09 * height],
    }
    low, high = max(float(losses.min()), 1e-6), max(float(losses.max()), float(task["base_rate"]))
    ticks, texts = log_ticks(low, high)
    y_axis |= {"tickvals": ticks, "ticktext": texts, "tickfont": {"size": FONT_SIZE - 2}}
    y_axis["range"] = [math.log10(low) - 0.1, math.log10(high) + 0.1]
    if place[1] == 0:
        y_axis["title"] = {"text": "nats per token"}
    figure.update_layout({f"xaxis{suffix}": x_axis, f"yaxis{suffix}": y_axis})
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    if len(transitions):
        start, end = column(transitions, "start_flops").min(), column(transitions, "end_flops").max()
        figure.add_shape(
            type="rect", x0=start, x1=end, y0=0, y1=1, xref=f"x{suffix}", yref=f"y{suffix} domain",
            fillcolor=PURPLE, opacity=0.14, line_width=0, layer="below",
        )  # fmt: skip
    for seed, part in groups(drawn, "seed"):
        figure.add_scatter(
            x=column(part, "flops"), y=column(part, "val_loss_answer"), mode="lines", **axes, opacity=0.8,
            line={"color": PURPLE, "width": 1.3}, name=f"seed {seed}", hovertemplate="%{y:.4f}",
        )  # fmt: skip
    figure.add_scatter(
        x=[flops.min(), flops.max()], y=[task["base_rate"]] * 2, mode="lines", **axes, name="base rate",
        line={"color": GREY, "width": 1.2, "dash": "dash"}, hoverinfo="skip",
    )  # fmt: skip
    figure.add_annotation(
        text=f"<b>{words(task['task'])}</b> {task['length']}", x=0, y=1, xref=f"x{suffix} domain",
        yref=f"y{suffix} domain", xanchor="left", yanchor="bottom", yshift=2, font={"size": FONT_SIZE},
    )  # fmt: skip


def leads_figure(verdicts: pd.DataFrame) -> go.Figure:
    """When each feature was learned, relative to the loss: one marker a run, its range as a whisker.

    To the right of 0 the feature came first (quiet), to the left the loss did (loud). What is faded is uncertain: its
    range lies on both sides.

    Args:
        verdicts: Columns task, length, feature, seed, verdict, certain, lead_log10, lead_low, lead_high; rows without
            a finite lead (not learned, no transition) are written out instead of drawn.
    """
    names = [f"{words(r['task'])} {r['length']} · {words(r['feature'])}" for r in records(verdicts)]
    named = verdicts.assign(row=names)
    order = distinct(named, "row")
    figure = new_figure("leads", 30 * len(order) + 110)
    figure.update_layout(
        margin={"l": 250, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        xaxis={"title": {"text": "lead over the loss transition (decades of compute)"}},
        yaxis={"range": [len(order) - 0.5, -0.5], "tickvals": list(range(len(order))), "ticktext": order},
    )
    figure.add_vline(x=0, line={"color": GREY, "width": 1, "dash": "dot"})
    drawn = pd.DataFrame(named.loc[np.isfinite(column(named, "lead_log10"))])
    finite = np.concatenate([column(drawn, name) for name in ("lead_log10", "lead_low", "lead_high")])
    finite = finite[np.isfinite(finite)]
    edge = float(np.abs(finite).max()) if finite.size else 1.0
    for kind, (color, symbol) in _VERDICT_STYLES.items():
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=kind, marker={"color": color, "symbol": symbol, "size": 9}
        )
    for at, name in enumerate(order):
        rows = records(select(named, row=name))
        offsets = np.linspace(-0.22, 0.22, len(rows)) if len(rows) > 1 else [0.0]
        for row, offset in zip(rows, offsets, strict=True):
            if math.isfinite(row["lead_log10"]):
                figure.add_trace(_lead_marker(row, at + float(offset), edge))
        silent = [str(row["verdict"]) for row in rows if not math.isfinite(row["lead_log10"])]
        if silent:
            text = ", ".join(f"{silent.count(kind)} × {kind}" for kind in dict.fromkeys(silent))
            figure.add_annotation(
                text=text, x=1, y=at, xref="paper", xanchor="right", font={"size": FONT_SIZE - 1, "color": GREY}
            )
    return figure


def _lead_marker(row: dict[str, Any], y: float, edge: float) -> go.Scatter:
    """One run's lead with its range, which may be open on one side."""
    color, symbol = _VERDICT_STYLES[row["verdict"]]
    lead, low, high = (float(row[name]) for name in ("lead_log10", "lead_low", "lead_high"))
    low, high = max(low, -1.1 * edge), min(high, 1.1 * edge)
    return go.Scatter(
        x=[lead],
        y=[y],
        mode="markers",
        showlegend=False,
        marker={"color": color, "symbol": symbol, "size": 8},
        opacity=1.0 if row["certain"] else _FADED,
        error_x={"array": [high - lead], "arrayminus": [lead - low], "color": color, "thickness": 1.2, "width": 3},
        hovertemplate=f"seed {row['seed']}: {lead:+.2f} decades ({low:+.2f} to {high:+.2f})<extra></extra>",
    )
