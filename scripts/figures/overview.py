"""Many runs at a glance: loss curves of several tasks, and when their features were learned."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import log_axis, log_training_axis, names_axis
from qfl_interp.plots.grid import Cell
from qfl_interp.plots.lines import curve, finite, legend_entry, level
from qfl_interp.plots.theme import FONT_SIZE, GREY, PURPLE, STEEL, VERMILLION, new_figure, words
from qfl_interp.tables import column, distinct, groups, records, select

_LOSS: Final = "val_loss_answer"
_COLUMNS: Final = 3
_CELL_HEIGHT: Final = 150
_VERDICT_STYLES: Final = {"quiet": (STEEL, "circle"), "loud": (VERMILLION, "square")}
_FADED: Final = 0.55


def losses_figure(
    metrics: pd.DataFrame,
    tasks: pd.DataFrame,
    transitions: pd.DataFrame,
    onsets: pd.DataFrame | None = None,
    finals: pd.DataFrame | None = None,
) -> go.Figure:
    """Validation loss over compute, a small panel a task, one curve a run.

    The dashed line is the task's base rate; the band reaches from the first start to the last end of the runs'
    transitions. A dotted line stands where a feature was learned: blue for quiet, red for loud, grey without a verdict.

    Args:
        metrics: Columns task, length, seed, flops, val_loss_answer; the rows of several runs.
        tasks: Columns task, length, base_rate; one row a panel, in the order they are drawn.
        transitions: Columns task, length, seed, start_flops, end_flops; runs without a transition have no row.
        onsets: Columns task, length, feature, verdict, onset_flops; features that were not learned (NaN) have no line.
        finals: Columns task, length, flops, val_loss_answer; the ends of runs to other budgets, a point each.
    """
    rows = math.ceil(len(tasks) / _COLUMNS)
    figure = new_figure("tasks", rows * _CELL_HEIGHT - 8, {"l": 56, "r": 14, "t": 34, "b": 44})
    figure.update_layout(showlegend=False)
    for index, task in enumerate(records(tasks)):
        of_task = {"task": task["task"], "length": task["length"]}
        row, place = divmod(index, _COLUMNS)
        left, top = place / _COLUMNS, 1 - row / rows
        x_domain = (left + 0.045, left + 1 / _COLUMNS - 0.015)
        cell = Cell(index + 1, x_domain, (top - 0.78 / rows, top - 0.09 / rows))
        found, shown = select(transitions, **of_task), select(metrics, **of_task)
        drawn = pd.DataFrame(shown.loc[(shown["flops"] > 0) & shown[_LOSS].notna()])
        ends = drawn.iloc[:0] if finals is None else select(finals, **of_task)
        flops, losses = (np.concatenate([column(drawn, name), column(ends, name)]) for name in ("flops", _LOSS))
        base_rate = float(task["base_rate"])
        title = "training FLOPs" if row == rows - 1 else ""
        x_axis = log_training_axis(float(flops.min()), float(flops.max()), title=title) | {"dtick": 1}
        low, high = max(float(losses.min()), 1e-6), max(float(losses.max()), base_rate)
        y_axis = log_axis(low, high) | {"tickfont": {"size": FONT_SIZE - 2}}
        y_axis |= {"range": [math.log10(low) - 0.1, math.log10(high) + 0.1]}
        y_axis |= {"title": {"text": "nats per token"}} if place == 0 else {}
        figure.update_layout(cell.layout(x_axis, y_axis))
        if len(found):
            start, end = column(found, "start_flops").min(), column(found, "end_flops").max()
            figure.add_shape(cell.stretch(start, end, fillcolor=PURPLE, opacity=0.14, line={"width": 0}))
        look: dict[str, Any] = {"width": 1.3, "opacity": 0.8, "hover": None, "hovertemplate": "%{y:.4f}", **cell.axes}
        for seed, part in groups(drawn, "seed"):
            figure.add_trace(curve(part, _LOSS, f"seed {seed}", PURPLE, **look))
        if len(ends):
            points: dict[str, Any] = look | {"width": 0, "size": 5, "symbol": "circle-open", "x": "flops"}
            figure.add_trace(curve(ends, _LOSS, "final losses", PURPLE, **points))
        figure.add_trace(level(flops, base_rate, "base rate", width=1.2, dash="dash", **cell.axes))
        figure.add_annotation(cell.title(f"<b>{words(task['task'])}</b> {task['length']}"))
        if onsets is not None:
            _mark_onsets(figure, cell, select(onsets, **of_task))
    return figure


def _mark_onsets(figure: go.Figure, cell: Cell, onsets: pd.DataFrame) -> None:
    """A dotted line with its name where each feature was learned."""
    learned = [row for row in records(onsets) if math.isfinite(row["onset_flops"]) and row["onset_flops"] > 0]
    learned.sort(key=lambda row: row["onset_flops"])
    for place, row in enumerate(learned):
        # Before its line where another follows, whose name would stand on this one: low and high by turns.
        last = place == len(learned) - 1
        side = "left" if last else "right"
        end, anchor = (0, "bottom") if last or place % 2 == 0 else (1, "top")
        color = _VERDICT_STYLES.get(row["verdict"], (GREY, ""))[0]
        at = row["onset_flops"]
        figure.add_shape(cell.stretch(at, at, line={"color": color, "dash": "dot", "width": 1.4}))
        figure.add_annotation(
            text=words(row["feature"]), x=math.log10(at), y=end, xref=cell.x, yref=f"{cell.y} domain", xanchor=side,
            yanchor=anchor, textangle=-90, showarrow=False, font={"size": FONT_SIZE - 3, "color": color},
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
    figure = new_figure("leads", 30 * len(order) + 20, {"l": 250, "r": 20, "t": 40, "b": 50})
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        xaxis={"title": {"text": "lead over the loss transition (decades of compute)"}},
        yaxis=names_axis(order) | {"range": [len(order) - 0.5, -0.5], "showgrid": True},
    )
    figure.add_vline(x=0, line={"color": GREY, "width": 1, "dash": "dot"})
    drawn = pd.DataFrame(named.loc[np.isfinite(column(named, "lead_log10"))])
    edge = float(abs(finite(drawn[["lead_log10", "lead_low", "lead_high"]])).max(initial=0.0)) or 1.0
    for kind, (color, symbol) in _VERDICT_STYLES.items():
        marker = {"color": color, "symbol": symbol, "size": 9}
        figure.add_trace(legend_entry(kind, mode="markers", marker=marker))
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
