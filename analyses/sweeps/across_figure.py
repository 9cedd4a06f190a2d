"""Probe losses of final models over training budget, as in the paper's figures: one panel a feature, three thirds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import budget_axis, log_axis
from qfl_interp.plots.grid import BAND_MARK, Cell, LegendRow, PaperGrid
from qfl_interp.plots.lines import LOSS_FLOOR, curve, legend_entry, level, log_range
from qfl_interp.plots.theme import FONT_SIZE, GREY, PURPLE, THIRD_STYLES, VERMILLION, words
from qfl_interp.tables import column, distinct, records, select

Baseline = Literal["clean", "paper"]

_COLUMNS: Final = 3
_HEAD: Final = 40
_HEIGHTS: Final = (64, 170)
_THRESHOLD: Final = "success threshold (its end)"
_TASK_LOSS: Final = "validation loss"
_BASE_RATE: Final = "best constant guess"
_BASELINE: Final = "untrained model"
_BAND: Final = "loss transition"
# The quantity where it is not the log loss in nats.
_METRIC: Final = {"log_loss": "", "mse": "MSE · "}
# Of the x axis on both sides: a share of a decade.
_ROOM: Final = 10**0.12
_HOVER: Final = "%{x:.2e} FLOPs: {what}%{y:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g}, %{customdata[2]:g} seeds"
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
            transition_end_flops; one row a third. A feature without a row is not drawn.
        losses: Columns task, length, budget_flops, loss, loss_low, loss_high, n_seeds, base_rate.
        baseline: Which untrained baseline is drawn: chosen by the rule of the trained probes, or as the paper does.
    """
    curves = pd.DataFrame(curves.loc[curves["feature"].isin(verdicts["feature"])])
    panels = records(curves.filter(["task", "length", "feature", "metric"]).drop_duplicates())
    grid = PaperGrid(_HEIGHTS, len(panels), _COLUMNS, _HEAD)
    figure = grid.figure("across", _legends(curves, verdicts))
    for index, panel in enumerate(panels):
        of_task = {"task": panel["task"], "length": panel["length"]}
        of_feature = of_task | {"feature": panel["feature"]}
        loss, probes, verdict = select(losses, **of_task), select(curves, **of_feature), select(verdicts, **of_feature)
        cells = grid.cell(index, 0), grid.cell(index, 1)
        budgets = column(loss, "budget_flops")
        x_axis = budget_axis(float(budgets.min() / _ROOM), float(budgets.max() * _ROOM))
        ends = [10**end for end in x_axis["range"]]
        title = {"text": "training FLOPs (budget)", "standoff": 6}
        bare = {"showticklabels": False, "title": {"text": ""}}
        levels = loss[["loss_low", "loss_high", "base_rate"]]
        names = ["geometric_low", "geometric_high", f"baseline_{baseline}"]
        losses_shown = probes.loc[np.isin(probes["third"], _thirds(probes)), names]
        figure.update_layout(cells[0].layout(x_axis | bare, _log_axis(levels)))
        figure.update_layout(cells[1].layout(x_axis | {"title": title}, _log_axis(losses_shown)))
        figure.add_traces([*_loss_panel(cells[0], loss, ends), *_feature_panel(cells[1], probes, baseline, ends)])
        start, end = (column(verdict, f"transition_{which}_flops")[0] for which in ("start", "end"))
        for cell in cells if math.isfinite(start) else ():
            figure.add_shape(cell.band(start, end))
            figure.add_shape(cell.stretch(end, end, name="threshold", line=_THRESHOLD_LINE))
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


def _log_axis(shown: Any) -> dict[str, Any]:
    return {"tickfont": {"size": FONT_SIZE - 2}, **log_axis(*log_range(shown, room=0.07, least=1.05), few_beyond=3)}


def _loss_panel(cell: Cell, losses: pd.DataFrame, ends: Sequence[float]) -> list[go.Scatter]:
    """Validation loss of the probed models and chance."""
    hover = _HOVER.replace("{what}", "loss ") + ")<extra></extra>"
    look: dict[str, Any] = {"x": "budget_flops", "floor": LOSS_FLOOR, "width": 1.9, "size": 4.5, "interval": (1.2, 2)}
    look |= {"beside": ("loss_low", "loss_high", "n_seeds"), "showlegend": False, **cell.axes}
    base_rate = float(column(losses, "base_rate")[0])
    return [
        curve(losses, "loss", _TASK_LOSS, PURPLE, hover=hover, **look),
        _level(cell, ends, base_rate, _BASE_RATE, _LEVEL_LINE),
    ]


def _level(
    cell: Cell, ends: Sequence[float], value: float, name: str, line: dict[str, Any], group: str = ""
) -> go.Scatter:
    hover = f"{name}: %{{y:.4g}}"
    return level(ends, value, name, hover=hover, legendgroup=group or name, **line, **cell.axes)


def _feature_panel(cell: Cell, curves: pd.DataFrame, baseline: Baseline, ends: Sequence[float]) -> list[go.Scatter]:
    """The thirds' curves over budget, each with its untrained baseline."""
    traces = []
    for third in _thirds(curves):
        rows, style = select(curves, third=third), THIRD_STYLES[third]
        untrained = float(column(rows, f"baseline_{baseline}")[0])
        dotted = {"color": style.color, "width": 1.5, "dash": "dot", "opacity": 0.6}
        traces.append(_level(cell, ends, untrained, f"{third}, {_BASELINE}", dotted, _BASELINE))
        hover = f"{third}, " + _HOVER.replace("{what}", "")
        hover += ", %{customdata[3]:g} labels), %{customdata[4]:.3g} × untrained<extra></extra>"
        look: dict[str, Any] = {"x": "budget_flops", "floor": LOSS_FLOOR, "symbol": style.symbol, "size": 6.5}
        look |= {"beside": ("geometric_low", "geometric_high", "n_seeds", "n_labels", "ratio"), "interval": (1, 2)}
        look |= {"legendgroup": third, "showlegend": False, **cell.axes}
        shown = rows.assign(ratio=column(rows, "geometric") / untrained)
        traces.append(curve(shown, "geometric", style.name, style.color, hover=hover, **look))
    return traces


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
    dotted = {"color": GREY, "width": 1.5, "dash": "dot"}
    thirds = [(THIRD_STYLES[third], third) for third in _thirds(curves)]
    first = []
    for style, third in thirds:
        marker = {"symbol": style.symbol, "size": 6.5, "color": style.color}
        line = {"color": style.color, "width": 2}
        first.append(legend_entry(style.name, group=third, mode="lines+markers", line=line, marker=marker))
    first.append(legend_entry(_BASELINE, line=dotted))
    loss: dict[str, Any] = {"line": {"color": PURPLE, "width": 1.9}, "marker": {"size": 5, "color": PURPLE}}
    others = [legend_entry(_TASK_LOSS, mode="lines+markers", **loss), legend_entry(_BASE_RATE, line=_LEVEL_LINE)]
    if np.isfinite(column(verdicts, "transition_start_flops")).any():
        others.append(legend_entry(_BAND, mode="markers", marker=BAND_MARK))
        others.append(legend_entry(_THRESHOLD, line=_THRESHOLD_LINE))
    return [LegendRow("", first), LegendRow("", others)]
