"""Outcomes of trainings at many learning rates: panels of cells, coloured by one number, crossed where it diverged."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from qfl_interp.plots.theme import FONT_SIZE, GREY, new_figure, short, template
from qfl_interp.tables import column, distinct, records, select

_CELL, _ABOVE, _BELOW, _BETWEEN = 30, 36, 52, 60


def edge_maps(
    rows: pd.DataFrame,
    *,
    x: str,
    y: str,
    value: str,
    filename: str,
    n_columns: int = 2,
    low: float | None = None,
    high: float | None = None,
) -> go.Figure:
    """Panels of x by y, each cell one number with its text; grey and crossed where there is none.

    Args:
        rows: A row a cell: `panel`, `x`, `y` (texts, in the order in which they first appear), `value`, and `note`,
            which the cell shows below its number.
        x: Title of the horizontal axes.
        y: Title of the vertical axes.
        value: What the colour is, for its bar.
        filename: Name of a downloaded image, without its ending.
        n_columns: Panels side by side.
        low: Number of the first colour; the smallest by default.
        high: Number of the last colour; the largest by default.

    Raises:
        ValueError: There is no row, or two of one cell.
    """
    panels = distinct(rows, "panel")
    if not panels or rows.duplicated(["panel", "x", "y"]).any():
        raise ValueError(f"rows must hold one row a cell and at least one, got {len(rows)} with twice the same cell.")
    across, down = distinct(rows, "x"), distinct(rows, "y")
    n_rows = math.ceil(len(panels) / n_columns)
    inner = _CELL * len(down)
    height = _ABOVE + _BELOW + n_rows * inner + (n_rows - 1) * _BETWEEN
    between = _BETWEEN / (height - _ABOVE - _BELOW) if n_rows > 1 else 0.0
    grid = make_subplots(
        n_rows, min(n_columns, len(panels)), subplot_titles=panels, shared_yaxes=True, horizontal_spacing=0.04,
        vertical_spacing=between,
    )  # fmt: skip
    figure = new_figure(filename, height)
    figure.layout.update(grid.layout)
    figure._grid_ref, figure._grid_str = grid._grid_ref, grid._grid_str
    figure.update_layout(template=template())  # the grid brought plotly's own
    for number, panel in enumerate(panels):
        cells = {(row["y"], row["x"]): row for row in records(select(rows, panel=panel))}
        values = np.array([[cells.get((b, a), {}).get("value", math.nan) for a in across] for b in down], dtype=float)
        notes = [[str(cells.get((b, a), {}).get("note", "")) for a in across] for b in down]
        line, place = number // n_columns + 1, number % n_columns + 1
        for trace in _traces(values, notes, across, down):
            figure.add_trace(trace, row=line, col=place)
        titles = (x if line == n_rows else None, y if place == 1 else None)
        for axes, title in zip((figure.update_xaxes, figure.update_yaxes), titles, strict=True):
            axes(type="category", showgrid=False, title={"text": title}, row=line, col=place)
    found = column(rows, "value")
    ends = {
        "cmin": float(np.nanmin(found)) if low is None else low,
        "cmax": float(np.nanmax(found)) if high is None else high,
    }
    bar = {"title": {"text": value, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    figure.update_annotations(font={"size": FONT_SIZE})  # the panels' titles
    figure.update_layout(
        coloraxis={"colorscale": "Viridis", "colorbar": bar, **ends},
        margin={"l": 64, "r": 12, "t": _ABOVE, "b": _BELOW},
    )
    return figure


def _traces(
    values: Float[np.ndarray, "y x"], notes: list[list[str]], across: list[str], down: list[str]
) -> list[go.Heatmap]:
    """The coloured cells, and the crossed ones below them."""
    place = {"x": across, "y": down, "xgap": 1, "ygap": 1}
    shown = {"text": notes, "texttemplate": "%{text}", "textfont": {"size": FONT_SIZE - 2}}
    missing = np.where(np.isnan(values), 0.0, np.nan)
    crossed = go.Heatmap(
        **place, **shown, z=short(missing), colorscale=[[0, GREY], [1, GREY]], opacity=0.45, showscale=False,
        hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
    )  # fmt: skip
    colours = go.Heatmap(
        **place, **shown, z=short(values), coloraxis="coloraxis",
        hovertemplate="%{y}, %{x}: %{z}<extra></extra>",
    )  # fmt: skip
    return [crossed, colours]
