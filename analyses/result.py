"""What an analysis returns: its rows, a figure on demand, and a compact text."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.errors import unknown_name
from qfl_interp.report.drawing import Drawing
from qfl_interp.tables import distinct, select


@dataclass(frozen=True)
class Result:
    """Rows of one analysis of one run.

    Attributes:
        title: What it is.
        summary: A short table a person reads first.
        rows: The tidy table.
        draw: Draws rows of the table; its further parameters, but for those that are bound, are options of `plot`.
        one_of: Columns of which a figure shows one value.
        of: Whose it is, as its figures say (`Checkpoints.label`).
    """

    title: str
    summary: pd.DataFrame = field(repr=False)
    rows: pd.DataFrame = field(repr=False)
    draw: Callable[..., Figure] = field(repr=False)
    one_of: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    of: str = field(default="", repr=False, kw_only=True)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the tidy table."""
        return self.rows.copy()

    def plot(self, feature: str | None = None, **options: Any) -> Figure:
        """The figure: plotly's, which `qfl.save_figure` writes at any width and a terminal shows in a line.

        Args:
            feature: Whose. By default all features; where a figure shows one, the first, and the result's text names
                the others.
            **options: Which value of another column is shown, where a figure shows one (`label=3`), and the options of
                the figure itself (`step=1000`, `metric="exact_normalised"`); a wrong one is answered with all there
                are.

        Raises:
            QflError: There is no row of this feature, label, ...; lists those there are.
            TypeError: The figure has no such option; lists those it has.
        """
        chosen = dict.fromkeys(self.one_of) | {"feature": feature}
        own = self._options()
        for name in options:
            if name not in chosen and name not in own:
                known = ", ".join(name for name in [*chosen, *own] if name != "feature") or "none"
                raise TypeError(f"plot() of this result has no option {name!r}. Beside a feature it has: {known}.")
        rows = self.rows
        for name in chosen:
            rows = self._of(rows, name, options.pop(name, chosen[name]))
        if "feature" in inspect.signature(self.draw).parameters:
            options["feature"] = distinct(rows, "feature")[0]
        return Drawing.of(functools.partial(self.draw, rows, **options), self.of)

    def _options(self) -> list[str]:
        """The parameters of the figure that `plot` hands on."""
        _, *others = inspect.signature(self.draw).parameters
        return [name for name in others if name != "feature" and name not in getattr(self.draw, "keywords", {})]

    def _of(self, rows: pd.DataFrame, name: str, value: Any) -> pd.DataFrame:
        """The rows with a column's value; without one, of a figure that shows one value the rows of the first."""
        if value is None and name not in self.one_of:
            return rows
        known = distinct(rows, name) if name in rows else []
        if value is not None and value not in known:
            raise unknown_name(f"{name} of this result", str(value), map(str, known))
        return select(rows, **{name: known[0] if value is None else value})

    def _not_drawn(self) -> str:
        """What `plot()` leaves out, and how it is drawn; "" where that is nothing."""
        lines, rows = [], self.rows
        for name in self.one_of:
            first, *others = distinct(rows, name)
            rows = select(rows, **{name: first})
            if others:
                listed = ", ".join(map(str, others))
                lines.append(f"plot() draws {name} {first}; plot({name}={others[0]!r}) another of {listed}.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """The title, at most twenty lines of the summary, its first and last ones, and what `plot()` leaves out."""
        text = self.summary.to_string(index=False, max_rows=20, float_format=lambda v: f"{v:.4g}")
        return "\n".join(part for part in (self.title, text, self._not_drawn()) if part)

    def _repr_html_(self) -> str:
        """The same, as notebooks show it."""
        table = self.summary.to_html(index=False, max_rows=20, float_format=lambda v: f"{v:.4g}")
        return f"<b>{self.title}</b>{table}{self._not_drawn()}"
