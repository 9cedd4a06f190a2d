"""One component's panel of a patching figure: its cells and what they are called, and its axis of tokens."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import pandas as pd

from qfl_interp.plots.grid import Cell
from qfl_interp.plots.maps import CellMap, place_words
from qfl_interp.plots.slider import AXIS_HEIGHT
from qfl_interp.plots.theme import FONT_SIZE, visible
from qfl_interp.tables import select

# Between two maps without an axis.
GAP: Final = 26
# A second line under the tokens, with the numbers of at most so many positions.
_NUMBERS: Final = 12
_MOST_NUMBERED: Final = 26


class PatchMap(NamedTuple):
    """One component's panel.

    Attributes:
        component: Its name in the table.
        cells: Places against positions; against heads where every position was patched at once.
        across_heads: Whether the columns are heads.
        tokens: What stands at each column.
    """

    component: str
    cells: CellMap
    across_heads: bool
    tokens: list[str]

    @classmethod
    def of(cls, rows: pd.DataFrame, component: str) -> PatchMap:
        """The panel of one component of the table."""
        chosen = select(rows, component=component)
        across_heads = set(chosen["position"]) == {-1} and bool((chosen["head"] >= 0).any())
        shown = heads_as_positions(chosen) if across_heads else chosen
        cells = CellMap.by_place(shown, "position")
        token_at = dict(zip(shown["position"], shown["token"], strict=True))
        tokens = [str(at) if across_heads else visible(token_at[at]) for at in cells.across]
        return cls(component, cells, across_heads, tokens)

    def of_step(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Its rows among those of one step, by the key of its cells."""
        chosen = select(rows, component=self.component)
        return heads_as_positions(chosen) if self.across_heads else chosen

    @property
    def height(self) -> int:
        """Pixels of the plot area."""
        per_head = any(head >= 0 for _, head in self.cells.down)
        return max(min((14 if per_head else 24) * len(self.cells.down), 420), 72)

    @property
    def names(self) -> list[list[str]]:
        """What a hover text calls each cell."""
        columns = list(zip(self.cells.across, self.tokens, strict=True))
        if self.across_heads:
            return [[f"{place_words(row[0], at)}, at every position" for at, _ in columns] for row in self.cells.down]
        return [
            [f"“{token}” at position {at}, {place_words(row[0], row[1])}" for at, token in columns]
            for row in self.cells.down
        ]

    @property
    def token_height(self) -> int:
        """Pixels that the columns' names take more than one line of text does: long tokens stand upright."""
        if self.across_heads:
            return 0
        longest = max(map(len, self.tokens))
        return min(6 * longest + 2 * _NUMBERS, 90) if longest > 1 else _NUMBERS

    def below(self, following: PatchMap | None) -> int:
        """Pixels between the map and the next, or the slider; the axis is written under the last of equal columns."""
        if following and (self.cells.across, self.tokens) == (following.cells.across, following.tokens):
            return GAP
        return AXIS_HEIGHT + self.token_height + (GAP if following else 0)

    def layout(self, cell: Cell, named: bool) -> dict[str, Any]:
        """Axes of the panel, with its columns written if `named`."""
        texts, upright = self.tokens, any(len(token) > 1 for token in self.tokens) and not self.across_heads
        if not self.across_heads:
            stride, apart = math.ceil(len(texts) / _MOST_NUMBERED), " " if upright else "<br>"
            texts = [
                token if number % stride else f"{token}{apart}<i>{position}</i>"
                for number, (token, position) in enumerate(zip(texts, self.cells.across, strict=True))
            ]
        x_axis = {
            "showticklabels": named,
            "ticks": "outside" if named else "",
            "ticklen": 2,
            "tickfont": {"size": FONT_SIZE - 2},
            "tickvals": self.cells.across,
            "ticktext": texts,
            "tickangle": -90 if upright else 0,
            "dtick": None,
        }
        return self.cells.layout(cell, **x_axis)


def heads_as_positions(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of heads that were patched at every position at once, with the head in the place of the position."""
    return rows.assign(position=rows["head"], head=-1)
