"""A grid of small panels over compute: a row a quantity, a column a setting, trained runs before their controls."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import log_axis, log_training_axis
from qfl_interp.plots.grid import Grid
from qfl_interp.plots.lines import curve, legend_entry
from qfl_interp.plots.theme import BAND, FONT_SIZE, GREY, PURPLE, STEEL, VERMILLION, new_figure, plain, words
from qfl_interp.tables import column, distinct, groups, select

_GROUP_COLORS: Final = (VERMILLION, GREY, STEEL, PURPLE)
_COLUMNS: Final = ("row", "column", "group", "curve", "x", "y")
_PANEL: Final = 104
_BETWEEN: Final = 26
_MARGIN: Final = {"l": 62, "r": 12, "t": 78, "b": 52}
# A positive quantity that spans more than this is drawn on a logarithmic axis.
_WIDE: Final = 10.0


def small_multiples(
    rows: pd.DataFrame,
    *,
    bands: Mapping[str, tuple[float, float]],
    marks: Mapping[str, float],
    x: str,
    filename: str,
    height: int = _PANEL,
) -> go.Figure:
    """Curves over a logarithmic axis, a panel for every row and column; curves of one group have one colour.

    Args:
        rows: A row a point: `row` and `column` (titles of the panel, in the order in which they first appear), `group`
            (the first is drawn in front), `curve` (what is joined), `x` above 0 and `y`.
        bands: For a column, what is shaded in its panels, from and to.
        marks: For a column, where a dotted line stands.
        x: Title of the horizontal axes.
        filename: Name of a downloaded image, without its ending.
        height: Pixels that a row of panels takes.

    Raises:
        ValueError: There is no row, a column is missing, or an `x` is not positive.
    """
    missing = [name for name in _COLUMNS if name not in rows]
    if missing or not len(rows):
        raise ValueError(f"rows must have the columns {_COLUMNS} and a row, got {len(rows)} without {missing}.")
    if not (column(rows, "x") > 0).all():
        raise ValueError(f"x must be positive on a logarithmic axis, got {column(rows, 'x').min()}. Leave step 0 out.")
    down, across, kinds = distinct(rows, "row"), distinct(rows, "column"), distinct(rows, "group")
    n = len(down) * len(across)
    grid = Grid([height - _BETWEEN * (len(down) - 1) / len(down)], n, len(across), gap=0.1, foot=_BETWEEN)
    figure = new_figure(filename, grid.height, _MARGIN)
    colors = dict(zip(kinds, itertools.cycle(_GROUP_COLORS), strict=False))
    for index in range(n):
        line, place = divmod(index, len(across))
        cell, setting, whole = grid.cell(index), across[place], select(rows, column=across[place])
        shown, last = select(whole, row=down[line]), grid.is_last(index)
        for kind in reversed(kinds):
            for name, points in groups(select(shown, group=kind), "curve"):
                look: dict[str, Any] = {"x": "x", "width": 1.3, "size": 3.5, "hover": None, "showlegend": False}
                look |= {"legendgroup": str(kind), **cell.axes}
                figure.add_trace(curve(points, "y", str(name), colors[kind], **look))
        if setting in bands:
            figure.add_shape(cell.stretch(*bands[setting], fillcolor=BAND, line={"width": 0}))
        if setting in marks:
            style = {"color": PURPLE, "dash": "dot", "width": 1}
            figure.add_shape(cell.stretch(marks[setting], marks[setting], line=style))
        low, high = float(column(whole, "x").min()), float(column(whole, "x").max())
        x_axis = log_training_axis(low, high, x if last else "") | {"showticklabels": last}
        x_axis |= {} if last else {"matches": grid.cell(n - len(across) + place).x}
        figure.update_layout(cell.layout(x_axis, _value_axis(shown)))
        if place == 0:
            figure.add_annotation(cell.title(plain(down[line]), 0))
        if line == 0:
            figure.add_annotation(cell.title(f"<b>{words(str(setting))}</b>", 18, centred=True, size=FONT_SIZE + 1))
    for kind in kinds:
        line = {"color": colors[kind], "width": 1.3}
        marker = {"color": colors[kind], "size": 3.5}
        figure.add_trace(legend_entry(str(kind), mode="lines+markers", line=line, marker=marker))
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "top", "yref": "container"})
    figure.update_layout(showlegend=True)
    return figure


def _value_axis(rows: pd.DataFrame) -> dict[str, Any]:
    """The vertical axis of a panel: logarithmic where positive values span much."""
    values = column(rows, "y")
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low == high:
        return {"type": "linear", "nticks": 5, "rangemode": "nonnegative"}
    if low <= 0 or high <= _WIDE * low:
        return {"type": "linear", "nticks": 5}
    # Plotly leaves room at both ends.
    return log_axis(low, high) | {"range": None}
