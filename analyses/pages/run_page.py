"""What a page on one run holds: its card, verdicts, the timeline, every lens' sections, and how numbers came about."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from qfl_interp.analyses.columns_help import said
from qfl_interp.analyses.lens import Lens, Page
from qfl_interp.analyses.loss_curve import LossCurve
from qfl_interp.analyses.pages.shown import Shown, is_curve
from qfl_interp.analyses.registered import lenses
from qfl_interp.plots.axes import FLOPS
from qfl_interp.plots.panels import Panel
from qfl_interp.plots.paper import name_figure
from qfl_interp.plots.theme import plain
from qfl_interp.report.section import Finding, Section
from qfl_interp.runs.series import Checkpoints

ItemT = TypeVar("ItemT")

_COMPUTE: Final = """\
- **Compute** is the nominal budget at each step, `6 (12 n_layers d_model^2 + n_layers n_ctx d_model)` FLOPs
  a token as the paper counts; that of a plain pass with padding and the real widths stands
  beside it in the run's card. Step 0 has no place on a logarithmic axis and is left out of the timeline.
"""
_COMPUTE_OF_SUITE: Final = """\
- **Compute** is estimated at each step as `6 n_parameters tokens` FLOPs (arXiv 2001.08361), embeddings counted; what
  the training really spent is not known. Step 0 has no place on a logarithmic axis and is left out of the timeline.
"""
_NO_COMPUTE: Final = """\
- **Compute** of these checkpoints is not known (a suite opened with `tokens_per_step` has it): everything is drawn over
  the number of {unit}, and leads are in decades of them. Step 0 has no place on a logarithmic axis and is left out.
"""
_LOSS: Final = """\
- **Loss and exact match** are measured on a fixed validation set that shares no example with training,
  twice: as the paper counts (from the `=` sign on) and over the answer alone.
"""
_LOSS_OF_SUITE: Final = """\
- **Loss and exact match** are measured at the checkpoints on {n:,} examples, twice: over all that the dataset scores
  and over the answer alone. What the models were trained on is known as far as the dataset says. The training's own
  log, learning rates and optimiser are not known.
"""

_LIMITS: Final = """\
- One run is one seed: a transition moves between seeds, and the ranges here do not cover that.
- The paper's figures compare final models over compute budgets; this report follows one run over its
  training steps.
"""

_CITATION: Final = """\
Please cite the paper whose method this is: *Quiet Feature Learning in Algorithmic Tasks*,
https://arxiv.org/abs/2505.03997 (arXiv 2505.03997).
"""


class RunPage(NamedTuple):
    """All that a page on a run shows.

    Attributes:
        card: What the run is.
        sections: In order.
        findings: Verdicts.
        losses: The loss over the training.
        faults: A line on each lens that cannot be shown.
    """

    card: dict[str, Any]
    sections: list[Section]
    findings: list[Finding]
    losses: LossCurve
    faults: list[str]


def run_page(page: Page) -> RunPage:
    """What the registered lenses show of a run; one that cannot be drawn is named, there and on standard error.

    Raises:
        QflError: A file of the run is damaged, or its loss is not known and nothing is to be computed.
    """
    shown = Shown(page)
    page = shown.page
    found = shown.ask_each(lambda lens: lens.sections(page), Section)
    drawn = {lens for lens, own in found.items() if any(section.figure is not None for section in own)}
    # A panel of a single step is no curve, and left to the lens' own figure.
    panels = shown.ask_each(lambda lens: [p for p in lens.panels(page) if lens not in drawn or is_curve(p)], Panel)
    findings = shown.ask_each(lambda lens: lens.findings(page), Finding)
    losses, axis = shown.losses, shown.losses.axis
    timeline = Section(
        "Timeline",
        figure=shown.timeline(panels),
        note="A shaded band is the loss transition; open markers are where a feature became decodable. "
        f"Drag sideways to zoom into a stretch of {axis.words}, double-click to go back. A legend entry hides its "
        "curves.",
        downloads={"validation": losses.rows.dropna(subset=["val_loss"])},
    )
    shown.warn()
    used = [lens for lens in lenses() if any(given.get(lens) for given in (found, panels, findings))]
    explained = [_explained(section, lens) for lens, own in found.items() for section in own]
    sections = [timeline, *explained, *_closing(shown.faults, losses, used)]
    for section in sections:
        if section.figure is not None:
            name_figure(section.figure, plain(page.run.label))
    return RunPage(card(page.run, losses), sections, _joined(findings), losses, shown.faults)


def _joined(given: Mapping[type[Lens], Sequence[ItemT]]) -> list[ItemT]:
    """What lenses give, one after the other."""
    return [item for own in given.values() for item in own]


def _explained(section: Section, lens: type[Lens]) -> Section:
    """A section whose table says what its columns mean, as far as the lens says it."""
    if section.table is None or section.columns:
        return section
    known = {name: of for table in (*lens.tables.values(), *lens.result.values()) for name, of in table.items()}
    names: Mapping[str, str] = section.table.attrs.get("names", {})
    shown = {str(title): known.get(names.get(title, title)) for title in section.table}
    return dataclasses.replace(section, columns={title: said(of) for title, of in shown.items() if of is not None})


def _closing(faults: Sequence[str], losses: LossCurve, used: Sequence[type[Lens]]) -> list[Section]:
    """The sections of text: what is not shown, how the numbers that are were computed, limits, how to cite."""
    missing = [Section("Not shown", text="\n".join(f"- {fault}" for fault in faults))] if faults else []
    methods = _one_list([*_counted(losses), *(lens.methods for lens in used)])
    limits = _one_list([_LIMITS, *(lens.limits for lens in used)])
    texts = {"Methods": methods, "Limits": limits, "Citation": _CITATION}
    return missing + [Section(title, text=text) for title, text in texts.items()]


def _counted(losses: LossCurve) -> tuple[str, str]:
    """How far training was and how well it went: how both were measured, and what is not known of them."""
    if losses.axis is not FLOPS:
        compute = _NO_COMPUTE.format(unit=losses.axis.unit)
    else:
        compute = _COMPUTE if losses.logged else _COMPUTE_OF_SUITE
    if losses.logged:
        return compute, _LOSS
    return compute, _LOSS_OF_SUITE.format(n=int(losses.rows["n_val"].iloc[-1]))


def _one_list(parts: Iterable[str]) -> str:
    """Lists of items, each as a lens or this module has them, as one list."""
    return "\n".join(inspect.cleandoc(part) for part in parts if part)


def card(run: Checkpoints, losses: LossCurve) -> dict[str, Any]:
    """What the run is and where it comes from; of checkpoints without a log, with what they were measured to lose."""
    if losses.logged:
        return run.card()
    last = losses.rows.iloc[-1]
    scores = {name: float(last[name]) for name in losses.rows if str(name).startswith(("val_loss", "val_exact"))}
    return run.card() | {"step": int(last["step"]), **scores, "n_val": int(last["n_val"])}
