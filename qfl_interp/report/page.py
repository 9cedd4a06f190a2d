"""One HTML page from a run's card and sections: no request leaves it, it works from a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from qfl_interp.digests import digest
from qfl_interp.plots.theme import PAPER_WIDTH, figure_json, template_json
from qfl_interp.report.card import configuration, tiles
from qfl_interp.report.markup import badge, downloads, escape, link, prose, table
from qfl_interp.report.section import Finding as Finding
from qfl_interp.report.section import Section as Section
from qfl_interp.report.writing import write_page

# Nothing may be loaded from elsewhere, whatever a run's strings contain.
_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'{scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
    "worker-src blob:; base-uri 'none'; form-action 'none'"
)
# What tells a page of ours from others'.
GENERATOR: Final = '<meta name="generator" content="qfl_interp">'
# Of a page that shares plotly.js with others: files beside it, read from a disk or from the page's own host.
_OWN_SCRIPTS: Final = " 'self' file:"
# The reader's choice of light or dark counts before anything is painted.
_EARLY: Final = (
    'try { const chosen = localStorage.getItem("qfl-theme"); '
    'if (chosen === "light" || chosen === "dark") document.documentElement.style.colorScheme = chosen; } catch {}'
)


def render_report(
    card: Mapping[str, Any],
    sections: Sequence[Section],
    *,
    findings: Sequence[Finding] = (),
    title: str = "",
    plotly: str = "",
    home: str = "",
) -> str:
    """The page's HTML, with plotly.js inlined once if any section has a figure.

    Args:
        card: What the run is: known numbers become tiles, all is listed under "Configuration and environment".
        sections: In order.
        findings: Verdicts for the page's head.
        title: Heading; "<task>, length <length>" from the card by default.
        plotly: The relative path of a file of plotly.js that pages share; by default it is part of the page.
        home: The relative path of the index that the page belongs to.
    """
    heading = title or _default_title(card)
    anchors = _anchors([section.title for section in sections])
    figures = [section.figure for section in sections if section.figure is not None]
    numbers = iter(range(len(figures)))
    body = [_section(section, anchor, numbers) for section, anchor in zip(sections, anchors, strict=True)]
    contents = dict(zip(anchors, (section.title for section in sections), strict=True))
    if any(section.downloads for section in sections):
        body.append('<section id="data" data-title="Data" hidden><h2>Data</h2></section>')
        contents["data"] = "Data"
    if card:
        body.append(configuration(card))
        contents["configuration"] = "Configuration and environment"
    links = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in contents.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY.format(scripts=_OWN_SCRIPTS if plotly else "")}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{GENERATOR}
<link rel="icon" href="data:,">
<title>{escape(heading)}</title>
<script>{_EARLY}</script>
<style>{_asset("page.css")}</style>
</head>
<body>
<nav aria-label="Contents">
<div class="bar">
<button type="button" id="menu" aria-expanded="false" aria-controls="contents">Contents</button>
<div class="search" role="search">
<input id="search" type="search" placeholder="Search" aria-label="Search sections and tables" autocomplete="off">
<ol id="found" hidden></ol>
</div>
<button type="button" id="theme" aria-label="Light or dark" title="Light or dark">◐</button>
</div>
<ol id="contents">{links}</ol>
</nav>
<div class="page">
<header>
<p class="kicker">{_kicker(card, home)}</p>
<h1>{escape(heading)}</h1>
{_findings(findings)}
{tiles(card)}
</header>
<main>
{"".join(body)}
</main>
<noscript><p class="noscript">Figures and search need JavaScript; tables, text and data do not.</p></noscript>
</div>
{_scripts(figures, plotly)}
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
    plotly: str = "",
    home: str = "",
) -> Path:
    """Writes `render_report` to a file, whole or not at all, and returns its path.

    Raises:
        QflError: The file cannot be written; one that was there before is as it was.
    """
    return write_page(path, render_report(card, sections, findings=findings, title=title, plotly=plotly, home=home))


def anchor_of(title: str) -> str:
    """What a section of this title is linked by: its letters and digits, lower case."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def _anchors(titles: Sequence[str]) -> list[str]:
    """An anchor for each title; a second one of the same letters gets a number."""
    found: list[str] = []
    # What the page itself calls so.
    taken = {"data", "configuration", "menu", "search", "theme", "found", "contents"}
    for title in titles:
        name = anchor_of(title)
        anchor, count = name, 1
        while anchor in taken:
            count += 1
            anchor = f"{name}-{count}"
        taken.add(anchor)
        found.append(anchor)
    return found


