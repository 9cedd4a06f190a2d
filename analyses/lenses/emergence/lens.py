"""When each feature becomes decodable, and whether that is before the loss moves: quiet, loud, or not learned."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from plotly.graph_objects import Figure

from qfl_interp.analyses.at_step import View, curves_view
from qfl_interp.analyses.choose import next_token_note
from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lens import Lens, Page, Shading
from qfl_interp.analyses.lenses.emergence.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.emergence.figure import emergence_figure, feature_panels, shading
from qfl_interp.analyses.lenses.emergence.findings import findings
from qfl_interp.analyses.lenses.emergence.tables import CURVES, EmergenceTables, emergence_tables, stored_tables
from qfl_interp.analyses.loss_curve import known_loss_curve, loss_curve
from qfl_interp.analyses.result import Result
from qfl_interp.config import ProbeConfig
from qfl_interp.emergence.onset import RATIO
from qfl_interp.plots.axes import FLOPS, TRAINING_AXES, axis_of_columns
from qfl_interp.plots.panels import Panel, stack_panels
from qfl_interp.report.page import Finding, Section
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import distinct, select, titled

_COLUMNS: Final = {
    "feature": "feature",
    "third": "third",
    "verdict": "verdict",
    "certain": "certain",
    "lead_log10": "lead (decades)",
    "lead_low": "range, low",
    "lead_high": "range, high",
    **{f"onset_{axis.column}": f"onset ({axis.unit})" for axis in TRAINING_AXES},
    "onset_step_before": "after step",
    "onset_step_after": "by step",
    "fraction_at_start": "loss at transition start / untrained",
    "metric": "probe loss",
    "baseline": "untrained",
    "best": "best",
}


class Emergence(Lens):
    """Curves and verdicts, which a page computes where they are missing."""

    name = "emergence"
    question = "Is each feature learned before the loss moves, after it, or not at all?"
    tables, result = TABLES, RESULT
    order = 10
    methods = """
    - **Thirds**: labels, which mostly follow the tokens, are split into a beginning, a middle and an end; a third's
      value is the geometric mean over its labels.
    - **Transition**: the stretch of training in which the validation loss leaves its plateau and falls, found
      from the loss alone by a monotone fit over the logarithm of compute; it starts where 5 % of the
      fall is done and ends where 95 % is.
    - **Onset**: where a third's test loss falls below half of the untrained model's for good, interpolated in
      log compute between the checkpoints on either side. The paper sets its marks by hand; half is this
      library's choice.
    - **Quiet** means that the onset lies before the transition's start, **loud** that it lies within or after
      it. The lead is the distance in decades of compute (log10 FLOPs), or of what the axis is where FLOPs
      are not known; its range covers the spacing of checkpoints and validations and a bootstrap over the
      probe's test examples. A verdict is uncertain where that range includes 0.
    """
    limits = """
    - A lead can be no sharper than the spacing of checkpoints around the onset and of validations around the
      transition.
    """

    @classmethod
    def auto_steps(cls, page: Page) -> list[int]:
        found = emergence_tables(page.run, page.features, "auto", **page.how)
        return [int(step) for step in distinct(found.curves, "step")]

    @classmethod
    def prepare(cls, page: Page) -> None:
        cls._tables(page)

    @classmethod
    def _tables(cls, page: Page) -> EmergenceTables:
        """Those of the page's features."""
        if not page.compute:
            return page.once(cls.name, lambda: stored_tables(page.run, page.features, page.config))
        return page.once(cls.name, lambda: emergence_tables(page.run, page.features, page.steps, **page.how))

    @classmethod
    def panels(cls, page: Page) -> list[Panel]:
        curves, verdicts = cls._tables(page)
        return [] if curves.empty else feature_panels(curves, verdicts)

    @classmethod
    def views(cls, run: Checkpoints) -> list[View]:
        if not run.table(CURVES).names():
            return []

        def draw(chosen: Mapping[str, Any]) -> Figure:
            curves, verdicts = (select(table, **chosen) for table in stored_tables(run))
            losses = known_loss_curve(run)
            if losses is None:
                return stack_panels(feature_panels(curves, verdicts), shading(verdicts).band, filename=cls.name)
            return emergence_figure(losses.rows, curves, verdicts, unit=losses.unit)

        return [
            curves_view(
                cls.name, cls.question, run, draw,
                lambda chosen: select(stored_tables(run).curves, **chosen),
                lambda: (("feature",), [(name,) for name in distinct(stored_tables(run).curves, "feature")]),
            )
        ]  # fmt: skip

    @classmethod
    def shading(cls, page: Page) -> Shading:
        return shading(cls._tables(page).verdicts)

    @classmethod
    def findings(cls, page: Page) -> list[Finding]:
        verdicts = cls._tables(page).verdicts
        return [] if verdicts.empty else findings(verdicts)

    @classmethod
    def sections(cls, page: Page) -> list[Section]:
        curves, verdicts = cls._tables(page)
        if curves.empty:
            return []
        return [
            Section(
                "Verdicts",
                table=titled(verdicts, _COLUMNS),
                downloads={"emergence": verdicts, "emergence_curve": curves},
                note="One row a feature and third. A positive lead means learned before the loss moved. The range is "
                "what the spacing of checkpoints and validations leaves open, widened by the 95 % bootstrap over test "
                "examples.",
            )
        ]


