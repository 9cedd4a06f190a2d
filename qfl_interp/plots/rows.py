"""Rows of a table as they are, where nothing better is known to draw."""

from __future__ import annotations

import math
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.theme import FONT_SIZE, new_figure, plain
from qfl_interp.tables import distinct

_MOST_ROWS: Final = 200
_ROW: Final = 24
_HEIGHT: Final = 520


def rows_figure(rows: pd.DataFrame) -> go.Figure:
    """The first 200 rows as a table, without the columns that are alike in all of several rows."""
    shown = rows.head(_MOST_ROWS)
    names = [name for name in shown if len(shown) == 1 or len(distinct(shown, str(name))) > 1] or list(shown)
    margin = {"l": 8, "r": 8, "t": 8, "b": 8}
    figure = new_figure("rows", min(_ROW * (len(shown) + 2), _HEIGHT), margin)
    look: dict[str, Any] = {"align": "left", "fill": {"color": "rgba(0,0,0,0)"}, "font": {"size": FONT_SIZE - 1}}
    header = {"values": [f"<b>{plain(name)}</b>" for name in names], **look}
    cells = {"values": [[_text(value) for value in shown[name]] for name in names], "height": _ROW, **look}
    figure.add_trace(go.Table(header=header, cells=cells))
    return figure


def _text(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return plain(value)
