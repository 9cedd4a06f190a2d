"""What the registered lenses show on a page; one that fails is named in a line, and the others are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from plotly.graph_objects import Figure

from qfl_interp.analyses.lens import NO_SHADING, Lens, Page, Shading
from qfl_interp.analyses.loss_curve import LossCurve, known_loss_curve, loss_curve
from qfl_interp.analyses.pages.timeline_figure import timeline_figure
from qfl_interp.analyses.registered import registered
from qfl_interp.errors import QflError
from qfl_interp.plots.panels import Panel
from qfl_interp.plugins import warn
from qfl_interp.runs.series import Checkpoints

ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


class LossUnknown(QflError):
    """A page that computes nothing is of a run whose loss was not measured, as one that has just begun."""


class Shown:
    """The lenses of a page, asked one after the other; one that failed is not asked again.

    Args:
        page: What each is asked about; it first computes what it must. What fails there of our lenses is raised. A
            page that computes nothing raises where its loss is not known, and names a lens that fails.

    Attributes:
        faults: A line on each that could not be loaded or asked.
        losses: The loss over the training that is shown.
    """

    def __init__(self, page: Page) -> None:
        found = registered()
        self.faults = list(found.faults)
        self._lenses = list(found.lenses)
        if page.steps == "auto" and page.compute:
            needed = {
                step for lens in found.lenses for step in self._must(lens, lambda lens: lens.auto_steps(page)) or []
            }
            page = dataclasses.replace(page, steps=sorted(needed) or "all")
        self.page = page
        self.losses = self._losses(page.run)
        for lens in found.lenses if page.compute else ():
            self._must(lens, lambda lens: lens.prepare(page))

    def ask(self, what: Callable[[type[Lens]], Sequence[ItemT]], kind: type[ItemT]) -> list[ItemT]:
        """All that the lenses give, in their order.

        Args:
            what: What a lens is asked for.
            kind: What it must give.
        """
        return [item for given in self.ask_each(what, kind).values() for item in given]

    def ask_each(
        self, what: Callable[[type[Lens]], Sequence[ItemT]], kind: type[ItemT]
    ) -> dict[type[Lens], list[ItemT]]:
        """As `ask`, by lens."""

        def asked(lens: type[Lens]) -> list[ItemT]:
            given = list(what(lens))
            wrong = [item for item in given if not isinstance(item, kind)]
            if wrong:
                raise TypeError(f"it must give objects of class {kind.__name__}, got {wrong[0]!r}.")
            return given

        found = {lens: self._tried(lens, asked) for lens in list(self._lenses)}
        return {lens: given for lens, given in found.items() if given is not None}

    def timeline(self, panels: dict[type[Lens], list[Panel]]) -> Figure:
        """The figure of these panels, below loss and exact match."""
        shading = self._shading()
        beside = {_named(run, self.page.run): self._losses(run).rows for run in self.page.beside}

        def drawn(shown: Sequence[Panel]) -> Figure:
            unit = self.page.run.loss_unit
            return timeline_figure(self.losses.rows, shown, shading, beside=beside, unit=unit)

        try:
            return drawn([panel for own in panels.values() for panel in own])
        except Exception:
            # Whose panel it is that cannot be stacked.
            good = [own for lens, own in panels.items() if self._tried(lens, lambda _, own=own: drawn(own)) is not None]
            return drawn([panel for own in good for panel in own])

    def _losses(self, run: Checkpoints) -> LossCurve:
        """The loss of a run; `LossUnknown` where it is not known and the page computes nothing."""
        if self.page.compute:
            return loss_curve(run, **self.page.way)
        known = known_loss_curve(run) if run.steps else None
        if known is None:
            raise LossUnknown(
                f"the loss of {run.run_id} is not known yet: its training logged none. `qfl validate` measures it."
            )
        return known

    def warn(self) -> None:
        """Say on standard error what is not shown."""
        for fault in self.faults:
            warn(fault)

    def _shading(self) -> Shading:
        """Of the first lens that says where the loss falls."""
        for lens in list(self._lenses):
            found = self._tried(lens, lambda lens: lens.shading(self.page))
            if found is not None:
                return found
        return NO_SHADING

    def _must(self, lens: type[Lens], call: Callable[[type[Lens]], FoundT]) -> FoundT | None:
        """What a call gives; where it raises, a lens of ours ends the page."""
        return call(lens) if lens.__module__.startswith("qfl_interp.analyses.") else self._tried(lens, call)

    def _tried(self, lens: type[Lens], call: Callable[[type[Lens]], FoundT]) -> FoundT | None:
        """What a call gives; None, and a fault, where it raises."""
        try:
            return call(lens)
        except Exception as error:  # another package's fault must not take the page away
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self.faults.append(f"lens {lens.name!r} ({lens.__module__}:{lens.__name__}) cannot be shown: {text}")
            self._lenses = [other for other in self._lenses if other is not lens]
            return None


def is_curve(panel: Panel) -> bool:
    """Whether a panel has more than one step."""
    columns: list[Any] = [trace["x"] for trace in panel.traces]
    return len({float(x) for column in columns for x in column}) > 1


def _named(run: Checkpoints, shown: Checkpoints) -> str:
    """What a run beside another is called: its folder, and what it does otherwise where it is a fork."""
    said = run.does_otherwise
    if run.loss_unit != shown.loss_unit:  # on one axis all the same
        said = f"{said} ({run.loss_unit})".lstrip()
    name = run.path.name if run.path.name != shown.path.name else f"{run.path.parent.name}/{run.path.name}"
    return f"{name}: {said}" if said else name
