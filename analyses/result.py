"""What an analysis returns: its rows, a figure on demand, and a compact text."""

from __future__ import annotations

import functools
import html
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.analyses.columns_help import ColumnsHelp, said
from qfl_interp.analyses.cube import Cube, to_xarray
from qfl_interp.analyses.notebook import show
from qfl_interp.columns import Column, Columns
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.report.drawing import Drawing
from qfl_interp.tables import distinct, select

if TYPE_CHECKING:
    import xarray


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
        columns: What the columns of `rows` and of its other tables mean, by the attribute; under "summary" those that
            the summary has beside.
        cube: The columns that are axes of `to_xarray`; None where the rows are no cube.
    """

    title: str
    summary: pd.DataFrame = field(repr=False)
    rows: pd.DataFrame = field(repr=False)
    draw: Callable[..., Figure] = field(repr=False)
    one_of: tuple[str, ...] = field(default=(), repr=False, kw_only=True)
    of: str = field(default="", repr=False, kw_only=True)
    columns: Mapping[str, Columns] = field(default_factory=dict, repr=False, kw_only=True)
    cube: Cube | None = field(default=None, repr=False, kw_only=True)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the tidy table."""
        return self.rows.copy()

    def to_xarray(self, **chosen: Any) -> xarray.Dataset:
        """The table as a labelled array (package xarray): a variable a column, over the columns that tell rows apart.

        Of probes the axes are step, layer, head (-1 where the site has none) and label; `found.cube.dims` says those of
        a result. Numbers ascend along an axis. FLOPs and tokens are coordinates of the steps, whose run it is stands in
        the attributes, definitions and units in those of the variables.

        Args:
            **chosen: Which value of a column that is no axis, where there are several: `feature="carry"`. Of probes
                `source` is "trained" unless it is given.

        Raises:
            QflError: xarray is not installed, no row has a value, or the rows are no cube: several rows of one cell
                (says which column tells them apart), cells without a row, or a result whose rows never are one.
        """
        if self.cube is None:
            raise QflError(f"the rows of this result are no cube: {self.title}. Take to_dataframe().")
        return to_xarray(self.rows, self.cube, chosen, self.columns.get("rows", {}))

    def columns_help(self, table: str = "rows") -> ColumnsHelp:
        """What each column of a table means, with its unit.

        Args:
            table: "rows", "summary", or another table that the result has as an attribute, as "ranks".

        Raises:
            QflError: The result has no such table; lists those it has.
        """
        frame = getattr(self, table, None)
        if not isinstance(frame, pd.DataFrame):
            known = [name for name, value in vars(self).items() if isinstance(value, pd.DataFrame)]
            raise unknown_name("table of this result", table, known)
        return ColumnsHelp.of([str(name) for name in frame], self._defined(table))

    def _defined(self, table: str) -> dict[str, Column]:
        """The columns of a table that are defined; those of a summary are the rows' where it does not say."""
        own = self.columns.get(table, {})
        return {**self.columns.get("rows", {}), **own} if table == "summary" else dict(own)

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

    def _ipython_display_(self) -> None:
        """In a notebook the table and below it the figure, in a terminal the text."""
        show(repr(self), self._repr_html_(), self.plot)

    def __repr__(self) -> str:
        """The title, at most twenty lines of the summary, its first and last ones, and what `plot()` leaves out."""
        text = self.summary.to_string(index=False, max_rows=20, float_format=lambda v: f"{v:.4g}")
        return "\n".join(part for part in (self.title, text, self._not_drawn()) if part)

    def _repr_html_(self) -> str:
        """The same, as notebooks show it; a pointer over the head of a column shows what it means."""
        table = self.summary.to_html(index=False, max_rows=20, float_format=lambda v: f"{v:.4g}")
        defined = self._defined("summary")
        head, rest = table.split("</thead>", 1)
        for name in map(str, self.summary):
            if name in defined:
                title = html.escape(said(defined[name]), quote=True)
                head = head.replace(f"<th>{html.escape(name)}</th>", f'<th title="{title}">{html.escape(name)}</th>', 1)
        below = "<br>".join(html.escape(line, quote=False) for line in self._not_drawn().splitlines())
        return f"<b>{html.escape(self.title)}</b>{head}</thead>{rest}{below}"
