"""The tables that views of lenses are drawn from.

A table's parts are named after the checkpoint that each is of, so that what there is at which step is known from the
names alone; rows are read when a view is drawn, of the steps that it shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.analyses.at_step import View, nearest, titled
from qfl_interp.errors import QflError
from qfl_interp.runs.table import Table
from qfl_interp.tables import select

# How a part's name begins: the checkpoint it is of (and the one after it, where it is of the way between them).
_OF_STEP: Final = re.compile(r"step_(\d+)(?:_to_\d+)?-(.*)", re.DOTALL)
_OF_UNTRAINED: Final = re.compile(r"untrained_\d+-(.*)", re.DOTALL)
# Steps beside the one that is shown whose rows are read: a curve needs no more, nor the ends of a colour scale.
_MOST_STEPS: Final = 48
# Parts whose rows stay in memory, by their files as these were when they were read.
_MOST_KEPT: Final = 1024
_KEPT: dict[Hashable, pd.DataFrame] = {}


class StepTable:
    """A table whose parts are of one checkpoint each: what there is of it, and rows of some steps.

    Args:
        table: Its parts are named `<checkpoint>-<what>-<digest of the settings>`; others are passed over.
        by: Columns for each of whose values one call is shown: of several, that of most steps.
        together: Those of them whose values are all shown at once; of the others, one is chosen.
        shows: Whether calls whose parts have such rows are shown; the part of the last step stands for the others.
    """

    def __init__(
        self,
        table: Table,
        by: Sequence[str] = (),
        together: Sequence[str] = (),
        shows: Callable[[pd.DataFrame], bool] = lambda rows: True,
    ) -> None:
        self.table, self.by, self._shows = table, tuple(by), shows
        self.chosen = tuple(name for name in self.by if name not in together)
        # By what a part is of: its name at each step, and those of untrained models.
        self._at: dict[str, dict[int, list[str]]] = {}
        self._untrained: dict[str, list[str]] = {}
        for part in table.names():
            if found := _OF_STEP.fullmatch(part):
                self._at.setdefault(found[2], {}).setdefault(int(found[1]), []).append(part)
            elif found := _OF_UNTRAINED.fullmatch(part):
                self._untrained.setdefault(found[1], []).append(part)

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Steps that have a part, ascending."""
        return tuple(sorted({step for parts in self._at.values() for step in parts}))

    def shows_any(self) -> bool:
        """Whether a part is shown; reads parts up to the first that is."""
        return any(self._shown(what) is not None for what in self._at)

    def view(self, name: str, question: str, draw: Callable[[pd.DataFrame, int], Figure], *, title: str = "") -> View:
        """A view of the table: `draw` is given rows of several steps, and the step that is shown."""

        def drawn(step: int, chosen: Mapping[str, Any]) -> Figure:
            return draw(self.rows(step, chosen), step)

        def rows(step: int, chosen: Mapping[str, Any]) -> pd.DataFrame:
            return self.rows(step, chosen, alone=True)

        return View(name, title or titled(name), question, self.steps, drawn, rows, self.found, self.steps_of)

    def found(self) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """The columns of which one value each is shown, and their values that exist together."""
        at = [self.by.index(name) for name in self.chosen]
        return self.chosen, list(dict.fromkeys(tuple(values[place] for place in at) for values in self._kinds))

    @cached_property
    def _kinds(self) -> dict[tuple[Any, ...], list[str]]:
        """By the values of `by`, what parts of them are of."""
        calls: dict[tuple[Any, ...], dict[str, list[str]]] = {}
        for what in self._at:
            one = self._shown(what)
            if one is None:
                continue
            for values in dict.fromkeys(zip(*(one[name].tolist() for name in self.by), strict=True)) or [()]:
                calls.setdefault(values, {}).setdefault(what.rpartition("-")[2], []).append(what)

        def n_steps(whats: Sequence[str]) -> int:
            return len({step for what in whats for step in self._at[what]})

        if self._at and not calls:
            for what in self._at:
                self._first_readable(what, strict=True)  # says what is damaged
            raise QflError(f"{self.table.folder} has no part that still counts. Run the lens again.")
        return {values: max(of.values(), key=n_steps) for values, of in calls.items()}

    def _shown(self, what: str) -> pd.DataFrame | None:
        """The rows of the last step's part; None where none can be read, or they are not shown."""
        rows = self._first_readable(what)
        return rows if rows is not None and self._shows(rows) else None

    def _first_readable(self, what: str, *, strict: bool = False) -> pd.DataFrame | None:
        """The rows of the last step's part that can be read; None where none can, or an error if strict."""
        for step in sorted(self._at[what], reverse=True):
            for part in self._at[what][step]:
                rows = self._read(part, strict=strict)
                if rows is not None and len(rows):
                    return rows
        return None

    def rows(self, step: int, chosen: Mapping[str, Any], *, alone: bool = False) -> pd.DataFrame:
        """The rows of these values at a step, and beside them at others, spread over the training, and of controls.

        Args:
            step: One of those of the values (`steps_of`).
            chosen: A value for each choice.
            alone: Only those of the step.

        Raises:
            QflError: There are none of the step, or what there is of it is damaged.
        """
        kinds = self._of(chosen)
        whats = list(dict.fromkeys(what for _, of_kind in kinds for what in of_kind))
        known = self.steps_of(chosen)
        beside = [] if alone else [known[at] for at in _spread(len(known), _MOST_STEPS)]
        frames = []
        for at in sorted({*beside, step}):
            parts = [part for what in whats for part in self._at[what].get(at, ())]
            frames += [self._read(part, strict=at == step) for part in parts]
        if not alone:
            frames += [self._read(part, strict=False) for what in whats for part in self._untrained.get(what, ())]
        read = [frame for frame in frames if frame is not None]
        if not read:
            raise QflError(f"{self.table.folder} has nothing of step {step} that still counts. Run the lens again.")
        return select(pd.concat(read, ignore_index=True), **chosen).reset_index(drop=True)

    def at(self, step: int) -> int:
        """The step itself where it has a part, else the nearest before it that does, else the first."""
        return nearest(self.steps, step)

    def steps_of(self, chosen: Mapping[str, Any]) -> list[int]:
        """Steps that have a part of these values, ascending."""
        return sorted({step for _, whats in self._of(chosen) for what in whats for step in self._at[what]})

    def _of(self, chosen: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], list[str]]]:
        """The kinds that have the chosen values."""
        wanted = {self.by.index(name): chosen[name] for name in self.chosen}
        return [
            (values, whats)
            for values, whats in self._kinds.items()
            if all(values[at] == value for at, value in wanted.items())
        ]

    def _read(self, part: str, *, strict: bool) -> pd.DataFrame | None:
        """A part's rows; None where it does not count, or cannot be read and need not be."""
        try:
            if not self.table.has(part):
                return None
            key = self.table.stamp(part)
            if key not in _KEPT:
                if len(_KEPT) >= _MOST_KEPT:
                    _KEPT.clear()
                _KEPT[key] = self.table.read_part(part)
            return _KEPT[key]
        except QflError:
            if strict:
                raise
            return None


def _spread(n: int, most: int) -> list[int]:
    """At most so many of the places 0 to n - 1: dense at the beginning, with the first and the last."""
    if n <= most:
        return list(range(n))
    return sorted({round(place) for place in np.expm1(np.linspace(0, np.log1p(n - 1), most))} | {n - 1})
