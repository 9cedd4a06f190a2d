"""One page on a run, or on several beside each other; needs no other file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from qfl_interp.analyses.choose import chosen_features
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.pages.comparison import comparison
from qfl_interp.analyses.pages.known import known_page
from qfl_interp.analyses.pages.run_page import run_page
from qfl_interp.config import ProbeConfig
from qfl_interp.report.page import write_report
from qfl_interp.runs.series import Checkpoints, Steps


def report(
    run: Checkpoints | Sequence[Checkpoints],
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    out: str | Path | None = None,
    beside: Sequence[Checkpoints] = (),
    config: ProbeConfig | None = None,
    n_trials: int = 32,
    compute: bool = True,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Path:
    """Write one self-contained page on a run; analyses that are missing are computed first.

    The call computes probes, verdicts and the ablation of the last checkpoint where they are missing. The page also
    shows whatever any registered lens computed before for these features, at whatever steps; of a lens that was called
    with several settings, the call with most steps. The page and standard error name a lens that cannot be drawn.

    Of several runs one page shows the curves over each other, what their configurations do otherwise, and the verdicts
    side by side. That page computes nothing. It says what is missing and the command that computes it.

    Examples:
        `qfl report runs/add16`,
        `qfl report runs/a runs/b runs/c --out comparison.html`

    Args:
        run: What to look at; several are compared.
        features: Names; by default those of the task with `by_default`.
        steps: The checkpoints of the curves, "auto" those that verdicts need; ablation is of the last of them.
        out: The page; `report.html` in the run directory by default (in `run.workplace` where that is read-only), of
            several `comparison.html` in that of the first.
        beside: Other runs, such as forks and their control, whose loss and exact match are drawn over this one's.
        config: The probes'.
        n_trials: Random controls of the ablation.
        compute: Compute what is missing. If not, the page shows what the run's tables hold, whatever probes these
            are of.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw bars on standard error.

    Returns:
        Where the page is.

    Raises:
        QflError: A file of the run is damaged; or the page cannot be written, and an earlier one is as it was.
    """
    runs = [run] if isinstance(run, Checkpoints) else list(run)
    if len(runs) > 1:
        return comparison(runs, features, out=out)
    (run,) = runs
    if compute:
        names = tuple(feature.name for feature in chosen_features(run, features))
        page = Page(run, names, steps, config or ProbeConfig(), n_trials, jobs, device, progress, tuple(beside or ()))
    else:
        page = known_page(run, features, beside or ())
    shown = run_page(page)
    return write_report(out or run.page("report.html"), shown.card, shown.sections, findings=shown.findings)
