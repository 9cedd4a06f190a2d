"""Legends in rows above a plot area, each row as long as the paper allows.

Plotly breaks a long row into columns of equal width and lets it grow over what stands above; so each row is a legend of
its own, with a height that is counted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from qfl_interp.plots.text import text_width
from qfl_interp.plots.theme import FONT_SIZE, legend_row

# Pixels that a row takes.
ROW_HEIGHT: Final = 20
# The line before an entry's name, with what stands around it.
_ENTRY_WIDTH: Final = 44


def legend_name(number: int) -> str:
    """Plotly's name of a figure's legend, from 1."""
    return "legend" if number == 1 else f"legend{number}"


def in_rows(names: Sequence[str], room: float, title: str = "") -> list[list[str]]:
    """The entries in rows of at most `room` pixels, filled from the left; the first row has the title before it."""
    rows: list[list[str]] = [[]]
    used = text_width(title, FONT_SIZE - 1) + 8 * bool(title)
    for name in names:
        width = _ENTRY_WIDTH + text_width(name, FONT_SIZE - 1)
        if used + width > room and rows[-1]:
            rows.append([])
            used = 0.0
        rows[-1].append(name)
        used += width
    return rows


def legends_of(rows: Iterable[Sequence[str]], first: int = 1) -> dict[str, str]:
    """Which legend each entry is listed in, as field `legend` of its trace; one legend a row."""
    return {name: legend_name(number) for number, row in enumerate(rows, start=first) for name in row}


def legend_layout(
    of: Mapping[str, str], height: float, above: float = 0.0, y: float = 1.0, **look: Any
) -> dict[str, Any]:
    """The layout of legends in rows, the first one on top.

    Args:
        of: As `legends_of` gives them.
        height: Pixels of the plot area.
        above: Pixels from `y` to the lowest row.
        y: A height of the figure, as a fraction of the plot area.
        **look: Further fields of each.
    """
    rows = list(dict.fromkeys(of.values()))
    return {
        name: legend_row(0, y + (above + ROW_HEIGHT * (len(rows) - 1 - place)) / height, **look)
        for place, name in enumerate(rows)
    }
