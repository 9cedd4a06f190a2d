"""Scaling curves: final loss, exact match and pass probability over budget, one column of panels a task and length."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import budget_axis, log_axis
from qfl_interp.plots.grid import BAND_MARK, Cell, LegendRow, PaperGrid
from qfl_interp.plots.lines import LOSS_FLOOR, curve, finite, legend_entry, level, log_range
from qfl_interp.plots.text import text_width
from qfl_interp.plots.theme import FONT_SIZE, GREY, PURPLE, VERMILLION, ordered_colors, plain, words
from qfl_interp.tables import column, distinct, groups, records, select

# What is drawn a little beside its budget, as a share of the distance to the next one.
_SPREAD: Final = 0.42
_DOT: Final = 4.5
_FAINT: Final = 0.38
_PASS_FLOOR: Final = 1e-16
_COLUMNS: Final = 4
_HEAD: Final = 70
_BEST: Final = "best configuration (mean, range of seeds)"
_BEST_LINE: Final = {"color": PURPLE, "width": 1.9}


class _Row(NamedTuple):
    """One row of panels: which quantity, how it is drawn, what is the least that is shown."""

    name: str
    title: str
    height: int
    log: bool
    floor: float


_ROWS: Final = (
    _Row("loss", "validation loss (nats)", 150, True, LOSS_FLOOR),
    _Row("exact", "exact match", 82, False, 0.0),
    _Row("pass", "pass probability", 96, True, _PASS_FLOOR),
)
LINE_STYLES: Final = {
    "power law": {"color": VERMILLION, "width": 1.6, "dash": "dot"},
    "broken power law": {"color": VERMILLION, "width": 1, "dash": "solid"},
}
# Levels of a row of panels: chance, and what exact match cannot resolve; by column of the notes.
_LEVELS: Final = {
    "loss": {
        "base_rate": ("best constant guess", {"color": GREY, "width": 1.3, "dash": "dash"}),
        "paper": ("paper's random line", {"color": GREY, "width": 1.3, "dash": "dot"}),
    },
    "pass": {"floor": ("1 / validation examples", {"color": GREY, "width": 1, "dash": "dashdot"})},
}


def scaling_figure(
    runs: pd.DataFrame, best: pd.DataFrame, lines: pd.DataFrame, notes: pd.DataFrame, *, unit: str = "nats"
) -> go.Figure:
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
        unit: What the loss is counted in.
    """
    rows = _rows(best, unit)
    grid = PaperGrid([row.height for row in rows], len(notes), _COLUMNS, _HEAD)
    shapes = _shapes(runs)
    figure = grid.figure("scaling", _legends(shapes, distinct(lines, "kind"), notes, rows))
    for index, note in enumerate(records(notes)):
        of_task = {"task": note["task"], "length": note["length"]}
        of_runs, of_best, of_lines = (select(table, **of_task) for table in (runs, best, lines))
        budgets = np.unique(column(of_runs, "budget_flops"))
        room = 10 ** (_gap(budgets) / 2)
        ends = float(budgets[0] / room), float(budgets[-1] * room)
        for number, row in enumerate(rows):
            cell = grid.cell(index, number)
            bottom = number == len(rows) - 1
            x_axis = budget_axis(*ends, title="training FLOPs (budget)" if bottom else "") | {"showticklabels": bottom}
            figure.update_layout(cell.layout(x_axis, _y_axis(row, of_runs, of_best, note)))
            if grid.is_first(index):
                figure.add_annotation(grid.side_title(index, number, row.title))
            if math.isfinite(note["transition_start"]):
                figure.add_shape(cell.band(note["transition_start"], note["transition_end"]))
            figure.add_traces(_dots(cell, row, of_runs, shapes, budgets))
            for key, (name, line) in _LEVELS.get(row.name, {}).items():
                if math.isfinite(note[key]):
                    more = {"hover": f"{name}: %{{y:.4g}}", "legendgroup": name, **line, **cell.axes}
                    figure.add_trace(level(ends, note[key], name, **more))
            figure.add_trace(_best_line(cell, row, of_best))
            if row.name == "loss":
                for kind, points in groups(of_lines, "kind"):
                    look: dict[str, Any] = {**LINE_STYLES[kind], "x": "budget_flops", "showlegend": False, **cell.axes}
                    figure.add_trace(curve(points, "loss", kind, **look))
        title = f"<b>{words(note['task'])}</b> {note['length']}"
        below = "".join(f"<br>{plain(line)}" for line in str(note["note"]).splitlines())
        figure.add_annotation(grid.head(index, f'{title}<span style="font-size:{FONT_SIZE - 2}px">{below}</span>'))
    return figure


def _rows(best: pd.DataFrame, unit: str) -> list[_Row]:
    """The rows of panels with something to show: real-valued tasks have a loss of another unit, and no scores."""
    there = [row for row in _ROWS if np.isfinite(column(best, row.name)).any()]
    if unit == "nats":
        return there
    title = unit if text_width(unit) <= _ROWS[0].height else "validation loss"
    return [row._replace(title=plain(title)) if row.name == "loss" else row for row in there]


