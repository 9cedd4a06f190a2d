"""Prose, tables and data of a page as HTML; whatever a run's strings contain, they stay text."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import pandas as pd

from qfl_interp.plots.theme import format_power
from qfl_interp.report.section import Link, Sparkline, Verdict

BADGES: Final = ("quiet", "loud", "mixed", "undecided", "damaged")
# Of a small curve, in pixels.
_SPARK_WIDTH, _SPARK_HEIGHT = 96, 22


def escape(text: object) -> str:
    """Any value as text between tags or in an attribute."""
    return html.escape(str(text), quote=True)


def prose(text: str) -> str:
    """Escaped text with paragraphs, lists, and the few marks `Section.text` names."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("- "):
            items = (" ".join(item.split()) for item in re.split(r"(?:^|\n)- ", block) if item)
            blocks.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        elif block:
            blocks.append(f"<p>{_inline(' '.join(block.split()))}</p>")
    return "".join(blocks)


def _inline(text: str) -> str:
    """Marks inside a line; the text is escaped first, so that no mark can carry markup of its own."""
    # Every second part stood between backticks, and is not searched for other marks.
    parts = re.split(r"`([^`]+)`", html.escape(text))
    parts[1::2] = [f"<code>{code}</code>" for code in parts[1::2]]
    for index in range(0, len(parts), 2):
        marked = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", parts[index])
        marked = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", marked)
        parts[index] = re.sub(r"https://arxiv\.org/abs/[\d.]+\d", r'<a href="\g<0>" rel="noreferrer">\g<0></a>', marked)
    return "".join(parts)


def badge(verdict: str) -> str:
    """A verdict in its colour."""
    look = verdict if verdict in BADGES else "plain"
    return f'<span class="badge {look}">{escape(verdict)}</span>'


def link(to: str, text: str) -> str:
    """A link to a relative path or an anchor; a path is quoted and led by a dot, so that it names no other place."""
    return f'<a href="{escape(to if to.startswith("#") else "./" + quote(to))}">{escape(text)}</a>'


def table(rows: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """A table in a box of its own that scrolls sideways; over a column's head stands what it means."""
    sides = ["number" if kind.kind in "iuf" else "word" for kind in rows.dtypes]
    head = "".join(
        f'<th class="{side}" scope="col"{_meaning(columns.get(str(name), ""))}>{escape(name)}</th>'
        for name, side in zip(rows.columns, sides, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(_cell(value, side) for value, side in zip(row, sides, strict=True)) + "</tr>"
        for row in rows.itertuples(index=False, name=None)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _meaning(text: str) -> str:
    """What a column means, as an attribute of its head."""
    return f' title="{escape(text)}"' if text else ""


def _cell(value: Any, side: str) -> str:
    """One cell; a number that is shown rounded keeps its value for sorting."""
    exact = f' data-value="{float(value)!r}"' if isinstance(value, float) and math.isfinite(value) else ""
    return f'<td class="{side}"{exact}>{_inner(value)}</td>'


def _inner(value: Any) -> str:
    """What stands in a cell."""
    if isinstance(value, Link):
        return link(value.to, value.text)
    if isinstance(value, Verdict):
        return f'<div class="verdict">{badge(value.verdict)}{escape(value.more)}</div>'
    if isinstance(value, Sparkline):
        return _sparkline(value)
    return "".join(map(_inner, value)) if isinstance(value, tuple) else escape(shown(value))


def shown(value: Any) -> str:
    """A value as a cell says it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if value is True or value is False:
        return "yes" if value else "no"
    return decimal(value) if isinstance(value, float) else str(value)


def decimal(value: float) -> str:
    """A number with four digits, of large ones all before the point; powers of ten beyond a million and below 1e-4."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return format_power(value)
    return f"{value:.4g}" if abs(value) < 999.5 else f"{value:,.0f}"


def _sparkline(of: Sparkline) -> str:
    """The curve, with a dot at its end."""
    values = [float(value) for value in of.values if math.isfinite(value)]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    room, span = 3.0, (high - low) or 1.0
    points = [
        (
            room + (_SPARK_WIDTH - 2 * room) * index / (len(values) - 1),
            room + (_SPARK_HEIGHT - 2 * room) * (high - value) / span,
        )
        for index, value in enumerate(values)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    (x, y), label = points[-1], escape(of.label)
    return (
        f'<svg class="spark" width="{_SPARK_WIDTH}" height="{_SPARK_HEIGHT}" role="img" aria-label="{label}">'
        f'<polyline points="{line}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2"/></svg>'
    )


def downloads(tables: Mapping[str, pd.DataFrame]) -> str:
    """Links that hold whole tables as CSV files."""
    links = "".join(_csv_link(name, rows) for name, rows in tables.items())
    return f'<p class="downloads">Data: {links}</p>' if links else ""


def _csv_link(name: str, rows: pd.DataFrame) -> str:
    data = base64.b64encode(rows.to_csv(index=False).encode()).decode()
    file, size = f"{escape(name)}.csv", f"{len(rows):,} rows, {len(rows.columns)} columns"
    return f'<a download="{file}" data-size="{size}" href="data:text/csv;charset=utf-8;base64,{data}">{file}</a>'
