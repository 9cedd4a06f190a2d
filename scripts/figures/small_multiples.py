"""A grid of small panels over compute: a row a quantity, a column a setting, trained runs before their controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qfl_interp.plots.theme import (
    BAND,
    FONT_SIZE,
    GREY,
    PURPLE,
    STEEL,
    VERMILLION,
    log_flops_axis,
    log_ticks,
    new_figure,
    plain,
    template,
    words,
)
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
) -> go.Figure:
    """Curves over a logarithmic axis, a panel for every row and column; curves of one group have one colour.

    Args:
        rows: A row a point: `row` and `column` (titles of the panel, in the order in which they first appear), `group`
            (the first is drawn in front), `curve` (what is joined), `x` above 0 and `y`.
        bands: For a column, what is shaded in its panels, from and to.
        marks: For a column, where a dotted line stands.
        x: Title of the horizontal axes.
        filename: Name of a downloaded image, without its ending.

    Raises:
        ValueError: There is no row, a column is missing, or an `x` is not positive.
    """
    missing = [name for name in _COLUMNS if name not in rows]
    if missing or not len(rows):
        raise ValueError(f"rows must have the columns {_COLUMNS} and a row, got {len(rows)} without {missing}.")
    if not (column(rows, "x") > 0).all():
        raise ValueError(f"x must be positive on a logarithmic axis, got {column(rows, 'x').min()}. Leave step 0 out.")
    down, across, kinds = distinct(rows, "row"), distinct(rows, "column"), distinct(rows, "group")
    titles = [plain(quantity) if place == 0 else "" for quantity in down for place in range(len(across))]
    height = len(down) * _PANEL + _MARGIN["t"] + _MARGIN["b"]
    grid = make_subplots(
        len(down), len(across), shared_xaxes=True, subplot_titles=titles,
        column_titles=[f"<b>{words(str(name))}</b>" for name in across],
        vertical_spacing=_BETWEEN / (height - _MARGIN["t"] - _MARGIN["b"]), horizontal_spacing=0.1,
    )  # fmt: skip
    figure = new_figure(filename, height)
    figure.layout.update(grid.layout)
    figure._grid_ref, figure._grid_str = grid._grid_ref, grid._grid_str
    figure.update_layout(template=template())  # the grid brought plotly's own
    for setting in across:
        title = {"text": f"<b>{words(str(setting))}</b>"}
        figure.update_annotations(yshift=18, font={"size": FONT_SIZE + 1}, selector=title)
    # Panel titles begin where their panel does.
    for title in filter(None, titles):
        figure.update_annotations(x=0, xanchor="left", font={"size": FONT_SIZE}, selector={"text": title})
    colors = {kind: _GROUP_COLORS[index % len(_GROUP_COLORS)] for index, kind in enumerate(kinds)}
    for place, setting in enumerate(across, 1):
        whole = select(rows, column=setting)
        low, high = float(column(whole, "x").min()), float(column(whole, "x").max())
        for line, quantity in enumerate(down, 1):
            shown = select(whole, row=quantity)
            at: dict[str, Any] = {"row": line, "col": place}
            for kind in reversed(kinds):
                for curve, points in groups(select(shown, group=kind), "curve"):
                    figure.add_trace(_curve(points, str(kind), str(curve), colors[kind]), **at)
            if setting in bands:
                start, end = bands[setting]
                figure.add_shape(
                    _stretch(start, end, {"fillcolor": BAND, "line": {"width": 0}, "layer": "below"}), **at
                )
            if setting in marks:
                line_style = {"color": PURPLE, "dash": "dot", "width": 1}
                figure.add_shape(_stretch(marks[setting], marks[setting], {"line": line_style}), **at)
            figure.update_yaxes(_value_axis(shown), **at)
            axis = log_flops_axis(low, high, x if line == len(down) else "")
            figure.update_xaxes(axis, showticklabels=line == len(down), **at)
    for kind in kinds:
        entry = _curve(pd.DataFrame({"x": [None], "y": [None]}), str(kind), str(kind), colors[kind])
        figure.add_trace(entry.update(showlegend=True), row=1, col=1)
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "top", "yref": "container"}
    figure.update_layout(margin=_MARGIN, legend=legend, showlegend=True)
    return figure


def _value_axis(rows: pd.DataFrame) -> dict[str, Any]:
    """The vertical axis of a panel: logarithmic where positive values span much."""
    values = column(rows, "y")
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low <= 0 or high <= _WIDE * low:
        return {"type": "linear", "nticks": 5}
    ticks, texts = log_ticks(low, high)
    return {"type": "log", "tickvals": ticks, "ticktext": texts}


def _stretch(start: float, end: float, style: dict[str, Any]) -> dict[str, Any]:
    """A shape from top to bottom of a panel."""
    return {
        "type": "rect" if end > start else "line",
        "x0": start,
        "x1": end,
        "y0": 0,
        "y1": 1,
        "yref": "y domain",
        **style,
    }


def _curve(points: pd.DataFrame, group: str, name: str, color: str) -> go.Scatter:
    """One run's curve."""
    return go.Scatter(
        x=points["x"], y=points["y"], mode="lines+markers", name=name, legendgroup=group, showlegend=False,
        line={"color": color, "width": 1.3}, marker={"color": color, "size": 3.5},
    )  # fmt: skip
