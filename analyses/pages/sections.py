"""The standard sections of a run's report; a table that is missing is named together with what makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd

from analyses.lenses.ablate.figure import ablation_figure
from analyses.lenses.curvature.section import curvature_sections
from analyses.lenses.curvature.tables import Measured
from analyses.lenses.emergence.figure import feature_panels, shading
from analyses.lenses.polca.section import polca_sections
from analyses.lenses.polca.tables import Clustered
from analyses.lenses.probe.figure import probe_heatmap
from analyses.pages.lens_sections import (
    ablation_over_steps_sections,
    interchange_sections,
    mdl_sections,
    patch_sections,
    transfer_sections,
    unit_sections,
)
from analyses.pages.timeline_figure import timeline_figure
from analyses.pages.words import CITATION, LIMITS, METHODS
from qfl_interp.plots.conditions import ABLATION
from qfl_interp.plots.panels import Panel
from qfl_interp.report.page import Section

_VERDICT_COLUMNS: Final = {
    "feature": "feature",
    "third": "third",
    "verdict": "verdict",
    "certain": "certain",
    "lead_log10": "lead (decades)",
    "lead_low": "range, low",
    "lead_high": "range, high",
    "onset_flops": "onset (FLOPs)",
    "onset_step_before": "after step",
    "onset_step_after": "by step",
    "fraction_at_start": "loss at transition start / untrained",
    "metric": "probe loss",
    "baseline": "untrained",
    "best": "best",
}
_ABLATION_COLUMNS: Final = {
    "feature": "feature",
    "condition": "condition",
    "exact_answer": "exact match, answer",
    "exact": "exact match, paper",
    "loss_answer": "loss, answer (nats)",
    "loss": "loss, paper (nats)",
    "p_value_paired": "p, paired",
    "p_value_trials": "p, among trials",
    "p_value_holm": "p, Holm",
    "n_examples": "examples",
    "n_trials": "trials",
}


def standard_sections(
    metrics: pd.DataFrame | None = None,
    *,
    probe: pd.DataFrame | None = None,
    emergence_curve: pd.DataFrame | None = None,
    emergence: pd.DataFrame | None = None,
    transfer: pd.DataFrame | None = None,
    mdl: pd.DataFrame | None = None,
    ablate: pd.DataFrame | None = None,
    ablate_over_steps: pd.DataFrame | None = None,
    interchange: pd.DataFrame | None = None,
    patch: pd.DataFrame | None = None,
    ablate_units: pd.DataFrame | None = None,
    polca: Clustered | None = None,
    curvature: Measured | None = None,
    panels: Sequence[Panel] = (),
) -> list[Section]:
    """Timeline, verdicts, probe maps, ablation, every further lens with rows, methods, limits and citation.

    Timeline, probes and ablation have a section in any case, which says what to run where the table is missing. Each
    table holds the rows of one call for every feature (and label), at any number of steps unless it says otherwise.

    Args:
        metrics: Table "metrics"; None or without rows: nothing was logged. Likewise the others.
        probe: Table "probe".
        emergence_curve: Table "emergence_curve".
        emergence: Table "emergence".
        transfer: Table "transfer".
        mdl: Table "mdl".
        ablate: Table "ablate", of one step.
        ablate_over_steps: Table "ablate"; shown where it has several steps.
        interchange: Table "interchange", with `p_value_holm`.
        patch: Table "patch".
        ablate_units: Table "ablate_units".
        polca: Tables of one POLCA analysis.
        curvature: Tables of one configuration of curvature.
        panels: Further panels of the timeline.
    """
    sections = [_timeline(metrics, emergence_curve, emergence, panels)]
    if emergence is not None and not emergence.empty:
        sections.append(
            Section(
                "Verdicts",
                table=_view(emergence, _VERDICT_COLUMNS),
                downloads={"emergence": emergence},
                note="One row a feature and third. A positive lead means learned before the loss moved. The range is "
                "what the spacing of checkpoints and validations leaves open, widened by the 95 % bootstrap over test "
                "examples.",
            )
        )
    sections += [*_probe_maps(probe), *transfer_sections(transfer), *mdl_sections(mdl)]
    sections += [_ablation(ablate), *ablation_over_steps_sections(ablate_over_steps)]
    sections += [*interchange_sections(interchange), *patch_sections(patch), *unit_sections(ablate_units)]
    sections += [*(polca_sections(polca) if polca else []), *(curvature_sections(*curvature) if curvature else [])]
    sections.append(Section("Methods", text=METHODS))
    sections.append(Section("Limits", text=LIMITS))
    sections.append(Section("Citation", text=CITATION))
    return sections


def _view(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Some columns under the names a reader sees."""
    known = {name: title for name, title in columns.items() if name in table.columns}
    return pd.DataFrame({title: table[name] for name, title in known.items()})


def _missing(title: str, what: str, command: str) -> Section:
    """A section that says what to run."""
    return Section(title, text=f"{what} yet. Run `{command}`, then make this report again.")


def _timeline(
    metrics: pd.DataFrame | None,
    curves: pd.DataFrame | None,
    emergence: pd.DataFrame | None,
    panels: Sequence[Panel],
) -> Section:
    """The timeline; without probes, loss and exact match alone."""
    if metrics is None or metrics.empty:
        return _missing("Timeline", "Nothing was logged", "qfl train")
    downloads = {"validation": metrics.dropna(subset=["val_loss"])}
    if curves is None or curves.empty:
        note = "No feature was probed yet: run `qfl probe` to see when each becomes decodable."
        return Section("Timeline", figure=timeline_figure(metrics), note=note, downloads=downloads)
    verdicts = pd.DataFrame() if emergence is None else emergence
    return Section(
        "Timeline",
        figure=timeline_figure(metrics, [*feature_panels(curves, verdicts), *panels], shading(verdicts)),
        note="The shaded band is the loss transition; open markers are where a feature became decodable. "
        "Drag sideways to zoom into a stretch of compute, double-click to go back. A legend entry hides its "
        "curves.",
        downloads=downloads | {"emergence_curve": curves},
    )


def _probe_maps(probe: pd.DataFrame | None) -> list[Section]:
    """A heat map for each feature."""
    if probe is None or probe.empty:
        return [_missing("Probes", "No feature was probed", "qfl probe")]
    note = (
        "Probes on the residual stream after each layer; brighter is better, and colours mean the same at "
        "every step. Move the slider or press play to go through training. A cross: no probe, the label "
        "does not vary or few examples have it."
    )
    features = dict.fromkeys(str(feature) for feature in probe["feature"])
    return [
        Section(f"Probes: {feature.replace('_', ' ')}", figure=probe_heatmap(probe, feature), note=note)
        for feature in features
    ]


def _ablation(ablate: pd.DataFrame | None) -> Section:
    """Ablation bars with the table behind them."""
    title = "Ablation"
    if ablate is None or ablate.empty:
        return _missing(title, "No feature was ablated", "qfl ablate")
    named = ablate.assign(condition=[ABLATION[name].legend for name in ablate["condition"]])
    return Section(
        title,
        figure=ablation_figure(ablate),
        table=_view(named, _ABLATION_COLUMNS),
        downloads={"ablate": ablate},
        note="Does the model use the features? Each one's probe directions are taken out while the model answers. "
        "Hatched: controls that disturb the same places. Whiskers: 95 % intervals.",
    )
