"""What a lens is: a name and a question, a command, panels of the timeline, sections of the report.

A lens is a subclass of `Lens` and an entry point of the group `qfl_interp.lenses` whose value is `module:Class`; the
function of the lens' name in that module is its call and its command. The timeline and the report ask every registered
lens and know none by name. `part_lens` has the base of those that compute a table part by part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import torch
from plotly.graph_objects import Figure

from qfl_interp.analyses.at_step import View, curves_view
from qfl_interp.columns import Columns
from qfl_interp.config import ProbeConfig
from qfl_interp.plots.panels import Panel, Shade, stack_panels
from qfl_interp.report.page import Finding, Section
from qfl_interp.runs.series import Checkpoints, Steps

FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class Page:
    """What a page shows, and how what is missing of it is computed.

    Attributes:
        run: Of what.
        features: Names.
        steps: The checkpoints of what the page computes where it is missing.
        config: The probes'; None of a page that computes nothing: any, of each lens the call with most steps.
        n_trials: Random controls of the tests that the page computes; None: it computes no test.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw bars on standard error.
        beside: Other runs whose loss and exact match are drawn too, as forks and their control.
        compute: Whether what is missing is computed; if not, lenses show what was computed before.
    """

    run: Checkpoints
    features: tuple[str, ...]
    steps: Steps = "all"
    config: ProbeConfig | None = field(default_factory=ProbeConfig)
    n_trials: int | None = None
    jobs: int = 1
    device: str | torch.device = "cpu"
    progress: bool = True
    beside: tuple[Checkpoints, ...] = ()
    compute: bool = True
    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def way(self) -> dict[str, Any]:
        """How anything missing is computed."""
        return {"jobs": self.jobs, "device": self.device, "progress": self.progress}

    @property
    def how(self) -> dict[str, Any]:
        """What every lens of probes is called with."""
        return {"config": self.config, **self.way}

    def once(self, key: str, make: Callable[[], FoundT]) -> FoundT:
        """What `make` returns, called once a page and key: panels and sections often show one table."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


class Shading(NamedTuple):
    """Where a lens finds that the loss falls, as the timeline shows it.

    Attributes:
        band: Shaded across all panels; None where there is none.
        note: Then, why.
        plateau_loss: The level that the loss leaves, in its unit; NaN without one.
    """

    band: Shade | None
    note: str = ""
    plateau_loss: float = math.nan


NO_SHADING: Final = Shading(None, "transition not analysed")


class Lens:
    """One way to look at a run.

    Attributes:
        name: Of its function and table; the command is the same with hyphens.
        question: What it answers, in one line.
        methods: How its numbers come about, for the report: items of a list, "- **Word** ...".
        limits: What they do not show, likewise.
        order: Where it stands among the lenses of a page.
        tables: The columns of each table that it writes beside a run, by the table's name.
        result: Those of what a call gives, by attribute of its result: "rows", its other tables, and under "summary"
            what the printed summary has beside.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    methods: ClassVar[str] = ""
    limits: ClassVar[str] = ""
    order: ClassVar[int] = 200
    tables: ClassVar[Mapping[str, Columns]] = MappingProxyType({})
    result: ClassVar[Mapping[str, Columns]] = MappingProxyType({})

    @classmethod
    def auto_steps(cls, page: Page) -> Sequence[int]:
        """The checkpoints that it needs where a page leaves them to the lenses, `steps="auto"`; by default none."""
        return []

    @classmethod
    def prepare(cls, page: Page) -> None:
        """Compute what the page needs of it in any case; by default nothing. What fails here ends the page.

        It is not asked where the page computes nothing (`page.compute`).
        """

    @classmethod
    def panels(cls, page: Page) -> list[Panel]:
        """Its panels of the timeline; none where nothing of it was computed."""
        return []

    @classmethod
    def sections(cls, page: Page) -> list[Section]:
        """Its sections of the report; none where nothing of it was computed."""
        return []

    @classmethod
    def findings(cls, page: Page) -> list[Finding]:
        """Its verdicts for the report's head."""
        return []

    @classmethod
    def views(cls, run: Checkpoints) -> list[View]:
        """What it shows of a run at one step, of what was computed before: nothing is computed, and little read.

        By default its panels with the step marked, where the table of its name has a part.
        """
        if cls.panels.__func__ is Lens.panels.__func__ or not run.table(cls.name).names():
            return []

        def draw(_: Any) -> Figure:
            features = tuple(name for name, feature in run.task.features.items() if feature.by_default)
            page = Page(run, features, config=None, progress=False, compute=False)
            return stack_panels(cls.panels(page), None, filename=cls.name)

        return [curves_view(cls.name, cls.question, run, draw, lambda _: run.table(cls.name).read())]

    @classmethod
    def shading(cls, page: Page) -> Shading | None:
        """Where the loss falls; None of a lens that does not say. The timeline takes the first that does."""
        return None
