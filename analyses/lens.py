"""What a lens is: a name and a question, a command, panels of the timeline, sections of the report.

A lens is a subclass of `Lens` and an entry point of the group `qfl_interp.lenses` whose value is `module:Class`; the
function of the lens' name in that module is its call and its command. The timeline and the report ask every registered
lens and know none by name. `analyses.part_lens` has the base of those that compute a table part by part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple

import torch

from qfl_interp.config import ProbeConfig
from qfl_interp.plots.panels import Panel, Shade
from qfl_interp.report.page import Finding, Section
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Steps


@dataclass(frozen=True)
class Page:
    """What a page shows, and how what is missing of it is computed.

    Attributes:
        run: Of what.
        features: Names.
        steps: The checkpoints of what the page computes where it is missing.
        config: The probes'.
        n_trials: Random controls of a test that the page computes.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw bars on standard error.
    """

    run: Run
    features: tuple[str, ...]
    steps: Steps = "all"
    config: ProbeConfig = field(default_factory=ProbeConfig)
    n_trials: int = 32
    jobs: int = 1
    device: str | torch.device = "cpu"
    progress: bool = True


class Shading(NamedTuple):
    """Where a lens finds that the loss falls, as the timeline shows it.

    Attributes:
        band: Shaded across all panels; None where there is none.
        note: Then, why.
        plateau_loss: The level that the loss leaves, in nats; NaN without one.
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
        methods: How its numbers come about, for the report: items of a list.
        order: Where it stands among the lenses of a page.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    methods: ClassVar[str] = ""
    order: ClassVar[int] = 100

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