def emergence(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig | None = None,
    ratio: float = RATIO,
    n_resamples: int = 2_000,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Say whether each feature is quiet (learned before the loss moved), loud, or not learned.

    The call first fits the probes that are missing, and measures the loss of a suite's checkpoints (`validate`). The
    axis is the run's own compute; where its FLOPs are not known, tokens or steps. The title and the endings of columns
    say which (`onset_flops`, `onset_step`). The validation loss over the answer alone dates the transition
    (`qfl_interp.emergence.transition`), the geometric mean over each third of its labels a feature's onset
    (`qfl_interp.emergence.onset`). The baseline is the mean over the untrained models. A verdict's lead is in decades
    of that axis. Its range `lead_low` to `lead_high` is what the spacing of checkpoints and validations leaves open,
    widened by `bootstrap_low` to `bootstrap_high`, the 95 % bootstrap over the probes' test
    examples; neither covers other seeds.

    Example:
        `qfl emergence runs/add16`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: The checkpoints of the curves. "auto": only those that the verdicts need, found by bisection; verdicts
            and ranges are those of "all" (`auto`) for less than half of the work.
        config: The probes'.
        ratio: A feature is learned once its metric stays below this fraction of the baseline.
        n_resamples: Bootstrap resamples.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a feature and third; `.plot()` draws the timeline.

    Raises:
        QflError: As `probe`, or no probe of a feature could be fitted.
    """
    how: dict[str, Any] = {"config": config, "jobs": jobs, "device": device, "progress": progress}
    found = emergence_tables(run, features, steps, ratio=ratio, n_resamples=n_resamples, **how)
    losses = loss_curve(run, jobs=jobs, device=device, progress=progress)
    along = axis_of_columns(found.verdicts, "onset")
    said = "" if along is FLOPS else f"; leads in decades of {along.words}, FLOPs are not known"
    shown = ["feature", "third", "verdict", "certain", "lead_log10", "lead_low", "lead_high", "fraction_at_start"]
    return Result(
        f"Emergence in {run.run_id}: {found.verdicts['transition_reason'].iloc[0]}"
        + said
        + next_token_note(run, distinct(found.verdicts, "feature")),
        found.verdicts.filter(shown),
        found.verdicts,
        functools.partial(emergence_figure, losses.rows, found.curves, unit=run.loss_unit),
        columns=RESULT,
        cube=Cube(("feature", "third")),
        of=run.label,
    )
