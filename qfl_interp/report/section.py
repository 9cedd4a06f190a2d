"""What a page is made of: findings for its head, sections with prose, a figure, a table and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure


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


class Link(NamedTuple):
    """A cell of a table that leads somewhere.

    Attributes:
        text: What is read.
        to: A page's relative path, of plain text, or "#" and the anchor of a section.
    """

    text: str
    to: str

    def __str__(self) -> str:
        return self.text


class Verdict(NamedTuple):
    """A cell of a table with a verdict, coloured as in a page's head.

    Attributes:
        verdict: As of a `Finding`.
        more: What follows it.
    """

    verdict: str
    more: str = ""

    def __str__(self) -> str:
        return f"{self.verdict} {self.more}".strip()


class Sparkline(NamedTuple):
    """A cell of a table with a small curve.

    Attributes:
        values: Heights, in order; those that are not finite are left out.
        label: What it shows, for who cannot see it.
    """

    values: Sequence[float]
    label: str

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True)
class Section:
    """One section of the page; its parts are drawn in the order of the fields.

    Args:
        title: Heading; the section's anchor is made of it.
        text: Plain prose. Blank lines part paragraphs, "- " starts a list item; `code`, **bold**, *italics*
            and arXiv links are marked up, all else is escaped.
        figure: Drawn by the page's plotly.js.
        note: Caption, marked up like `text`.
        table: Shown as it is; floats with four digits. A cell may be a `Link`, a `Verdict`, a
            `Sparkline`, or a tuple of these.
        downloads: Tables offered as CSV files, by name.
        columns: What columns of `table` mean, by their names there; shown over their heads.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    note: str = ""
    table: pd.DataFrame | None = None
    downloads: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
