"""A lens that computes a table part by part: find what is missing, compute it model by model, keep it, read it back."""

from __future__ import annotations

import abc
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pandas as pd
import torch
from plotly.graph_objects import Figure
from torch import Tensor

from qfl_interp.analyses.at_step import View
from qfl_interp.analyses.checkpoints import over_checkpoints
from qfl_interp.analyses.choose import features_in
from qfl_interp.analyses.lens import Lens, Page
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.analyses.step_table import StepTable
from qfl_interp.analyses.stored import rows_of_one_call
from qfl_interp.errors import QflError
from qfl_interp.plots.axes import TRAINING_AXES
from qfl_interp.plots.panels import Panel, mark_step, stack_panels
from qfl_interp.plots.rows import rows_figure
from qfl_interp.report.page import Finding, Section
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import distinct, groups, select

SharedT = TypeVar("SharedT")
ViewT = TypeVar("ViewT")


class Piece(NamedTuple):
    """One table part: the model it is of, and what of it.

    Attributes:
        at: The checkpoint, or an untrained control.
        key: Columns that tell the part from others of the model: `{"feature": "carry", "label": 3}`.
    """

    at: ModelAt
    key: Mapping[str, Any] = {}


class _Work(NamedTuple):
    """Pieces of one model that one process computes."""

    at: ModelAt
    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return str(self.at)


