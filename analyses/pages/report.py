"""One page on a run: every lens that was computed, and the run's card; needs no other file and no network."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from analyses.choose import chosen_features, with_loss_curve
from analyses.lens import Page
from analyses.pages.shown import Shown
from analyses.registered import lenses
from qfl_interp.config import ProbeConfig
from qfl_interp.plots.panels import Panel
from qfl_interp.report.page import Finding, Section, write_report
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints, Steps

# What the card of a run says of its last validation, where it was measured.
_SCORES: Final = ("val_loss", "val_exact", "val_loss_answer", "val_exact_answer")
_METHODS: Final = """\
- **Compute** is the nominal budget at each step, `6 (12 n_layers d_model^2 + n_layers n_ctx d_model)` FLOPs
  a token as the paper counts; that of a plain pass with padding and the real widths stands
  beside it in the run's card. Step 0 has no place on a logarithmic axis and is left out of the timeline.
- **Loss and exact match** are measured on a fixed validation set that shares no example with training,
  twice: as the paper counts (from the `=` sign on) and over the answer alone.
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
    beside: Sequence[Run] = (),
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
    run = with_loss_curve(run)
    names = tuple(feature.name for feature in chosen_features(run, features))
    page = Page(run, names, steps, config or ProbeConfig(), n_trials, jobs, device, progress, tuple(beside or ()))
    shown = Shown(page)
    page = shown.page
    found = shown.ask_each(lambda lens: lens.sections(page), Section)
    drawn = {lens for lens, own in found.items() if any(section.figure is not None for section in own)}
    # A panel of a single step is no curve, and left to the lens' own figure.
    panels = shown.ask_each(lambda lens: [p for p in lens.panels(page) if lens not in drawn or _is_curve(p)], Panel)
    findings = shown.ask(lambda lens: lens.findings(page), Finding)
    timeline = Section(
        "Timeline",
        figure=shown.timeline(panels),
        note="The shaded band is the loss transition; open markers are where a feature became decodable. "
        "Drag sideways to zoom into a stretch of compute, double-click to go back. A legend entry hides its "
        "curves.",
        downloads={"validation": run.metrics.dropna(subset=["val_loss"])},
    )
    shown.warn()
    sections = [timeline, *(section for own in found.values() for section in own), *_closing(shown.faults)]
    return write_report(out or run.page("report.html"), card(run), sections, findings=findings)


def _closing(faults: Sequence[str]) -> list[Section]:
    """The sections of text: what is not shown, how numbers were computed, limits, how to cite."""
    missing = [Section("Not shown", text="\n".join(f"- {fault}" for fault in faults))] if faults else []
    methods = _one_list([_METHODS, *(lens.methods for lens in lenses())])
    limits = _one_list([_LIMITS, *(lens.limits for lens in lenses())])
    texts = {"Methods": methods, "Limits": limits, "Citation": _CITATION}
    return missing + [Section(title, text=text) for title, text in texts.items()]


def _one_list(parts: Iterable[str]) -> str:
    """Lists of items, each as a lens or this module has them, as one list."""
    return "\n".join(inspect.cleandoc(part) for part in parts if part)


def _is_curve(panel: Panel) -> bool:
    """Whether a panel has more than one step."""
    columns: list[Any] = [trace["x"] for trace in panel.traces]
    return len({float(x) for column in columns for x in column}) > 1


def card(run: Run) -> dict[str, Any]:
    """What the run is and where it comes from."""
    metrics, config = run.metrics, run.config
    last = metrics.dropna(subset=["val_loss"]).iloc[-1]
    session = run.provenance[-1] if run.provenance else {}
    return {
        "run_id": run.run_id,
        "task": config.task,
        "length": config.length,
        "n_parameters": run.n_parameters,
        "n_steps": config.n_steps,
        "step": int(last["step"]),
        "budget_flops": config.train.budget_flops or math.nan,
        "nominal_flops": float(last["flops"]),
        "actual_flops": float(last["actual_flops"]),
        "seconds": float(last["seconds"]),
        **{name: float(last[name]) for name in _SCORES if name in last},
        "seed": config.train.seed,
        "model": config.model.to_dict(),
        "train": config.train.to_dict()
        if config.recorded is None
        else {"recorded": dataclasses.asdict(config.recorded)},
        **{name: session.get(name) for name in ("started", "device", "threads", "git_commit", "versions", "command")},
    }
