"""Probe losses of final models over training budget, as in the paper's figures: one panel a feature, three thirds."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.grid import Cell, LegendRow, PaperGrid
from qfl_interp.plots.lines import legend_entry, whiskers
from qfl_interp.plots.theme import (
    BAND,
    FONT_SIZE,
    GREY,
    PURPLE,
    THIRD_STYLES,
    VERMILLION,
    log_flops_axis,
    log_ticks,
    words,
)
from qfl_interp.tables import column, distinct, records, select

Baseline = Literal["clean", "paper"]

_COLUMNS: Final = 3
_HEAD: Final = 40
_HEIGHTS: Final = (64, 170)
_FLOOR: Final = 1e-12
_THRESHOLD: Final = "success threshold (its end)"
_TASK_LOSS: Final = "validation loss"
_BASE_RATE: Final = "best constant guess"
_BASELINE: Final = "untrained model"
_BAND: Final = "loss transition"
# The quantity where it is not the log loss in nats.
_METRIC: Final = {"log_loss": "", "mse": "MSE · "}
_THRESHOLD_LINE: Final = {"color": VERMILLION, "width": 1.4, "dash": "dash"}
_LEVEL_LINE: Final = {"color": GREY, "width": 1.2, "dash": "dash"}


def across_figure(
    curves: pd.DataFrame, verdicts: pd.DataFrame, losses: pd.DataFrame, *, baseline: Baseline = "clean"
) -> go.Figure:
    """Each feature's probe loss over training budget, by third of the answer, below the models' validation loss.

    Lines are means over seeds, whiskers their range; dotted lines are the untrained model's, in the third's colour.
    The band is the transition of the validation loss, the dashed vertical line its end.

    Args:
        curves: Columns task, length, feature, metric, third, budget_flops, geometric, geometric_low, geometric_high,
            n_seeds, n_labels, baseline_clean, baseline_paper.
        verdicts: Columns task, length, feature, third, verdict, certain, lead_log10, transition_start_flops,
            transition_end_flops; one row a third.
        losses: Columns task, length, budget_flops, loss, loss_low, loss_high, n_seeds, base_rate.
        baseline: Which untrained baseline is drawn: chosen by the rule of the trained probes, or as the paper does.
    """
    panels = records(curves.filter(["task", "length", "feature", "metric"]).drop_duplicates())
    grid = PaperGrid(_HEIGHTS, len(panels), n_columns=min(_COLUMNS, len(panels)), head=_HEAD)
    figure = grid.figure("across", _legends(curves, verdicts))
    for index, panel in enumerate(panels):
        of_task = {"task": panel["task"], "length": panel["length"]}
        of_feature = of_task | {"feature": panel["feature"]}
        loss, curve, verdict = select(losses, **of_task), select(curves, **of_feature), select(verdicts, **of_feature)
        cells = grid.cell(index, 0), grid.cell(index, 1)
        budgets = column(loss, "budget_flops")
        x_axis = _x_axis(budgets)
        title = {"text": "training FLOPs (budget)", "standoff": 6}
        figure.update_layout(
            cells[0].layout(x_axis | {"showticklabels": False, "title": {"text": ""}}, _loss_axis(loss))
        )
        figure.update_layout(cells[1].layout(x_axis | {"title": title}, _probe_axis(curve, baseline)))
        _loss_panel(figure, cells[0], loss)
        _feature_panel(figure, cells[1], curve, baseline)
        for cell in cells:
            _transition(figure, cell, verdict)
        if grid.is_first(index):
            figure.add_annotation(grid.side_title(index, 0, "task loss"))
            figure.add_annotation(grid.side_title(index, 1, "probe test loss"))
        name = f"<b>{words(panel['task'])} {panel['length']}</b>: {words(panel['feature'])}"
        small = f'<br><span style="font-size:{FONT_SIZE - 2}px">{_METRIC[panel["metric"]]}{_leads(verdict)}</span>'
        figure.add_annotation(grid.head(index, name + small))
    return figure


def _thirds(table: pd.DataFrame) -> list[str]:
    """The thirds to draw; all labels together only where there are no thirds."""
    found = [third for third in THIRD_STYLES if third in distinct(table, "third")]
    return [third for third in found if third != "all"] or found


def _x_axis(budgets: np.ndarray) -> dict[str, Any]:
    """The shared budget axis."""
    room = 10**0.12
    low, high = float(budgets.min() / room), float(budgets.max() * room)
    return log_flops_axis(low, high) | {"dtick": 1 if math.log10(high / low) < 5 else 2}


def _log_axis(values: np.ndarray) -> dict[str, Any]:
    """A log axis around the finite values."""
    values = np.maximum(values[np.isfinite(values)], _FLOOR)
    low, high = float(values.min()), float(values.max())
    room = max((high / low) ** 0.07, 1.05)
    low, high = low / room, high * room
    axis: dict[str, Any] = {"type": "log", "range": [math.log10(low), math.log10(high)]}
    if math.log10(high / low) > 3:
        # plotly.js draws 10ⁿ a quarter larger than asked.
        power = {"exponentformat": "power", "tickfont": {"size": FONT_SIZE - 4}}
        return axis | power | {"dtick": math.ceil(math.log10(high / low) / 4)}
    ticks, texts = log_ticks(low, high)
    return axis | {"tickvals": ticks, "ticktext": texts, "tickfont": {"size": FONT_SIZE - 2}}


def _loss_axis(losses: pd.DataFrame) -> dict[str, Any]:
    """The y axis of the models' validation loss."""
    return _log_axis(np.concatenate([column(losses, name) for name in ("loss_low", "loss_high", "base_rate")]))