def page_look() -> str:
    """A digest of what pages look like and do, which changes with this package."""
    return digest(*map(_asset, ("page.css", "controls.js", "figures.js")), version("qfl-interp"))


def _asset(name: str) -> str:
    """A file of this package."""
    return resources.files("qfl_interp.report").joinpath(name).read_text(encoding="utf-8")


def _scripts(figures: Sequence[Figure], plotly: str) -> str:
    """The page's own code; with figures plotly.js, the figures as JSON, and the code that draws them."""
    controls = f"<script>{_asset('controls.js')}</script>"
    if not figures:
        return controls
    data = [
        f'<script type="application/json" id="figure-{i}">{_json(figure_json(f))}</script>'
        for i, f in enumerate(figures)
    ]
    looks = [
        f'<script type="application/json" id="template-{name}">{_json(template_json(dark))}</script>'
        for name, dark in (("light", False), ("dark", True))
    ]
    library = f'<script src="{escape(plotly)}"></script>' if plotly else f"<script>{get_plotlyjs()}</script>"
    return "\n".join([controls, library, *looks, *data, f"<script>{_asset('figures.js')}</script>"])


def _json(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _default_title(card: Mapping[str, Any]) -> str:
    """Task and length, or the run's id."""
    if "task" not in card:
        return str(card.get("run_id", "Run"))
    return f"{card['task']}, length {card['length']}" if "length" in card else str(card["task"])


def _kicker(card: Mapping[str, Any], home: str) -> str:
    """What the page is, and of which run; a link to the index."""
    seed = f"seed {card['seed']}" if "seed" in card else ""
    said = [link(home, "All runs") if home else "qfl_interp report", escape(card.get("run_id", "")), escape(seed)]
    return " · ".join(filter(None, said))


def _findings(findings: Sequence[Finding]) -> str:
    """The verdicts, one line each."""
    lines = [
        f"<li><strong>{escape(finding.feature.replace('_', ' '))}</strong>{badge(finding.verdict)}"
        f"<span>{escape(finding.sentence)}</span></li>"
        for finding in findings
    ]
    return f'<ul class="findings">{"".join(lines)}</ul>' if lines else ""


def _section(section: Section, anchor: str, numbers: Iterator[int]) -> str:
    """One section; `numbers` counts the figures."""
    parts = [f"<h2>{escape(section.title)}</h2>", prose(section.text)]
    if section.figure is not None:
        parts.append(_figure(section, section.figure, next(numbers)))
    elif section.note:
        parts.append(f'<div class="note">{prose(section.note)}</div>')
    if section.table is not None:
        parts.append(table(section.table, section.columns))
    parts.append(downloads(section.downloads))
    return f'<section id="{anchor}" data-title="{escape(section.title)}">{"".join(parts)}</section>'


def _figure(section: Section, figure: Figure, number: int) -> str:
    """The place plotly draws into, with its height reserved, export buttons and caption."""
    layout: Any = figure.layout
    height = int(layout.height or 450)
    # Square cells leave the rest of a wide page empty, with the titles and the legend lost in it.
    width = f";max-width:{PAPER_WIDTH}px" if layout.yaxis.scaleanchor else ""
    buttons = "".join(
        f'<button type="button" data-figure="{number}" data-format="{kind}">{kind.upper()}</button>'
        for kind in ("svg", "png")
    )
    return (
        f'<figure><div class="frame"><div class="plot" id="plot-{number}" role="img" '
        f'aria-label="{escape(section.title)}" style="height:{height}px{width}"></div></div>'
        f'<figcaption>{prose(section.note)}<p class="export">Save at paper size: {buttons}</p></figcaption>'
        "</figure>"
    )
