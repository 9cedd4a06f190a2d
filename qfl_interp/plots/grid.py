"""Small multiples in pixels: where each panel of a grid of columns stands, its axes, its head, legends above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import plotly.graph_objects as go

from qfl_interp.plots.theme import FONT_SIZE, PAPER_WIDTH, new_figure

# Of a legend's entry: the line before the name with what stands around it, a letter of the name, a line's height.
_ENTRY_WIDTH: Final = 42
_LETTER_WIDTH: Final = 5.7
_LINE_HEIGHT: Final = 19
_PAD: Final = 10
# Left of a panel: tick labels; of a block's first one also the axis title.
_TICKS, _TITLE = 40, 24
_RIGHT, _GAP, _FOOT = 10, 12, 50


class Cell(NamedTuple):
    """One panel.

    Attributes:
        number: Of its axes, from 1: x, x2, x3, ...
        x_domain: From left to right, as fractions of the figure.
        y_domain: From bottom to top.
    """

    number: int
    x_domain: tuple[float, float]
    y_domain: tuple[float, float]

    @property
    def suffix(self) -> str:
        """What plotly appends to the names of its axes."""
        return "" if self.number == 1 else str(self.number)

    @property
    def x(self) -> str:
        """The x axis as traces name it."""
        return f"x{self.suffix}"

    @property
    def y(self) -> str:
        """The y axis as traces name it."""
        return f"y{self.suffix}"

    @property
    def axes(self) -> dict[str, str]:
        """What puts a trace into this panel."""
        return {"xaxis": self.x, "yaxis": self.y}

    def layout(self, x_axis: dict[str, Any], y_axis: dict[str, Any]) -> dict[str, Any]:
        """Both axes in place, for `update_layout`."""
        return {
            f"xaxis{self.suffix}": x_axis | {"domain": self.x_domain, "anchor": self.y},
            f"yaxis{self.suffix}": y_axis | {"domain": self.y_domain, "anchor": self.x},
        }


class Grid:
    """Columns of panels side by side, wrapped into blocks; every column is a stack with a head above it.

    Args:
        heights: Of a column's panels in pixels, from the top.
        n: Columns in all.
        n_columns: Columns side by side.
        head: Pixels above a column for its title.
    """

    def __init__(self, heights: Sequence[int], n: int, n_columns: int, head: int) -> None:
        self._heights, self._columns, self._head = tuple(heights), n_columns, head
        self._block = head + sum(heights) + _GAP * (len(heights) - 1) + _FOOT
        self.height = self._block * math.ceil(n / n_columns)

    def is_first(self, index: int) -> bool:
        """Whether a column is the leftmost of its block, which has the axis titles."""
        return index % self._columns == 0

    def cell(self, index: int, row: int) -> Cell:
        """Panel `row`, from the top, of column `index`."""
        block, place = divmod(index, self._columns)
        left, right = self._sides(place)
        top = block * self._block + self._head + sum(self._heights[:row]) + _GAP * row
        bottom = top + self._heights[row]
        y_domain = (max(1 - bottom / self.height, 0.0), 1 - top / self.height)
        return Cell(index * len(self._heights) + row + 1, (left, right), y_domain)

    def head(self, index: int) -> dict[str, Any]:
        """Where a column's head starts, as fields of an annotation."""
        block, place = divmod(index, self._columns)
        left = self._sides(place)[0] - _TICKS * 0.8 / PAPER_WIDTH
        y = 1 - block * self._block / self.height
        return {"xref": "paper", "yref": "paper", "x": left, "y": y, "xanchor": "left", "yanchor": "top"}

    def side_title(self, index: int, row: int, text: str) -> dict[str, Any]:
        """The title of the y axes of one row of panels, left of column `index`, as fields of an annotation."""
        low, high = self.cell(index, row).y_domain
        place = {"xref": "paper", "yref": "paper", "x": 0.004, "y": (low + high) / 2}
        return {"text": text, "textangle": -90, "xanchor": "left", "yanchor": "middle", **place}

    def _sides(self, place: int) -> tuple[float, float]:
        """Left and right end of the panels of a column, as fractions of the figure."""
        width = (PAPER_WIDTH - _TITLE) / self._columns
        left = _TITLE + width * place
        return (left + _TICKS) / PAPER_WIDTH, (left + width - _RIGHT) / PAPER_WIDTH

    def figure(self, filename: str, legends: Sequence[LegendRow] = ()) -> go.Figure:
        """An empty figure of the right height, with legends below each other above the panels.

        Args:
            filename: Name of a downloaded image, without its ending.
            legends: From top to bottom.
        """
        lines = [line for row in legends for line in _filled(row)]
        margin = _LINE_HEIGHT * len(lines) + (_PAD if lines else 0)
        figure = new_figure(filename, self.height + margin)
        figure.update_layout(margin={"l": 0, "r": 0, "t": margin, "b": 0}, hovermode="closest")
        # A legend a line, so that each has the height counted on; the template gives only the first no background.
        for number, line in enumerate(lines, start=1):
            name = "legend" if number == 1 else f"legend{number}"
            empty: dict[str, Any] = {"x": [None], "y": [None], "hoverinfo": "skip", "showlegend": True, "legend": name}
            for entry in line.entries:
                figure.add_trace(go.Scatter({**entry.to_plotly_json(), **empty}))
            above = 1 + _LINE_HEIGHT * (len(lines) - number) / self.height
            look: dict[str, Any] = {"orientation": "h", "groupclick": "togglegroup", "tracegroupgap": 0}
            look |= {
                "bgcolor": "rgba(0,0,0,0)",
                "x": 0.01,
                "xanchor": "left",
                "y": above,
                "yanchor": "bottom",
                "font": {"size": FONT_SIZE - 1},
            }
            if line.title:
                look["title"] = {"text": line.title, "font": {"size": FONT_SIZE - 1}, "side": "left"}
            figure.update_layout({name: look})
        return figure


class LegendRow(NamedTuple):
    """A legend above a grid.

    Attributes:
        title: In front of its entries; may be empty.
        entries: Traces that stand for a whole legend group; a click hides the group in every panel.
    """

    title: str
    entries: Sequence[go.Scatter]


def _filled(row: LegendRow) -> list[LegendRow]:
    """The legend's entries in lines of paper width, filled from the left."""
    lines = [LegendRow(row.title, [])]
    used = _LETTER_WIDTH * len(row.title)
    for entry in row.entries:
        width = _ENTRY_WIDTH + _LETTER_WIDTH * len(str(entry["name"]))
        if used + width > PAPER_WIDTH and lines[-1].entries:
            lines.append(LegendRow("", []))
            used = 0.0
        lines[-1] = lines[-1]._replace(entries=[*lines[-1].entries, entry])
        used += width
    return lines
