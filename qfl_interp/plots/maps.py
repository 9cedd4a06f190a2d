"""Maps of cells, such as layer x label: colours with their bar, hover text, crosses where there is no value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import log_ticks
from qfl_interp.plots.grid import Cell
from qfl_interp.plots.text import text_width
from qfl_interp.plots.theme import FONT_SIZE, GREY, is_narrow, page_width, short, text_at
from qfl_interp.tables import column, distinct

# Of an axis along cells.
BARE: Final = {"showgrid": False, "showline": False}
_MOST_NAMED: Final = 20
# Letters of the numbers of a colour bar; pixels left and right of a map.
_BAR_SIZE: Final = FONT_SIZE - 2
_BESIDE: Final = 76
# Between two numbers.
_APART: Final = 6


def places_of(rows: pd.DataFrame) -> list[tuple[int, int]]:
    """The layers and heads of the rows, in order; head -1 where the site, or the table, has none."""
    heads = rows["head"] if "head" in rows.columns else [-1] * len(rows)
    return sorted({(int(layer), int(head)) for layer, head in zip(rows["layer"], heads, strict=True)})


def place_words(layer: int, head: int) -> str:
    """How a hover text names a place."""
    return f"layer {layer}" if head < 0 else f"layer {layer}, head {head}"


@dataclass(frozen=True)
class CellMap:
    """Where the cells of a map stand: a row of cells for each value of some columns, a cell for each of another.

    Args:
        key: Columns of a table that tell the cells apart, the last of them along the x axis.
        down: Values of all but the last, from the bottom to the top.
        across: Values of the last, from left to right.
        y: What the axis calls the rows.
        axes: Plotly's fields that put a trace into a panel, as `Cell.axes`.
    """

    key: tuple[str, ...]
    down: Sequence[tuple[int, ...]]
    across: Sequence[int]
    y: Sequence[Any]
    axes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def by_place(cls, rows: pd.DataFrame, across: str) -> CellMap:
        """Layers ("3"), or layers and heads ("3.2"), against a column."""
        found = places_of(rows)
        names = [str(layer) if head < 0 else f"{layer}.{head}" for layer, head in found]
        return cls(("layer", "head", across), found, sorted(int(value) for value in distinct(rows, across)), names)

    def within(self, cell: Cell) -> CellMap:
        """The same map in a panel."""
        return replace(self, axes=cell.axes)

    def cells(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with one row a cell, row by row from the left; NaN where it has none. At most one row a cell."""
        full = table.assign(head=-1) if "head" in self.key and "head" not in table.columns else table
        # A look-up by pandas' own index of several columns takes most of a page's time.
        at = {key: row for row, key in enumerate(zip(*(full[name].tolist() for name in self.key), strict=True))}
        assert len(at) == len(full), "at most one row a cell"
        rows = [at.get((*row, value), -1) for row in self.down for value in self.across]
        return full.drop(columns=list(self.key)).reset_index(drop=True).reindex(rows)

    def grid(self, values: Any) -> np.ndarray:
        """One entry a cell, with axes row, column, and those it had behind."""
        array = np.asarray(values)
        return array.reshape(len(self.down), len(self.across), *array.shape[1:])

    def heat(
        self,
        table: pd.DataFrame,
        value: str,
        hover: str,
        *,
        beside: Sequence[str] = (),
        floor: float | None = None,
        **look: Any,
    ) -> dict[str, Any]:
        """The cells of one table, coloured by a column; open where it has no value; as a trace's fields.

        Args:
            table: At most one row a cell.
            value: The column.
            hover: Template of the hover text, in which `beside` are customdata[0], [1], ...
            beside: Further columns for the hover text.
            floor: Colours are logarithms, of values not below this; None for the values themselves.
            **look: Further fields of the trace.
        """
        full = self.cells(table)
        values = column(full, value)
        fields: dict[str, Any] = {
            "x": list(self.across),
            "y": list(self.y),
            "z": short(self.grid(values if floor is None else np.log10(np.maximum(values, floor)))),
            "hovertemplate": hover + "<extra></extra>",
        }
        if beside:
            fields["customdata"] = short(self.grid(full[list(beside)].to_numpy(dtype=float)))
        shared = {"xgap": 1, "ygap": 1, "hoverongaps": False, "coloraxis": "coloraxis", **self.axes}
        given = {name: value for name, value in look.items() if value is not None}
        return {"type": "heatmap", **shared, **fields, **given}

    def crosses(self, why: str) -> go.Heatmap:
        """A grey cross in every cell, to lie below `heat`; the hover text says why a cell has no value."""
        shape = (len(self.down), len(self.across))
        fields = {"x": list(self.across), "y": list(self.y), "z": np.zeros(shape).tolist(), "xgap": 1, "ygap": 1}
        look = {"colorscale": [[0, GREY], [1, GREY]], "opacity": 0.45, "showscale": False}
        text = {"text": np.full(shape, "×").tolist(), "texttemplate": "%{text}", "textfont": {"size": FONT_SIZE}}
        return go.Heatmap({**self.axes, **fields, **look, **text, "hovertemplate": why + "<extra></extra>"})

    def layout(self, cell: Cell, **x_axis: Any) -> dict[str, Any]:
        """Both axes of a map of places in a panel, for `update_layout`; further fields are those of the x axis."""
        x = {"dtick": math.ceil(len(self.across) / 12), **BARE, **x_axis}
        names = list(self.y)
        if len(names) > _MOST_NAMED:
            # Only some layers have their name, at their first head.
            first = [name for row, name in zip(self.down, names, strict=True) if row[1] == self.down[0][1]]
            names = first[:: math.ceil(len(first) / _MOST_NAMED)]
        title = "layer" if all(row[1] < 0 for row in self.down) else "layer.head"
        y = {"type": "category", "tickvals": names, "ticktext": names, "title": {"text": title}, **BARE}
        return cell.layout(x, y)


