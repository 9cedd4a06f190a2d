"""One page on a run: every lens that was computed, and the run's card; needs no other file and no network."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from qfl_interp.analyses.choose import chosen_features
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.loss_curve import LossCurve
from qfl_interp.analyses.pages.shown import Shown
from qfl_interp.analyses.registered import lenses
from qfl_interp.config import ProbeConfig
from qfl_interp.plots.axes import FLOPS
from qfl_interp.plots.panels import Panel
from qfl_interp.plots.paper import name_figure
from qfl_interp.plots.theme import plain
from qfl_interp.report.page import Finding, Section, write_report
from qfl_interp.runs.series import Checkpoints, Steps

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


def report(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    out: str | Path | None = None,
    beside: Sequence[Checkpoints] = (),
    config: ProbeConfig | None = None,
    n_trials: int = 32,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Path:
    """Write one self-contained page on a run; analyses that are missing are computed first.

    Probes, verdicts and the ablation of the last checkpoint are computed where they are missing. Whatever any
    registered lens computed before for these features is shown too, at whatever steps. Where a lens was called with
    several settings, the call with most steps is shown. A lens that cannot be drawn is named, on the page and on
    standard error.

    Example:
        `qfl report runs/add16`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: The checkpoints of the curves, "auto" those that verdicts need; ablation is of the last of them.
        out: The page; `report.html` in the run directory by default (in `run.workplace` where that is read-only).
        beside: Other runs, such as forks and their control, whose loss and exact match are drawn over this one's.
        config: The probes'.
        n_trials: Random controls of the ablation.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw bars on standard error.

    Returns:
        Where the page is.

    Raises:
        QflError: A file of the run is damaged; or the page cannot be written, and an earlier one is as it was.
    """
    names = tuple(feature.name for feature in chosen_features(run, features))
    page = Page(run, names, steps, config or ProbeConfig(), n_trials, jobs, device, progress, tuple(beside or ()))
    shown = Shown(page)
    page = shown.page
    found = shown.ask_each(lambda lens: lens.sections(page), Section)
    drawn = {lens for lens, own in found.items() if any(section.figure is not None for section in own)}
    # A panel of a single step is no curve, and left to the lens' own figure.
    panels = shown.ask_each(lambda lens: [p for p in lens.panels(page) if lens not in drawn or _is_curve(p)], Panel)
    findings = shown.ask(lambda lens: lens.findings(page), Finding)
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
    sections = [
        timeline,
        *(section for own in found.values() for section in own),
        *_closing(shown.faults, losses),
    ]
    for section in sections:
        if section.figure is not None:
            name_figure(section.figure, plain(run.label))
    return write_report(out or run.page("report.html"), card(run, losses), sections, findings=findings)


def _closing(faults: Sequence[str], losses: LossCurve) -> list[Section]:
    """The sections of text: what is not shown, how numbers were computed, limits, how to cite."""
    missing = [Section("Not shown", text="\n".join(f"- {fault}" for fault in faults))] if faults else []
    methods = _one_list([*_counted(losses), *(lens.methods for lens in lenses())])
    limits = _one_list([_LIMITS, *(lens.limits for lens in lenses())])
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


def _is_curve(panel: Panel) -> bool:
    """Whether a panel has more than one step."""
    columns: list[Any] = [trace["x"] for trace in panel.traces]
    return len({float(x) for column in columns for x in column}) > 1


def card(run: Checkpoints, losses: LossCurve) -> dict[str, Any]:
    """What the run is and where it comes from; of checkpoints without a log, with what they were measured to lose."""
    if losses.logged:
        return run.card()
    last = losses.rows.iloc[-1]
    scores = {name: float(last[name]) for name in losses.rows if str(name).startswith(("val_loss", "val_exact"))}
    return run.card() | {"step": int(last["step"]), **scores, "n_val": int(last["n_val"])}