def _shapes(runs: pd.DataFrame) -> dict[tuple[int, int], str]:
    """The colour of each (d_model, n_layers), from small to large."""
    found = {
        (int(r["d_model"]), int(r["n_layers"])) for r in records(runs.filter(["d_model", "n_layers"]).drop_duplicates())
    }
    ordered = sorted(found, key=lambda shape: (shape[0] ** 2 * shape[1], shape))
    return dict(zip(ordered, ordered_colors(len(ordered)), strict=True))


def _gap(budgets: np.ndarray) -> float:
    """Decades between neighbouring budgets; half a decade where there is only one."""
    return float(np.diff(np.log10(budgets)).min()) if budgets.size > 1 else 0.5


def _y_axis(row: _Row, runs: pd.DataFrame, best: pd.DataFrame, note: dict[str, Any]) -> dict[str, Any]:
    axis: dict[str, Any] = {"tickfont": {"size": FONT_SIZE - 2}}
    if not row.log:
        return axis | {"range": [-0.06, 1.06], "tickvals": [0, 0.5, 1], "ticktext": ["0", "0.5", "1"]}
    values = finite(runs[row.name], best[f"{row.name}_low"])
    if row.name == "loss":
        # A run that went astray must not flatten the panel.
        ceiling = 2.2 * finite(note["base_rate"], note["paper"], column(best, "loss_high").max()).max()
        levels = [np.minimum(values, ceiling), note["base_rate"], note["paper"]]
    else:
        levels = [values, note["floor"], 1.0]
    return axis | log_axis(*log_range(*levels, least=1.04, floor=row.floor), few_beyond=3.36)


def _dots(
    cell: Cell, row: _Row, runs: pd.DataFrame, shapes: dict[tuple[int, int], str], budgets: np.ndarray
) -> list[go.Scatter]:
    """The finished runs, a trace a shape."""
    traces = []
    for number, ((d_model, n_layers), color) in enumerate(shapes.items()):
        of_shape, name = select(runs, d_model=d_model, n_layers=n_layers), _shape_name((d_model, n_layers))
        if of_shape.empty:
            continue
        place = number / (len(shapes) - 1) - 0.5 if len(shapes) > 1 else 0.0
        shown = of_shape.assign(x=of_shape["budget_flops"] * 10 ** (place * _SPREAD * _gap(budgets)))
        look: dict[str, Any] = {"x": "x", "floor": row.floor, "width": 0, "size": _DOT, "opacity": _FAINT}
        look |= {"beside": ("budget_flops", "lr", "batch_size", "seed", "loss", "exact", "pass")}
        hover = (
            f"{name}, lr %{{customdata[1]:g}}, batch %{{customdata[2]:g}}, "
            "seed %{customdata[3]:g}<br>budget %{customdata[0]:.2e} FLOPs<br>loss %{customdata[4]:.4g}, "
            "exact %{customdata[5]:.1%}, pass %{customdata[6]:.3g}<extra></extra>"
        )
        traces.append(curve(shown, row.name, name, color, hover=hover, showlegend=False, **look, **cell.axes))
    return traces


def _shape_name(shape: tuple[int, int]) -> str:
    """A shape as the legend says it."""
    return f"{shape[0]} × {shape[1]}"


def _best_line(cell: Cell, row: _Row, best: pd.DataFrame) -> go.Scatter:
    """The best configuration of each budget, with the range of its seeds."""
    look: dict[str, Any] = {**_BEST_LINE, "x": "budget_flops", "floor": row.floor, "size": 5, "interval": (1.2, 2)}
    ends = (f"{row.name}_low", f"{row.name}_high")
    look |= {"beside": ("d_model", "n_layers", "lr", "batch_size", "n_seeds", *ends), "showlegend": False}
    hover = (
        "best: %{customdata[0]:g} × %{customdata[1]:g}, lr %{customdata[2]:g}, batch %{customdata[3]:g}"
        f"<br>%{{x:.2e}} FLOPs<br>{row.title} %{{y:.4g}} (%{{customdata[5]:.4g}} to %{{customdata[6]:.4g}}, "
        "%{customdata[4]:g} seeds)<extra></extra>"
    )
    return curve(best, row.name, _BEST, hover=hover, **look, **cell.axes)


def _legends(
    shapes: dict[tuple[int, int], str], kinds: list[str], notes: pd.DataFrame, rows: list[_Row]
) -> list[LegendRow]:
    """One entry for everything that is drawn more than once; a click hides it everywhere."""
    drawn = [(_BEST, {"mode": "lines+markers", "line": _BEST_LINE, "marker": {"color": PURPLE, "size": 5}})]
    drawn += [(kind, {"mode": "lines", "line": line}) for kind, line in LINE_STYLES.items() if kind in kinds]
    drawn += [
        (name, {"mode": "lines", "line": line})
        for row in rows
        for key, (name, line) in _LEVELS.get(row.name, {}).items()
        if np.isfinite(column(notes, key)).any()
    ]
    if np.isfinite(column(notes, "transition_start")).any():
        drawn.append(("transition", {"mode": "markers", "marker": BAND_MARK}))
    lines = [legend_entry(name, **look) for name, look in drawn]
    dots = [
        legend_entry(_shape_name(shape), mode="markers", marker={"color": color, "size": 7})
        for shape, color in shapes.items()
    ]
    return [LegendRow("", lines), LegendRow("d_model × layers: ", dots)]
