"""Outcomes of trainings at many learning rates: panels of cells, coloured by one number, crossed where it diverged."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.grid import Grid
from qfl_interp.plots.lines import finite
from qfl_interp.plots.theme import FONT_SIZE, GREY, new_figure, short
from qfl_interp.tables import distinct, records, select

_CELL, _BETWEEN = 30, 60
_MARGIN = {"l": 64, "r": 12, "t": 36, "b": 52}


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
    grid = Grid([_CELL * len(down)], len(panels), n_columns, foot=_BETWEEN)
    figure = new_figure(filename, grid.height, _MARGIN)
    for index, panel in enumerate(panels):
        cells = {(row["y"], row["x"]): row for row in records(select(rows, panel=panel))}
        values = np.array([[cells.get((b, a), {}).get("value", math.nan) for a in across] for b in down], dtype=float)
        notes = [[str(cells.get((b, a), {}).get("note", "")) for a in across] for b in down]
        cell, first = grid.cell(index), grid.is_first(index)
        shown = {"x": across, "y": down, "xgap": 1, "ygap": 1, **cell.axes}
        shown |= {"text": notes, "texttemplate": "%{text}", "textfont": {"size": FONT_SIZE - 2}}
        crossed = {"z": short(np.where(np.isnan(values), 0.0, np.nan)), "colorscale": [[0, GREY], [1, GREY]]}
        crossed |= {"opacity": 0.45, "showscale": False, "hovertemplate": "%{y}, %{x}: %{text}<extra></extra>"}
        coloured = {"coloraxis": "coloraxis", "hovertemplate": "%{y}, %{x}: %{z}<extra></extra>"}
        figure.add_traces([go.Heatmap(shown | crossed), go.Heatmap(shown | coloured | {"z": short(values)})])
        x_axis = {"type": "category", "showgrid": False, "title": {"text": x if grid.is_last(index) else None}}
        y_axis = {"type": "category", "showgrid": False, "title": {"text": y if first else None}}
        # All panels of a row have the first one's names.
        y_axis |= {} if first else {"matches": grid.cell(index - index % n_columns).y, "showticklabels": False}
        figure.update_layout(cell.layout(x_axis, y_axis))
        figure.add_annotation(cell.title(panel, 0, centred=True))
    found = finite(rows["value"])
    ends = {"cmin": float(found.min()) if low is None else low, "cmax": float(found.max()) if high is None else high}
    bar = {"title": {"text": value, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    figure.update_layout(coloraxis={"colorscale": "Viridis", "colorbar": bar, **ends})
    return figure