def color_axis(
    title: str,
    low: float,
    high: float,
    *,
    scale: Any = "Viridis",
    log: bool = False,
    span: tuple[float, float] = (0.0, 1.0),
    **bar: Any,
) -> dict[str, Any]:
    """Colours from `low` to `high`, with a horizontal bar above the plot area, as a colour axis of the layout.

    Args:
        title: Quantity and unit.
        low: Value of the first colour.
        high: Value of the last one.
        scale: Plotly's colour scale.
        log: Whether colours are logarithms of the values, as of `CellMap.heat` with a floor.
        span: Left and right end of the bar, as fractions of the plot area.
        **bar: Further fields of the bar.
    """
    ticks, texts = _fitting(*log_ticks(low, high), (page_width() - _BESIDE) * (span[1] - span[0])) if log else ([], [])
    place = {"orientation": "h", "x": span[0], "xanchor": "left", "len": span[1] - span[0], "y": 1, "yanchor": "bottom"}
    # Slanted numbers would raise one bar above another.
    numbers = {"ticklen": 3, "tickangle": 0, "tickfont": {"size": _BAR_SIZE}}
    look = {"ypad": 8, "xpad": 0, "thickness": 9, "outlinewidth": 0, **numbers}
    # What is not said stays as it was when a button changes the colours.
    marks = {"tickvals": [math.log10(tick) for tick in ticks] or None, "ticktext": texts or None, "tickformat": None}
    head = {"title": {"text": title, "side": "top", "font": {"size": FONT_SIZE}}}
    ends = (math.log10(low), math.log10(high)) if log else (low, high)
    return {"colorscale": scale, "cmin": ends[0], "cmax": ends[1], "colorbar": place | look | marks | head | bar}


def _fitting(ticks: Sequence[float], texts: Sequence[str], width: float) -> tuple[list[float], list[str]]:
    """All ticks of a bar so wide, or every n-th if their numbers do not fit side by side; powers of ten among them."""
    widths = [text_width(text, _BAR_SIZE) for text in texts]
    ten = next((at for at, tick in enumerate(ticks) if math.log10(tick).is_integer()), 0)
    for n in range(1, len(ticks)):
        shown = range(ten % n, len(ticks), n)
        if sum(widths[at] for at in shown) + _APART * (len(shown) - 1) <= width:
            return [ticks[at] for at in shown], [texts[at] for at in shown]
    return list(ticks[ten : ten + 1]), list(texts[ten : ten + 1])


def bar_span(left: float, right: float) -> tuple[float, float]:
    """Where a colour bar stands beside a title; on narrow paper over the whole width."""
    return (0.0, 1.0) if is_narrow() else (left, right)


def axis_title(text: str, y: float, below: int = 22, x: float = 0.5) -> dict[str, Any]:
    """The title of a map's x axis, `below` pixels under the height `y` and in the middle at `x`, as an annotation.

    Plotly's own axis title stands on the numbers of the axis as soon as the figure has a colour bar.
    """
    return text_at(text, x, y, xanchor="center", yanchor="top", yshift=-below)


def choices(labels: Sequence[str], updates: Sequence[list[dict[str, Any]]], above: int) -> dict[str, Any]:
    """Buttons at the top right that show one of several views.

    None looks pressed, since plotly paints such a button pale on dark pages too; the view says itself what it is.

    Args:
        labels: What the buttons say.
        updates: For each, the arguments of plotly's `update`: changes of traces, then of the layout.
        above: Pixels from the plot area to the buttons.
    """
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": above, "r": 0}}
    buttons = [{"label": label, "method": "update", "args": args} for label, args in zip(labels, updates, strict=True)]
    look = {"type": "buttons", "direction": "right", "showactive": False, "font": {"size": FONT_SIZE - 1}}
    return {**look, **place, "buttons": buttons}


def require_rows(rows: pd.DataFrame, table: str, one_of: Sequence[str], key: Sequence[str]) -> None:
    """Check that a table can be drawn.

    Args:
        rows: What is to be drawn.
        table: Its name, for the error.
        one_of: Columns that must have one value.
        key: Columns that tell the rows apart.

    Raises:
        ValueError: There is no row, several values in a column of `one_of`, or several rows of one key.
    """
    if rows.empty:
        raise ValueError(f"the {table} table must have rows, got none. Run `qfl {table}` on this run first.")
    for name in one_of:
        found = distinct(rows, name)
        if len(found) > 1:
            raise ValueError(
                f"this figure of the {table} table shows one {name}, got {found[:8]}. Select the rows of one of them."
            )
    if rows.duplicated([name for name in key if name in rows.columns]).any():
        raise ValueError(
            f"the {table} table must have one row a {', '.join(key)}, got several. "
            "Select the rows of one run and one hash of settings."
        )
