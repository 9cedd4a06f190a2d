"""What the scripts write under docs/: tables between the markers of pages, and figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.theme import PIXELS_PER_INCH
from qfl_interp.report.saving import save_figure
from qfl_interp.tables import records

DOCS = Path(__file__).resolve().parent.parent / "docs"


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a page, for each name.

    Args:
        page: A Markdown file with all of these markers; it is not touched where one is missing.
        parts: What goes between them, by name.

    Raises:
        SystemExit: A marker is missing.
    """
    text = page.read_text()
    for name, content in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{page} has no markers <!-- {name} --> and <!-- /{name} -->. Restore them.")
        whole = content if content.endswith("\n") else content + "\n"
        text = pattern.sub(lambda found, whole=whole: found[1] + whole + found[2], text)
    page.write_text(text)


def markdown(table: pd.DataFrame) -> str:
    """A table of a page: numbers to three digits, a dash where there is none."""
    head = f"| {' | '.join(map(str, table.columns))} |\n|{' --- |' * len(table.columns)}\n"
    return head + "".join(f"| {' | '.join(map(_cell, row.values()))} |\n" for row in records(table))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.3g}"
    return str(value)


def nearest_saved(steps: Sequence[int], wanted: Iterable[float]) -> list[int]:
    """Those of some steps that are nearest the wanted ones."""
    return sorted({min(steps, key=lambda step: abs(step - one)) for one in wanted})


def save(figure: go.Figure, name: str, width: int | None = None) -> None:
    """A figure as `docs/figures/NAME.png`, so many pixels wide on paper, as it was drawn by default; needs kaleido."""
    inches = None if width is None else width / PIXELS_PER_INCH
    save_figure(figure, DOCS / "figures" / f"{name}.png", width_inches=inches)
