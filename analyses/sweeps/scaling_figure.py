"""Scaling curves: final loss, exact match and pass probability over budget, one column of panels a task and length."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

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
    VERMILLION,
    log_flops_axis,
    log_ticks,
    ordered_colors,
    plain,
    words,
)
from qfl_interp.tables import column, distinct, groups, records, select

# What is drawn a little beside its budget, as a share of the distance to the next one.
_SPREAD: Final = 0.42
_DOT: Final = 4.5
_FAINT: Final = 0.38
_LOSS_FLOOR: Final = 1e-12
_PASS_FLOOR: Final = 1e-16
_COLUMNS: Final = 4
_HEAD: Final = 70
_BEST: Final = "best configuration (mean, range of seeds)"
_BEST_LINE: Final = {"color": PURPLE, "width": 1.9}
_FLOOR: Final = "1 / validation examples"
_FLOOR_LINE: Final = {"color": GREY, "width": 1, "dash": "dashdot"}


class _Row(NamedTuple):
    """One row of panels: which quantity, how it is drawn."""

    name: str
    title: str
    height: int
    log: bool


_ROWS: Final = (
    _Row("loss", "validation loss (nats)", 150, True),
    _Row("exact", "exact match", 82, False),
    _Row("pass", "pass probability", 96, True),
)
LINE_STYLES: Final = {
    "power law": {"color": VERMILLION, "width": 1.6, "dash": "dot"},
    "broken power law": {"color": VERMILLION, "width": 1, "dash": "solid"},
}
_LEVEL_STYLES: Final = {
    "base_rate": ("best constant guess", {"color": GREY, "width": 1.3, "dash": "dash"}),
    "paper": ("paper's random line", {"color": GREY, "width": 1.3, "dash": "dot"}),
}


def scaling_figure(runs: pd.DataFrame, best: pd.DataFrame, lines: pd.DataFrame, notes: pd.DataFrame) -> go.Figure:
    """Validation loss (log), exact match and pass probability (log) over nominal budget, a column a task and length.

    Every finished run is a faint dot, coloured by shape and drawn a little beside its budget so that shapes do not
    hide each other. The dark line joins the best configuration of each budget, its bars reach from the lowest to the
    highest seed. Dashed and dotted levels are chance, the band is the transition, the red lines the fitted laws.

    Args:
        runs: Columns task, length, budget_flops, d_model, n_layers, lr, batch_size, seed, loss, exact, pass.
        best: Columns task, length, budget_flops, d_model, n_layers, lr, batch_size, n_seeds, and for each of loss,
            exact and pass the mean and its range (`_low`, `_high`).
        lines: Columns task, length, kind, budget_flops, loss: points of fitted laws. The kind is one of `LINE_STYLES`;
            "power law" is that of the budgets up to the transition where there is one.
        notes: Columns task, length, base_rate, paper (NaN: no such line), floor (1 / validation examples),
            transition_start, transition_end (NaN: none), note (under the title; plain text, lines end in a newline).
            One column of panels a row, in this order.
    """
    grid = PaperGrid([row.height for row in _ROWS], len(notes), n_columns=min(_COLUMNS, len(notes)), head=_HEAD)
    shapes = _shapes(runs)
    figure = grid.figure("scaling", _legends(shapes, distinct(lines, "kind"), notes))
    for index, note in enumerate(records(notes)):
        of_task = {"task": note["task"], "length": note["length"]}
        of_runs, of_best, of_lines = (select(table, **of_task) for table in (runs, best, lines))
        _column(figure, grid, index, note, of_runs, of_best, of_lines, shapes)
    return figure


def _shapes(runs: pd.DataFrame) -> dict[tuple[int, int], str]:
    """The colour of each (d_model, n_layers), from small to large."""
    found = {
        (int(r["d_model"]), int(r["n_layers"])) for r in records(runs.filter(["d_model", "n_layers"]).drop_duplicates())
    }
    ordered = sorted(found, key=lambda shape: (shape[0] ** 2 * shape[1], shape))
    return dict(zip(ordered, ordered_colors(len(ordered)), strict=True))


def _column(
    figure: go.Figure,
    grid: PaperGrid,
    index: int,
    note: dict[str, Any],
    runs: pd.DataFrame,
    best: pd.DataFrame,
    lines: pd.DataFrame,
    shapes: dict[tuple[int, int], str],
) -> None:
    """The panels of one task and length."""
    budgets = np.unique(column(runs, "budget_flops"))
    room = 10 ** (_gap(budgets) / 2)
    low, high = float(budgets[0] / room), float(budgets[-1] * room)
    for number, row in enumerate(_ROWS):
        cell = grid.cell(index, number)
        bottom = number == len(_ROWS) - 1
        x_axis = log_flops_axis(low, high, title="training FLOPs (budget)" if bottom else "")
        x_axis |= {"dtick": 1 if math.log10(high / low) < 5 else 2, "showticklabels": bottom}
        figure.update_layout(cell.layout(x_axis, _y_axis(row, runs, best, note)))
        if grid.is_first(index):
            figure.add_annotation(grid.side_title(index, number, row.title))
        _band(figure, cell, note)
        for shape, color in shapes.items():
            _dots(figure, cell, row, select(runs, d_model=shape[0], n_layers=shape[1]), shape, color, shapes, budgets)
        _levels(figure, cell, row, note, low, high)
        _best_line(figure, cell, row, best)
        if row.name == "loss":
            for kind, points in groups(lines, "kind"):
                figure.add_scatter(
                    x=column(points, "budget_flops"), y=column(points, "loss"), mode="lines", name=kind,
                    line=LINE_STYLES[kind], legendgroup=kind, showlegend=False, hoverinfo="skip", **cell.axes,
                )  # fmt: skip
    title = f"<b>{words(note['task'])}</b> {note['length']}"
    below = "".join(f"<br>{plain(line)}" for line in str(note["note"]).splitlines())
    figure.add_annotation(grid.head(index, f'{title}<span style="font-size:{FONT_SIZE - 2}px">{below}</span>'))


def _gap(budgets: np.ndarray) -> float:
    """Decades between neighbouring budgets; half a decade where there is only one."""
    return float(np.diff(np.log10(budgets)).min()) if budgets.size > 1 else 0.5


def _y_axis(row: _Row, runs: pd.DataFrame, best: pd.DataFrame, note: dict[str, Any]) -> dict[str, Any]:
    """Range and ticks of a panel."""
    axis: dict[str, Any] = {"tickfont": {"size": FONT_SIZE - 2}}
    if not row.log:
        return axis | {"range": [-0.06, 1.06], "tickvals": [0, 0.5, 1], "ticktext": ["0", "0.5", "1"]}
    floor = _LOSS_FLOOR if row.name == "loss" else _PASS_FLOOR
    values = np.concatenate([column(runs, row.name), column(best, f"{row.name}_low")])
    if row.name == "loss":
        # A run that went astray must not flatten the panel.
        ceiling = 2.2 * np.nanmax([note["base_rate"], note["paper"], column(best, "loss_high").max()])
        values = np.append(np.minimum(values, ceiling), [note["base_rate"], note["paper"]])
    else:
        values = np.append(values, note["floor"])
    values = np.maximum(values[np.isfinite(values)], floor)
    low, high = float(values.min()), float(values.max()) if row.name == "loss" else 1.0
    room = max((high / low) ** 0.06, 1.04)
    axis |= {"type": "log", "range": [math.log10(low / room), math.log10(high * room)]}
    if math.log10(high / low) > 3:
        # plotly.js draws 10ⁿ a quarter larger than asked.
        power = {"exponentformat": "power", "tickfont": {"size": FONT_SIZE - 4}}
        return axis | power | {"dtick": math.ceil(math.log10(high / low) / 4)}
    ticks, texts = log_ticks(low / room, high * room)
    return axis | {"tickvals": ticks, "ticktext": texts}


def _band(figure: go.Figure, cell: Cell, note: dict[str, Any]) -> None:
    """The transition, shaded."""
    if math.isfinite(note["transition_start"]):
        figure.add_shape(
            type="rect", name="transition", x0=note["transition_start"], x1=note["transition_end"], y0=0, y1=1,
            xref=cell.x, yref=f"{cell.y} domain", fillcolor=BAND, line_width=0, layer="below",
        )  # fmt: skip


def _dots(
    figure: go.Figure,
    cell: Cell,
    row: _Row,
    runs: pd.DataFrame,
    shape: tuple[int, int],
    color: str,
    shapes: dict[tuple[int, int], str],
    budgets: np.ndarray,
) -> None:
    """The finished runs of one shape."""
    if runs.empty:
        return
    place = list(shapes).index(shape) / (len(shapes) - 1) - 0.5 if len(shapes) > 1 else 0.0
    names = ["budget_flops", "lr", "batch_size", "seed", "loss", "exact", "pass"]
    floor = {"loss": _LOSS_FLOOR, "exact": 0.0, "pass": _PASS_FLOOR}[row.name]
    figure.add_scatter(
        x=column(runs, "budget_flops") * 10 ** (place * _SPREAD * _gap(budgets)),
        y=np.maximum(column(runs, row.name), floor),
        customdata=runs[names].to_numpy(dtype=float),
        mode="markers",
        marker={"color": color, "size": _DOT},
        opacity=_FAINT,
        name=_shape_name(shape),
        legendgroup=_shape_name(shape),
        showlegend=False,
        hovertemplate=f"{_shape_name(shape)}, lr %{{customdata[1]:g}}, batch %{{customdata[2]:g}}, "
        "seed %{customdata[3]:g}<br>budget %{customdata[0]:.2e} FLOPs<br>loss %{customdata[4]:.4g}, "
        "exact %{customdata[5]:.1%}, pass %{customdata[6]:.3g}<extra></extra>",
        **cell.axes,
    )


def _shape_name(shape: tuple[int, int]) -> str:
    """A shape as the legend says it."""
    return f"{shape[0]} × {shape[1]}"


def _levels(figure: go.Figure, cell: Cell, row: _Row, note: dict[str, Any], low: float, high: float) -> None:
    """Chance in the loss panel; in the others what exact match cannot resolve, or half."""
    levels: list[tuple[str, float, dict[str, Any]]] = []
    if row.name == "loss":
        levels = [(name, note[key], line) for key, (name, line) in _LEVEL_STYLES.items()]
    elif row.name == "pass":
        levels = [(_FLOOR, note["floor"], _FLOOR_LINE)]
    for name, value, line in levels:
        if math.isfinite(value):
            figure.add_scatter(
                x=[low, high], y=[value, value], mode="lines", name=name, line=line, legendgroup=name,
                showlegend=False, hovertemplate=f"{name}: %{{y:.4g}}<extra></extra>", **cell.axes,
            )  # fmt: skip


def _best_line(figure: go.Figure, cell: Cell, row: _Row, best: pd.DataFrame) -> None:
    """The best configuration of each budget, with the range of its seeds."""
    values, low, high = (column(best, row.name + end) for end in ("", "_low", "_high"))
    floor = {"loss": _LOSS_FLOOR, "exact": 0.0, "pass": _PASS_FLOOR}[row.name]
    names = ["d_model", "n_layers", "lr", "batch_size", "n_seeds", f"{row.name}_low", f"{row.name}_high"]
    figure.add_scatter(
        x=column(best, "budget_flops"),
        y=np.maximum(values, floor),
        error_y=whiskers(values, low, high, thickness=1.2, width=2) | {"color": PURPLE},
        customdata=best[names].to_numpy(dtype=float),
        mode="lines+markers",
        name=_BEST,
        legendgroup=_BEST,
        showlegend=False,
        line=_BEST_LINE,
        marker={"color": PURPLE, "size": 5},
        hovertemplate="best: %{customdata[0]:g} × %{customdata[1]:g}, lr %{customdata[2]:g}, batch %{customdata[3]:g}"
        f"<br>%{{x:.2e}} FLOPs<br>{row.title} %{{y:.4g}} (%{{customdata[5]:.4g}} to %{{customdata[6]:.4g}}, "
        "%{customdata[4]:g} seeds)<extra></extra>",
        **cell.axes,
    )


def _legends(shapes: dict[tuple[int, int], str], kinds: list[str], notes: pd.DataFrame) -> list[LegendRow]:
    """One entry for everything that is drawn more than once; a click hides it everywhere."""
    drawn = [(_BEST, {"mode": "lines+markers", "line": _BEST_LINE, "marker": {"color": PURPLE, "size": 5}})]
    drawn += [(kind, {"mode": "lines", "line": line}) for kind, line in LINE_STYLES.items() if kind in kinds]
    drawn += [
        (name, {"mode": "lines", "line": line})
        for key, (name, line) in _LEVEL_STYLES.items()
        if np.isfinite(column(notes, key)).any()
    ]
    drawn.append((_FLOOR, {"mode": "lines", "line": _FLOOR_LINE}))
    if np.isfinite(column(notes, "transition_start")).any():
        square = {"color": BAND, "size": 11, "symbol": "square"}
        drawn.append(("transition", {"mode": "markers", "marker": square}))
    lines = [legend_entry(name, **look) for name, look in drawn]
    dots = [
        legend_entry(_shape_name(shape), mode="markers", marker={"color": color, "size": 7})
        for shape, color in shapes.items()
    ]
    return [LegendRow("", lines), LegendRow("d_model × layers: ", dots)]
