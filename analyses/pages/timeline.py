"""Every lens of a run that exists, on one axis of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from plotly.graph_objects import Figure

from qfl_interp.analyses.choose import chosen_features
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.pages.shown import Shown, is_curve
from qfl_interp.config import ProbeConfig
from qfl_interp.plots.panels import Panel
from qfl_interp.report.drawing import Drawing
from qfl_interp.runs.series import Checkpoints, Steps


def timeline(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    beside: Sequence[Checkpoints] = (),
    config: ProbeConfig | None = None,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Figure:
    """Draw loss, exact match, every feature's probes and every other lens that was computed over one axis of training.

    The axis is logarithmic: FLOPs where they are known, else tokens, else steps, and it says which. The call computes
    the probes that are missing (and the loss of a suite). Below loss, exact match and probes stands every registered
    lens that was computed before for these features at several steps, those of other packages too. Standard error
    names a lens that cannot be drawn.

    Example:
        `qfl timeline runs/add16 --out timeline.html`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: The checkpoints of the probes' curves; "auto": those that verdicts need.
        beside: Other runs, such as forks and their control, whose loss and exact match are drawn over this one's.
        config: The probes'.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Raises:
        QflError: As `emergence`.
    """
    names = tuple(feature.name for feature in chosen_features(run, features))
    how = {"jobs": jobs, "device": device, "progress": progress}
    page = Page(run, names, steps, config or ProbeConfig(), beside=tuple(beside or ()), **how)
    shown = Shown(page)
    page = shown.page
    # A panel of a single step is no curve: the report has the lens' own figure.
    panels = shown.ask_each(lambda lens: [panel for panel in lens.panels(page) if is_curve(panel)], Panel)
    figure = Drawing.of(lambda: shown.timeline(panels), run.label)
    shown.warn()
    return figure
