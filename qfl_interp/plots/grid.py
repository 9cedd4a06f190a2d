"""Panels side by side and below each other: where each stands, its axes and titles, and legends above all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import plotly.graph_objects as go

from qfl_interp.plots.legend import ROW_HEIGHT, in_rows, legend_name
from qfl_interp.plots.theme import BAND, FONT_SIZE, is_narrow, legend_row, new_figure, page_width, stretch, text_at

_PAD: Final = 10
# Left of a panel: tick labels; of a block's first one also the axis title.
_TICKS, _TITLE = 40, 24
_RIGHT, _GAP, _FOOT = 10, 12, 50

# How a legend shows a shaded stretch.
BAND_MARK: Final = {"color": BAND, "size": 11, "symbol": "square"}


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

    def title(self, text: str, above: int = 2, *, centred: bool = False, size: int = FONT_SIZE) -> dict[str, Any]:
        """A text some pixels above its left end, or above its middle, as an annotation."""
        x, anchor = (sum(self.x_domain) / 2, "center") if centred else (self.x_domain[0], "left")
        return text_at(text, x, self.y_domain[1], xanchor=anchor, yshift=above, font={"size": size})

    def stretch(self, start: float, end: float, **look: Any) -> dict[str, Any]:
        """What `theme.stretch` draws, from the panel's bottom to its top."""
        return stretch(start, end, xref=self.x, yref=f"{self.y} domain", **look)

    def band(self, start: float, end: float) -> dict[str, Any]:
        """The transition of the loss, shaded."""
        return self.stretch(start, end, name="transition", fillcolor=BAND, line={"width": 0})

    @property
    def axes(self) -> dict[str, Any]:
        """What puts a trace into this panel."""
        return {"xaxis": self.x, "yaxis": self.y}

    def layout(self, x_axis: dict[str, Any], y_axis: dict[str, Any]) -> dict[str, Any]:
        """Both axes in place, for `update_layout`."""
        return {
            f"xaxis{self.suffix}": x_axis | {"domain": self.x_domain, "anchor": self.y},
            f"yaxis{self.suffix}": y_axis | {"domain": self.y_domain, "anchor": self.x},
        }


def stack_cells(heights: Sequence[int], below: Sequence[int]) -> tuple[int, list[Cell]]:
    """Panels below each other over the whole width, and the height of the plot area they fill.

    Args:
        heights: In pixels, from the top.
        below: Pixels below each; under the last one there is the margin.
    """
    inner = sum(heights) + sum(below[:-1])
    tops = [sum(heights[:n]) + sum(below[:n]) for n in range(len(heights))]
    return inner, [
        Cell(number, (0.0, 1.0), (1 - (top + height) / inner, 1 - top / inner))
        for number, (top, height) in enumerate(zip(tops, heights, strict=True), start=1)
    ]


class Grid:
    """Columns of panels side by side, wrapped into blocks; every column is a stack.

    Args:
        heights: Of a column's panels in pixels, from the top.
        n: Columns in all.
        n_columns: Most columns side by side.
        span: Left end of the first and right end of the last column, as fractions of the plot area.
        gap: Between two columns, likewise.
        head: Pixels above a column, for its title.
        between: Pixels between the panels of a column.
        foot: Pixels between two blocks, for the axis above; the lowest block stands on the margin.
        above: Pixels left free above the first block.
        first: Number of the first panel's axes.
    """

    def __init__(
        self,
        heights: Sequence[float],
        n: int,
        n_columns: int,
        *,
        span: tuple[float, float] = (0.0, 1.0),
        gap: float = 0.04,
        head: int = 0,
        between: int = _GAP,
        foot: int = _FOOT,
        above: int = 0,
        first: int = 1,
    ) -> None:
        self._heights, self._n, self._across = tuple(heights), n, min(n, n_columns)
        self._span, self._gap, self._head, self._between, self._above = span, gap, head, between, above
        self._first = first
        self._block = head + sum(heights) + between * (len(heights) - 1) + foot
        self.height = round(above + self._block * math.ceil(n / self._across) - foot)

    def is_first(self, index: int) -> bool:
        """Whether a column is the leftmost of its block, which has the titles of the y axes."""
        return index % self._across == 0

    def is_last(self, index: int) -> bool:
        """Whether there is no column below, which has the titles of the x axes."""
        return index + self._across >= self._n

    def cell(self, index: int, row: int = 0) -> Cell:
        """Panel `row`, from the top, of column `index`."""
        block, place = divmod(index, self._across)
        width = (self._span[1] - self._span[0] - self._gap * (self._across - 1)) / self._across
        left = self._span[0] + place * (width + self._gap)
        top = self._above + block * self._block + self._head + sum(self._heights[:row]) + self._between * row
        y_domain = (max(1 - (top + self._heights[row]) / self.height, 0.0), 1 - top / self.height)
        return Cell(index * len(self._heights) + row + self._first, (left, min(left + width, 1.0)), y_domain)


