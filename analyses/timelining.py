"""Every lens of a run that exists, on one compute axis."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from analyses import ablation, describing, interchanging, patching
from analyses.emerging import emergence_tables
from analyses.result import chosen_features
from qfl_interp.config import ProbeConfig
from qfl_interp.plots import (
    Figure,
    Panel,
    ablation_panel,
    interchange_panel,
    mdl_panel,
    patch_panel,
    timeline_figure,
)
from qfl_interp.run import Run
from qfl_interp.series import Steps
from qfl_interp.tables import distinct, select


def timeline(
    run: Run,
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig | None = None,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Figure:
    """Every lens of a run on one compute axis, as a figure.

    Loss, exact match and probes, which are computed where they are missing, and below them the lenses that were
    computed before for these features, at whatever steps: ablation, interchange, patching, description length.

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: The checkpoints of the probes' curves.
        config: The probes'.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.
    """
    config = config or ProbeConfig()
    found = emergence_tables(run, features, steps, config=config, jobs=jobs, device=device, progress=progress)
    names = [feature.name for feature in chosen_features(run, features)]
    return timeline_figure(run.metrics, found.curves, found.verdicts, extra_panels=lens_panels(run, names, config))


def lens_panels(run: Run, features: Sequence[str], config: ProbeConfig) -> list[Panel]:
    """A panel for each lens and feature with rows in the run's tables.

    Of the lenses that use probes, the rows of this configuration; of several calls with other settings of the lens
    itself, the rows of one, so that a curve never mixes them.
    """
    panels = []
    for name in features:
        of_probes = {"feature": name, "settings": config.digest()}
        ablated = _rows(run, ablation.LENS, **of_probes)
        if len(ablated):
            panels.append(ablation_panel(ablated, name))
        swapped = _rows(run, interchanging.LENS, **of_probes)
        panels += [interchange_panel(swapped, name, label) for label in distinct(swapped, "label")]
        patched = _rows(run, patching.LENS, feature=name)
        panels += [patch_panel(patched, name, label) for label in distinct(patched, "label")]
        described = _rows(run, describing.LENS, **of_probes)
        if len(described):
            panels.append(mdl_panel(described, name))
    return panels


def _rows(run: Run, lens: str, **equals: object) -> pd.DataFrame:
    """Rows of a table with these values; of several calls with other settings, those of the one with most steps."""
    rows = select(run.table(lens).read(), **equals)
    if rows.empty:
        return rows
    return select(rows, analysis=rows.groupby("analysis")["step"].nunique().idxmax())