@dataclass(frozen=True)
class PartLens(Lens, abc.ABC, Generic[SharedT, ViewT]):
    """One call of a lens on a run; its fields are the settings, and it has to pickle.

    Attributes:
        by: Columns that tell apart what one figure shows.
        together: Those of them that one figure at a step shows all values of.
        of_probes: Whether its column `settings` names the configuration of probes: a page shows those of its own.
        step_column: The column that counts a call's steps.
        call_column: The column that tells calls apart.
        apart: Whether several processes may compute pieces of one model; each then has its own view.
        run: What is looked at.
        device: Where to compute.
    """

    by: ClassVar[tuple[str, ...]] = ("run_id",)
    together: ClassVar[tuple[str, ...]] = ()
    of_probes: ClassVar[bool] = False
    step_column: ClassVar[str] = "step"
    call_column: ClassVar[str] = "analysis"
    apart: ClassVar[bool] = False

    run: Checkpoints
    device: str | torch.device = "cpu"

    @abc.abstractmethod
    def part(self, piece: Piece) -> str:
        """The name of a part: `<model>-<what>-<digest of the settings>`."""

    def share(self) -> SharedT:
        """What all models need; once a process."""
        return None  # type: ignore[return-value]  # of a lens that shares nothing

    def view(self, shared: SharedT, at: ModelAt) -> ViewT:
        """What all pieces of a model need, by default the model; once a model."""
        return at.load(self.run, self.device)  # type: ignore[return-value]  # of a lens that views the model

    @abc.abstractmethod
    def rows(self, shared: SharedT, view: ViewT, piece: Piece) -> pd.DataFrame | tuple[pd.DataFrame, dict[str, Tensor]]:
        """The rows of a part, and tensors to keep with them."""

    def columns(self, piece: Piece) -> dict[str, Any]:
        """Columns behind the rows' own and the run's, equal in all rows of a part."""
        return {**self.where(piece), **piece.key, "analysis": self.analysis(piece)}

    def where(self, piece: Piece) -> dict[str, Any]:
        """The columns that say which checkpoint it is."""
        return {"step": piece.at.step, **self.run.how_far(piece.at.step)}

    def sources(self, piece: Piece) -> Sequence[int]:
        """The checkpoints that a part is computed from; it is computed anew once their weights are others."""
        return () if piece.at.untrained >= 0 else (piece.at.step,)

    def settings_used(self) -> dict[str, Any]:
        """The settings of the call by name, as JSON holds them."""
        found: dict[str, Any] = {}
        for of in fields(self):
            value = getattr(self, of.name)
            as_dict = getattr(value, "to_dict", None) or getattr(value, "_asdict", None)
            if of.name not in ("run", "device", "store"):
                found |= as_dict() if as_dict else {of.name: value}
        return json.loads(json.dumps(found, default=str))

    def analysis(self, piece: Piece) -> str:
        """What all parts of a call have in common: the end of a part's name."""
        return self.part(piece).rpartition("-")[2]

    def fetch(self, missing: Mapping[ModelAt, Sequence[Piece]], *, jobs: int, progress: bool) -> None:
        """Have other lenses compute what pieces read of their tables; by default nothing."""

    def compute(self, pieces: Sequence[Piece], *, label: str, jobs: int = 1, progress: bool = True) -> pd.DataFrame:
        """The rows of all pieces; those that are not in the run's table yet are computed and written first."""
        table = self.run.table(self.name)
        missing: dict[ModelAt, list[Piece]] = {}
        for piece in pieces:
            if not table.has(self.part(piece)):
                missing.setdefault(piece.at, []).append(piece)
        if missing:
            if progress:
                _say_why(self.name, sum(map(len, missing.values())), self.settings_used(), table.settings())
            self.fetch(missing, jobs=jobs, progress=progress)
        work = [_Work(at, tuple(found)) for at, found in missing.items()]
        if self.apart:
            work = [_Work(at, (piece,)) for at, found in work for piece in found]
        prepare = functools.partial(_Views, self)
        over_checkpoints(work, prepare, self._compute, label=label, jobs=jobs, progress=progress)
        return table.read([self.part(piece) for piece in pieces])

    def _compute(self, views: _Views, work: _Work) -> None:
        """Compute pieces and write each as it is done."""
        view, table = views.of(work.at), self.run.table(self.name)
        for piece in work.pieces:
            found = self.rows(views.shared, view, piece)
            rows, tensors = found if isinstance(found, tuple) else (found, None)
            rows = rows.assign(**self.run.identity(), **self.columns(piece))
            self._require_columns(rows)
            table.write(self.part(piece), rows, tensors, steps=self.sources(piece), settings=self.settings_used())

    @classmethod
    def _lacking(cls, rows: pd.DataFrame) -> list[str]:
        """The columns by which calls are told apart that rows do not have."""
        return [name for name in (*cls.by, cls.step_column, cls.call_column) if name not in rows]

    def _require_columns(self, rows: pd.DataFrame) -> None:
        """Raise `QflError` where rows lack what pages tell calls apart by; of a lens that draws some itself."""
        if self.panels_of is PartLens.panels_of and self.sections_of is PartLens.sections_of:
            return
        if lacking := self._lacking(rows):
            raise QflError(
                f"lens {self.name!r}: its rows lack the columns {lacking}, by which calls are told apart. "
                "Its `rows` or `columns` must give them."
            )

    @staticmethod
    def panels_of(rows: pd.DataFrame) -> list[Panel]:
        """Panels of rows that one call for each value of `by` has written."""
        return []

    @staticmethod
    def sections_of(rows: pd.DataFrame) -> list[Section]:
        """Sections of such rows."""
        return []

    @staticmethod
    def findings_of(rows: pd.DataFrame) -> list[Finding]:
        """What such rows say, for the report's head."""
        return []

    @classmethod
    def views(cls, run: Checkpoints) -> list[View]:
        """Its table at a step, one value of each of the columns `by` not drawn together, as `draw_at` draws it."""
        kept = cls.kept(run)
        return [kept.view(cls.name, cls.question, cls.draw_at)] if kept.steps else []

    @classmethod
    def kept(cls, run: Checkpoints, shows: Callable[[pd.DataFrame], bool] = lambda rows: True) -> StepTable:
        """Its table by step, of the calls whose rows are shown."""
        return StepTable(run.table(cls.name), [name for name in cls.by if name != "run_id"], cls.together, shows)

    @classmethod
    def draw_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        """The figure at a step; by default its panels with the step marked, else its first section, else the rows.

        Args:
            rows: Of one call for each value of `by`: of the step, of others, and of controls, so that colours and
                ranges can be the same at every step.
            step: Which one.
        """
        of_step = select(rows, **{cls.step_column: step})
        if cls.panels_of is not PartLens.panels_of:
            figure = stack_panels(cls.panels_of(rows), None, filename=cls.name)
            known = [axis.column for axis in TRAINING_AXES if axis.column in of_step]
            return mark_step(figure, step, {"step": step, **of_step[known].iloc[0].to_dict()})
        drawn = [] if cls.sections_of is PartLens.sections_of else cls.sections_of(of_step)
        return next((section.figure for section in drawn if section.figure is not None), None) or rows_figure(of_step)

    @classmethod
    def parts_of(cls, rows: pd.DataFrame) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
        """The rows of each figure, behind their values of `by`."""
        found = [((), rows)]
        for name in cls.by:
            found = [((*values, value), own) for values, part in found for value, own in groups(part, name)]
        return found

    @classmethod
    def section_of(
        cls, title: str, values: Sequence[Any], part: pd.DataFrame, draw: Callable[[pd.DataFrame], Figure], note: str
    ) -> Section:
        """The section of one of those parts: its title, with `{}` for the values, its figure, and its rows to load."""
        name = "_".join([cls.name, *map(str, values)])
        shown = title.format(*(str(value).replace("_", " ") for value in values))
        return Section(shown, figure=draw(part), note=note, downloads={name: part})

    @classmethod
    def stored(cls, page: Page) -> pd.DataFrame:
        """The rows that a page shows: of its features and probes, where the table has these columns.

        Raises:
            ValueError: The table lacks a column that tells calls apart.
        """
        return page.once(f"{cls.name}, stored", lambda: cls._stored(page))

    @classmethod
    def _stored(cls, page: Page) -> pd.DataFrame:
        """Those rows, read."""
        rows = page.run.table(cls.name).read()
        if rows.empty:
            return rows
        if lacking := cls._lacking(rows):
            raise ValueError(
                f"its table {cls.name!r} lacks the columns {lacking}, by which calls are told apart. "
                f"Another version wrote it: move {page.run.table(cls.name).folder} away and run the lens again."
            )
        if cls.of_probes and page.config is not None:
            rows = select(rows, settings=page.config.digest())
        if "feature" in rows:
            more = [
                n for n in distinct(rows, "feature") if n not in page.features and features_in(n) <= {*page.features}
            ]
            rows = pd.concat([select(rows, feature=n) for n in (*page.features, *more)], ignore_index=True)
        return rows_of_one_call(rows, cls.by, step=cls.step_column, call=cls.call_column)

    @classmethod
    def panels(cls, page: Page) -> list[Panel]:
        """Panels of what was computed before."""
        if cls.panels_of is PartLens.panels_of:
            return []
        rows = cls.stored(page)
        return [] if rows.empty else cls.panels_of(rows)

    @classmethod
    def sections(cls, page: Page) -> list[Section]:
        """Sections of what was computed before."""
        if cls.sections_of is PartLens.sections_of:
            return []
        rows = cls.stored(page)
        return [] if rows.empty else cls.sections_of(rows)

    @classmethod
    def findings(cls, page: Page) -> list[Finding]:
        """Findings of what was computed before."""
        if cls.findings_of is PartLens.findings_of:
            return []
        rows = cls.stored(page)
        return [] if rows.empty else cls.findings_of(rows)


