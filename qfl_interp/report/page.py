"""One self-contained HTML page from a run's card and sections: no request leaves it, it works from a file."""

from __future__ import annotations

import base64
import html
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from qfl_interp.plots.theme import PAPER_WIDTH, figure_json, format_power, template_json
from qfl_interp.report.writing import write_page

# Nothing may be loaded from elsewhere, whatever a run's strings contain.
_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "worker-src blob:; base-uri 'none'; form-action 'none'"
)
_BADGES: Final = ("quiet", "loud", "mixed", "undecided")
_TILES: Final = {
    "val_exact_answer": "exact match, answer",
    "val_exact": "exact match, paper count",
    "val_loss_answer": "validation loss, answer",
    "val_loss": "validation loss, paper count",
    "n_parameters": "parameters",
    "n_steps": "steps",
    "nominal_flops": "FLOPs, nominal",
    "seconds": "training time",
}


class Finding(NamedTuple):
    """The verdict on one feature.

    Attributes:
        feature: Its name.
        verdict: "quiet", "loud", "not learned", "no transition", "mixed" where the thirds differ, or "undecided" where
            the range of the lead leaves both quiet and loud open.
        sentence: What was found, to be read after the feature's name and the verdict.
    """

    feature: str
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Section:
    """One section of the page; its parts are drawn in the order of the fields.

    Args:
        title: Heading.
        text: Plain prose. Blank lines part paragraphs, "- " starts a list item; `code`, **bold**, *italics*
            and arXiv links are marked up, all else is escaped.
        figure: Drawn by the page's plotly.js.
        note: Caption, marked up like `text`.
        table: Shown as it is; floats with four digits.
        downloads: Tables offered as CSV files, by name.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    note: str = ""
    table: pd.DataFrame | None = None
    downloads: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def render_report(
    card: Mapping[str, Any], sections: Sequence[Section], *, findings: Sequence[Finding] = (), title: str = ""
) -> str:
    """The page's HTML, with plotly.js inlined once if any section has a figure.

    Args:
        card: What the run is: known numbers become tiles, all is listed; nested mappings are folded away.
        sections: In order.
        findings: Verdicts for the page's head.
        title: Heading; "<task>, length <length>" from the card by default.
    """
    heading = title or _default_title(card)
    figures = [section.figure for section in sections if section.figure is not None]
    numbers = iter(range(len(figures)))
    body = [_section(section, index, numbers) for index, section in enumerate(sections)]
    links = "".join(f'<a href="#s{i}">{html.escape(section.title)}</a>' for i, section in enumerate(sections))
    scripts = _scripts(figures) if figures else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{html.escape(heading)}</title>
<style>{_asset("page.css")}</style>
</head>
<body>
<header>
<p class="kicker">qfl_interp report</p>
<h1>{html.escape(heading)}</h1>
{_findings(findings)}
{_tiles(card)}
</header>
<nav>{links}<a href="#card">Run card</a></nav>
<main>
{"".join(body)}
{_card(card)}
</main>
<noscript><p class="noscript">The figures need JavaScript; tables and text do not.</p></noscript>
{scripts}
</body>
</html>
"""


def write_report(
    path: str | os.PathLike[str],
    card: Mapping[str, Any],
    sections: Sequence[Section],
    *,
    findings: Sequence[Finding] = (),
    title: str = "",
) -> Path:
    """Writes `render_report` to a file, whole or not at all, and returns its path.

    Raises:
        QflError: The file cannot be written; one that was there before is as it was.
    """
    return write_page(path, render_report(card, sections, findings=findings, title=title))


def _asset(name: str) -> str:
    """A file of this package."""
    return resources.files("qfl_interp.report").joinpath(name).read_text(encoding="utf-8")


def _scripts(figures: Sequence[Figure]) -> str:
    """plotly.js, the figures as JSON, and the code that draws them."""
    data = [
        f'<script type="application/json" id="figure-{i}">{_json(figure_json(f))}</script>'
        for i, f in enumerate(figures)
    ]
    looks = [
        f'<script type="application/json" id="template-{name}">{_json(template_json(dark))}</script>'
        for name, dark in (("light", False), ("dark", True))
    ]
    code = [f"<script>{get_plotlyjs()}</script>", *looks, *data, f"<script>{_asset('page.js')}</script>"]
    return "\n".join(code)


