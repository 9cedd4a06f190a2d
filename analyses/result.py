"""What an analysis returns: its rows, a figure on demand, and a compact text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Result:
    """Rows of one analysis of one run.

    Attributes:
        title: What it is.
        summary: A short table a person reads first.
        rows: The tidy table.
    """

    title: str
    summary: pd.DataFrame = field(repr=False)
    rows: pd.DataFrame = field(repr=False)
    draw: Callable[[], Figure] = field(repr=False)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the tidy table."""
        return self.rows.copy()

    def plot(self) -> Figure:
        """The figure."""
        return self.draw()

    def __repr__(self) -> str:
        """The title and at most twenty lines of the summary, its first and last ones."""
        text = self.summary.to_string(index=False, max_rows=20, float_format=lambda v: f"{v:.4g}")
        return f"{self.title}\n{text}"

    def _repr_html_(self) -> str:
        """The summary, as notebooks show it."""
        return f"<b>{self.title}</b>{self.summary.to_html(index=False, max_rows=20, float_format=lambda v: f'{v:.4g}')}"