def _say_why(lens: str, n: int, wanted: Mapping[str, Any], stored: Sequence[Mapping[str, Any]]) -> None:
    """One line where a table has parts of other settings alone: what is computed, and what would have been there."""
    if not stored or any(settings == wanted for settings in stored):
        return
    nearest = min(stored, key=lambda settings: len(_differing(settings, wanted)))
    names = _differing(nearest, wanted)
    now, then = (", ".join(f"{name}={of.get(name)!r}" for name in names) for of in (wanted, nearest))
    print(
        f"{lens}: computing {n} parts with {now}. The table has {stored.count(nearest)} with {then}; call it so to see "
        "those.",
        file=sys.stderr,
    )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of settings that differ."""
    return [name for name in other if one.get(name) != other[name]]


class _Views:
    """What a process holds: what its lens shares, and the view of the last model; pieces come model by model."""

    def __init__(self, lens: PartLens[Any, Any]) -> None:
        self._lens, self.shared = lens, lens.share()
        self._at: ModelAt | None = None
        self._view: Any = None

    def of(self, at: ModelAt) -> Any:
        """The view of a model."""
        if at != self._at:
            self._at, self._view = None, None  # before the next is made: two models may not fit
            self._at, self._view = at, self._lens.view(self.shared, at)
        return self._view