class PaperGrid(Grid):
    """A grid as wide as the paper, with room for tick labels beside each column and titles at the left edge.

    Args:
        heights: As in `Grid`; likewise the others.
        n: Columns in all.
        n_columns: Columns side by side.
        head: Pixels above a column.
    """

    def __init__(self, heights: Sequence[int], n: int, n_columns: int, head: int) -> None:
        width = page_width()
        span = ((_TITLE + _TICKS) / width, 1 - _RIGHT / width)
        across = 1 if is_narrow() else n_columns
        super().__init__(heights, n, across, span=span, gap=(_TICKS + _RIGHT) / width, head=head)
        # All room is in the plot area: legends above it may widen the margins.
        self.height += _FOOT

    def head(self, index: int, text: str) -> dict[str, Any]:
        """A column's head as an annotation."""
        cell = self.cell(index)
        y = cell.y_domain[1] + self._head / self.height
        left = cell.x_domain[0] - 0.8 * _TICKS / page_width()
        return text_at(text, left, y, yanchor="top", align="left", font={"size": FONT_SIZE})

    def side_title(self, index: int, row: int, text: str) -> dict[str, Any]:
        """The title of the y axes of one row of panels, left of column `index`, as an annotation."""
        low, high = self.cell(index, row).y_domain
        return text_at(text, 0.004, (low + high) / 2, textangle=-90, yanchor="middle")

    def figure(self, filename: str, legends: Sequence[LegendRow] = ()) -> go.Figure:
        """An empty figure of the right height, with legends below each other above the panels.

        Args:
            filename: Name of a downloaded image, without its ending.
            legends: From top to bottom.
        """
        lines = [line for row in legends for line in row.broken()]
        top = ROW_HEIGHT * len(lines) + (_PAD if lines else 0)
        figure = new_figure(filename, self.height, {"l": 0, "r": 0, "t": top, "b": 0})
        figure.update_layout(hovermode="closest")
        # A legend a line, so that each has the height counted on; the template gives only the first no background.
        for number, line in enumerate(lines, start=1):
            name = legend_name(number)
            for entry in line.entries:
                figure.add_trace(go.Scatter({**entry.to_plotly_json(), "legend": name}))
            title = {"text": line.title, "font": {"size": FONT_SIZE - 1}, "side": "left"} if line.title else None
            above = 1 + ROW_HEIGHT * (len(lines) - number) / self.height
            figure.update_layout({name: legend_row(0.01, above, title=title)})
        return figure


class LegendRow(NamedTuple):
    """A legend above a grid.

    Attributes:
        title: In front of its entries; may be empty.
        entries: Traces as `legend_entry` makes them; a click hides their group in every panel.
    """

    title: str
    entries: Sequence[go.Scatter]

    def broken(self) -> list[LegendRow]:
        """The legend's entries in rows of paper width; the first has the title."""
        by_name = {str(entry["name"]): entry for entry in self.entries}
        rows = in_rows(list(by_name), page_width() - 2 * _PAD, self.title)
        return [
            LegendRow("" if number else self.title, [by_name[name] for name in row]) for number, row in enumerate(rows)
        ]
