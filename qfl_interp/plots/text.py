"""How wide a text is on a figure, and where it breaks into lines."""

from __future__ import annotations

import html
import re
from typing import Final

from qfl_interp.plots.theme import FONT_SIZE, page_width

# Widths of letters in thousandths of their size, of Helvetica, Arial and Liberation Sans alike; capitals are wider.
_NARROW: Final = {
    " ": 278, "!": 278, "'": 191, "(": 333, ")": 333, "*": 389, ",": 278, "-": 333, ".": 278, "/": 278, ":": 278,
    ";": 278, "I": 278, "[": 278, "]": 278, "`": 333, "c": 500, "f": 278, "i": 222, "j": 222, "k": 500, "l": 222,
    "r": 333, "s": 500, "t": 278, "v": 500, "x": 500, "y": 500, "z": 500, "{": 334, "|": 260, "}": 334, "·": 333,
    "%": 889, "@": 1015, "M": 833, "W": 944, "m": 833, "w": 722, "→": 1000, "←": 1000,
}  # fmt: skip
_SMALL: Final = frozenset("⁰¹²³⁴⁵⁶⁷⁸⁹⁻₀₁₂₃")
# Bold letters are so much wider; all get a little more, since a browser rounds them to its grid.
_BOLD: Final = 1.08
_ROUNDING: Final = 1.02
_LINE: Final = 1.3


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """Pixels that one line of plotly's HTML subset takes, in letters of a size; the widest line of several."""
    if "<br>" in text:
        return max(text_width(line, size) for line in text.split("<br>"))
    width, bold = 0.0, False
    for part in re.split(r"(<[^>]*>)", text):
        if part.startswith("<"):
            bold = {"<b>": True, "</b>": False}.get(part, bold)
        else:
            width += sum(map(_letter, html.unescape(part))) * (_BOLD if bold else 1.0)
    return width * size / 1000 * _ROUNDING


def _letter(letter: str) -> int:
    if letter in _SMALL:
        return 370
    return _NARROW.get(letter) or (700 if letter.isupper() else 1000 if ord(letter) > 0x2E80 else 585)


def wrapped(text: str, room: float, size: float = FONT_SIZE) -> str:
    """The text in lines no wider than `room` pixels: broken between parts that a dot joins, else at blanks.

    A word that is wider than the room stays whole. Tags of plotly's HTML subset may reach over lines.
    """
    if text_width(text, size) <= room:
        return text
    lines = [""]
    for part in re.split(r"(?<=\S)\s+·\s+(?=\S)", text):
        joined = f"{lines[-1]} · {part}" if lines[-1] else part
        if text_width(joined, size) <= room:
            lines[-1] = joined
        else:
            # A part that needs several lines begins a line of its own.
            lines += _broken(part, room, size)
    return "<br>".join(line for line in lines if line)


def _broken(text: str, room: float, size: float) -> list[str]:
    """A text in lines, broken at blanks outside of tags."""
    lines: list[str] = []
    for word in re.findall(r"(?:<[^>]*>|[^\s<])+", text):
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= room:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def room(beside: int = 74) -> int:
    """Pixels that a line of text has above a plot area, with so many beside it."""
    return page_width() - beside


def n_lines(text: str) -> int:
    """Lines of a text."""
    return text.count("<br>") + 1


def line_height(size: float = FONT_SIZE) -> float:
    """Pixels from one line of a text to the next."""
    return _LINE * size