def _probe_axis(curve: pd.DataFrame, baseline: Baseline) -> dict[str, Any]:
    """The y axis of a feature's probe loss."""
    shown = curve[np.isin(curve["third"], _thirds(curve))]
    names = ("geometric_low", "geometric_high", f"baseline_{baseline}")
    return _log_axis(np.concatenate([column(pd.DataFrame(shown), name) for name in names]))


def _loss_panel(figure: go.Figure, cell: Cell, losses: pd.DataFrame) -> None:
    """Validation loss of the probed models and chance."""
    values, low, high = (column(losses, name) for name in ("loss", "loss_low", "loss_high"))
    figure.add_scatter(
        x=column(losses, "budget_flops"), y=np.maximum(values, _FLOOR), mode="lines+markers", name=_TASK_LOSS,
        legendgroup=_TASK_LOSS, showlegend=False, line={"color": PURPLE, "width": 1.9},
        marker={"color": PURPLE, "size": 4.5},
        error_y=whiskers(values, low, high, thickness=1.2, width=2) | {"color": PURPLE},
        customdata=np.stack([low, high, column(losses, "n_seeds")], axis=1),
        hovertemplate="%{x:.2e} FLOPs: loss %{y:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g}, "
        "%{customdata[2]:g} seeds)<extra></extra>", **cell.axes,
    )  # fmt: skip
    base_rate = float(column(losses, "base_rate")[0])
    _level(figure, cell, base_rate, _BASE_RATE, _LEVEL_LINE)


def _level(
    figure: go.Figure, cell: Cell, value: float, name: str, line: dict[str, Any], *, group: str = "", opacity: float = 1
) -> None:
    """A horizontal line over the whole panel."""
    axis: Any = figure.layout[f"xaxis{cell.suffix}"]
    low, high = (10**end for end in axis["range"])
    figure.add_scatter(
        x=[low, high], y=[value, value], mode="lines", name=name, legendgroup=group or name, showlegend=False,
        line=line, opacity=opacity, hovertemplate=f"{name}: %{{y:.4g}}<extra></extra>", **cell.axes,
    )  # fmt: skip