def _json(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _default_title(card: Mapping[str, Any]) -> str:
    """Task and length, or the run's id."""
    if "task" not in card:
        return str(card.get("run_id", "Run"))
    return f"{card['task']}, length {card['length']}" if "length" in card else str(card["task"])


def _findings(findings: Sequence[Finding]) -> str:
    """The verdicts, one line each."""
    lines = []
    for finding in findings:
        badge = finding.verdict if finding.verdict in _BADGES else "plain"
        lines.append(
            f"<li><strong>{html.escape(finding.feature.replace('_', ' '))}</strong>"
            f'<span class="badge {badge}">{html.escape(finding.verdict)}</span>'
            f"<span>{html.escape(finding.sentence)}</span></li>"
        )
    return f'<ul class="findings">{"".join(lines)}</ul>' if lines else ""


def _tiles(card: Mapping[str, Any]) -> str:
    """The card's main numbers, large."""
    tiles = [
        f"<div><dd>{html.escape(_number(key, card[key]))}</dd><dt>{name}</dt></div>"
        for key, name in _TILES.items()
        if card.get(key) is not None
    ]
    return f'<dl class="tiles">{"".join(tiles)}</dl>' if tiles else ""


def _number(key: str, value: Any) -> str:
    """A value of the card as its key asks for."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    if key.startswith("val_exact"):
        return f"{value:.1%}"
    if key == "seconds":
        return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
    if isinstance(value, int):
        return f"{value:,}" if key != "seed" else str(value)
    return format_power(value) if value and not 1e-4 <= abs(value) < 1e6 else f"{value:.4g}"


def _card(card: Mapping[str, Any]) -> str:
    """Everything the card says; mappings inside it are folded away."""
    plain = {key: value for key, value in card.items() if not isinstance(value, Mapping)}
    groups = {key: value for key, value in card.items() if isinstance(value, Mapping)}
    folded = "".join(
        f"<details><summary>{html.escape(str(key))}</summary>{_definitions(value)}</details>"
        for key, value in groups.items()
    )
    return f'<section id="card"><h2>Run card</h2>{_definitions(plain)}{folded}</section>'


def _definitions(values: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    rows = [
        f"<div><dt>{html.escape(str(key))}</dt><dd>{html.escape(_number(str(key), value))}</dd></div>"
        for key, value in values.items()
    ]
    return f'<dl class="card">{"".join(rows)}</dl>'


def _section(section: Section, index: int, numbers: Iterator[int]) -> str:
    """One section; `numbers` counts the figures."""
    parts = [f"<h2>{html.escape(section.title)}</h2>", _prose(section.text)]
    if section.figure is not None:
        parts.append(_figure(section, next(numbers)))
    elif section.note:
        parts.append(f'<div class="note">{_prose(section.note)}</div>')
    if section.table is not None:
        parts.append(_table(section.table))
    if section.downloads:
        links = "".join(_csv_link(name, table) for name, table in section.downloads.items())
        parts.append(f'<p class="downloads">Data: {links}</p>')
    return f'<section id="s{index}">{"".join(parts)}</section>'


def _figure(section: Section, number: int) -> str:
    """The place plotly draws into, with its height reserved, export buttons and caption."""
    layout: Any = section.figure.layout if section.figure is not None else None
    height = int(layout.height or 450)
    # Square cells leave the rest of a wide page empty, with the titles and the legend lost in it.
    width = f";max-width:{PAPER_WIDTH}px" if layout.yaxis.scaleanchor else ""
    label = html.escape(section.title, quote=True)
    buttons = "".join(
        f'<button type="button" data-figure="{number}" data-format="{kind}">{kind.upper()}</button>'
        for kind in ("svg", "png")
    )
    return (
        f'<figure><div class="scroll"><div class="plot" id="plot-{number}" role="img" aria-label="{label}" '
        f'style="height:{height}px{width}"></div></div><figcaption>{_prose(section.note)}'
        f'<p class="export">Save at paper size: {buttons}</p></figcaption></figure>'
    )


def _table(table: pd.DataFrame) -> str:
    numeric = [kind.kind in "iuf" for kind in table.dtypes]
    sides = ["number" if is_number else "word" for is_number in numeric]
    head = "".join(
        f'<th class="{side}">{html.escape(str(name))}</th>' for name, side in zip(table.columns, sides, strict=True)
    )
    rows = [
        "<tr>"
        + "".join(
            f'<td class="{side}">{html.escape(_cell(value))}</td>' for value, side in zip(row, sides, strict=True)
        )
        + "</tr>"
        for row in table.itertuples(index=False, name=None)
    ]
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if value is True or value is False:
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_power(value) if value and not 1e-4 <= abs(value) < 1e6 else f"{value:.4g}"
    return str(value)


def _csv_link(name: str, table: pd.DataFrame) -> str:
    data = base64.b64encode(table.to_csv(index=False).encode()).decode()
    file = html.escape(f"{name}.csv", quote=True)
    return f'<a download="{file}" href="data:text/csv;charset=utf-8;base64,{data}">{file}</a>'


def _prose(text: str) -> str:
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
