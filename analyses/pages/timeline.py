"""Every lens of a run that exists, on one compute axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from plotly.graph_objects import Figure

from analyses.choose import chosen_features
from analyses.lenses.ablate.figure import ablation_panel
from analyses.lenses.curvature.figure import curvature_panels
from analyses.lenses.curvature.tables import stored as stored_curvature
from analyses.lenses.emergence.figure import feature_panels, shading
from analyses.lenses.emergence.lens import emergence_tables, with_loss_curve
from analyses.lenses.interchange.figure import interchange_panel
from analyses.lenses.mdl.figure import mdl_panel
from analyses.lenses.patch.panel import patch_panel
from analyses.lenses.polca.clusters import telling as polca_telling
from analyses.lenses.polca.figure import polca_panel
from analyses.lenses.polca.tables import stored as stored_polca
from analyses.pages.timeline_figure import timeline_figure
from analyses.stored import stored_rows
from qfl_interp.config import ProbeConfig
from qfl_interp.plots.panels import Panel
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import distinct, groups

# Whose patches a panel shows where several components were patched.
_COMPONENT = "resid_pre"


def timeline(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig | None = None,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Figure:
    """Draw loss, exact match, every feature's probes and every other lens that was computed over one compute axis.

    Loss, exact match and probes, which are computed where they are missing, and below them the lenses that were
    computed before for these features, at whatever steps: ablation, interchange, patching, description length, POLCA,
    curvature.

    Example:
        `qfl timeline runs/add16 --out timeline.html`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`.
        steps: The checkpoints of the probes' curves.
        config: The probes'.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Raises:
        QflError: As `emergence`; a series that is no `Run` has no loss curve.
    """
    run, config = with_loss_curve(run), config or ProbeConfig()
    found = emergence_tables(run, features, steps, config=config, jobs=jobs, device=device, progress=progress)
    names = [feature.name for feature in chosen_features(run, features)]
    panels = [*feature_panels(found.curves, found.verdicts), *lens_panels(run, names, config)]
    return timeline_figure(run.metrics, panels, shading(found.verdicts))


def lens_panels(run: Run, features: Sequence[str], config: ProbeConfig) -> list[Panel]:
    """A panel for each lens and feature (and label) with rows in the run's tables.

    Of the lenses that use probes, the rows of this configuration; of several calls with other settings of the lens
    itself, the rows of one (`analyses.stored`).
    """
    panels: list[Panel] = []
    for name in features:
        of_probes = {"feature": name, "settings": config.digest()}
        ablated = stored_rows(run, "ablate", ["feature"], **of_probes)
        if len(ablated):
            panels.append(ablation_panel(ablated, name))
        swapped = stored_rows(run, "interchange", ["label"], **of_probes)
        panels += [interchange_panel(swapped, name, label) for label in distinct(swapped, "label")]
        patched = stored_rows(run, "patch", ["label"], feature=name)
        for label, rows in groups(patched, "label"):
            components = distinct(rows, "component")
            shown = _COMPONENT if _COMPONENT in components else components[0]
            panels.append(patch_panel(rows, name, label, component=shown))
        described = stored_rows(run, "mdl", ["feature"], **of_probes)
        if len(described):
            panels.append(mdl_panel(described, name))
    found = stored_polca(run)
    if found is not None and len(found.clusters):
        panels.append(polca_panel(found.curves, found.clusters, polca_telling(found.clusters)[0]))
    bent = stored_curvature(run)
    if bent is not None:
        panels += curvature_panels(bent.rows, bent.ranks)
    return panels