def _feature_panel(figure: go.Figure, cell: Cell, curve: pd.DataFrame, baseline: Baseline) -> None:
    """The thirds' curves over budget, each with its untrained baseline."""
    for third in _thirds(curve):
        rows, style = select(curve, third=third), THIRD_STYLES[third]
        level = float(column(rows, f"baseline_{baseline}")[0])
        dotted = {"color": style.color, "width": 1.5, "dash": "dot"}
        _level(figure, cell, level, f"{third}, {_BASELINE}", dotted, group=_BASELINE, opacity=0.6)
        values, low, high = (column(rows, f"geometric{end}") for end in ("", "_low", "_high"))
        figure.add_scatter(
            x=column(rows, "budget_flops"), y=np.maximum(values, _FLOOR), mode="lines+markers", name=style.name,
            legendgroup=third, showlegend=False, line={"color": style.color, "width": 2},
            marker={"color": style.color, "symbol": style.symbol, "size": 6.5},
            error_y=whiskers(values, low, high, thickness=1, width=2) | {"color": style.color},
            customdata=np.stack([low, high, column(rows, "n_seeds"), column(rows, "n_labels"), values / level], axis=1),
            hovertemplate=f"{third}, %{{x:.2e}} FLOPs: %{{y:.4g}} (%{{customdata[0]:.4g}} to %{{customdata[1]:.4g}}, "
            "%{customdata[2]:g} seeds, %{customdata[3]:g} labels), %{customdata[4]:.3g} × untrained<extra></extra>",
            **cell.axes,
        )  # fmt: skip


def _transition(figure: go.Figure, cell: Cell, verdicts: pd.DataFrame) -> None:
    """The transition shaded, its end as a dashed vertical line."""
    row = records(verdicts)[0]
    start, end = row["transition_start_flops"], row["transition_end_flops"]
    if not math.isfinite(start):
        return
    place = {"xref": cell.x, "yref": f"{cell.y} domain", "y0": 0, "y1": 1}
    figure.add_shape(
        type="rect", name="transition", x0=start, x1=end, fillcolor=BAND, line_width=0, layer="below", **place
    )
    figure.add_shape(type="line", name="threshold", x0=end, x1=end, line=_THRESHOLD_LINE, **place)


def _leads(verdicts: pd.DataFrame) -> str:
    """The thirds' verdicts and leads in their colours: "quiet +0.83 · quiet +0.52 · loud −0.10"."""
    parts = []
    for third in _thirds(verdicts):
        row = records(select(verdicts, third=third))[0]
        lead = f" {row['lead_log10']:+.2f}".replace("-", "−") if math.isfinite(row["lead_log10"]) else ""
        doubt = "" if row["certain"] else "?"
        parts.append(f'<span style="color:{THIRD_STYLES[third].color}">{row["verdict"]}{doubt}{lead}</span>')
    return " · ".join(parts)


def _legends(curves: pd.DataFrame, verdicts: pd.DataFrame) -> list[LegendRow]:
    """The thirds, then all else."""
    lines = {"mode": "lines+markers"}
    thirds = [
        legend_entry(
            style.name, group=third, **lines, line={"color": style.color, "width": 2},
            marker={"color": style.color, "symbol": style.symbol, "size": 6.5},
        )
        for third, style in THIRD_STYLES.items() if third in _thirds(curves)
    ]  # fmt: skip
    grey = {"color": GREY, "width": 1.5, "dash": "dot"}
    thirds.append(legend_entry(_BASELINE, line=grey))
    purple = {"color": PURPLE, "width": 1.9}
    others = [
        legend_entry(_TASK_LOSS, **lines, line=purple, marker={"color": PURPLE, "size": 5}),
        legend_entry(_BASE_RATE, line=_LEVEL_LINE),
    ]
    if np.isfinite(column(verdicts, "transition_start_flops")).any():
        band = {"color": BAND, "size": 11, "symbol": "square"}
        others.append(legend_entry(_BAND, mode="markers", marker=band))
        others.append(legend_entry(_THRESHOLD, line=_THRESHOLD_LINE))
    return [LegendRow("", thirds), LegendRow("", others)]
