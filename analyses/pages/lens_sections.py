"""The sections of the lenses that a run need not have: one figure a feature, and a label where pairs differ in one."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from analyses.lenses.ablate.figure import ablation_over_steps_figure
from analyses.lenses.ablate_units.figure import units_figure
from analyses.lenses.interchange.figure import interchange_figure
from analyses.lenses.mdl.figure import mdl_figure
from analyses.lenses.patch.attribution_figure import attribution_figure
from analyses.lenses.patch.figure import patch_figure
from analyses.lenses.transfer.figure import transfer_figure
from qfl_interp.report.page import Section
from qfl_interp.tables import column, groups

_UNITS: Final = {"z": "attention heads", "mlp_post": "MLP neurons"}
# Fewer steps than this are no curve.
_FEWEST_STEPS: Final = 2


def transfer_sections(rows: pd.DataFrame | None) -> list[Section]:
    """Probes carried between steps, a section a feature.

    Args:
        rows: Table "transfer"; None or without rows: no section. Likewise in the other functions.
    """
    note = (
        "Probes fitted at one step (rows) read the activations of another (columns); the outlined diagonal is each "
        "probe at its own step. Brighter is better: where a row stays bright to the right, the feature keeps its "
        "directions. Buttons change what the colours mean."
    )
    return [
        Section(
            f"Probes carried over: {_words(feature)}",
            figure=transfer_figure(part),
            note=note,
            downloads={f"transfer_{feature}": part},
        )
        for feature, part in _parts(rows, "feature")
    ]


def mdl_sections(rows: pd.DataFrame | None) -> list[Section]:
    """Description lengths, a section a feature with a coded label at a step after the first."""
    note = (
        "How many times shorter the activations make a code for the feature's labels: 1 is no gain. The more, and the "
        "fewer examples a probe needs to learn a label, the shorter the code."
    )
    return [
        Section(
            f"Description length: {_words(feature)}",
            figure=mdl_figure(part),
            note=note,
            downloads={f"mdl_{feature}": part},
        )
        for feature, part in _parts(rows, "feature")
        if (np.isfinite(column(part, "compression")) & (column(part, "flops") > 0)).any()
    ]


def ablation_over_steps_sections(rows: pd.DataFrame | None) -> list[Section]:
    """Exact match under ablation over compute, a section a method and feature that has several steps."""
    sections = []
    for feature, of_feature in _parts(rows, "feature"):
        for method, part in groups(of_feature, "method"):
            if int((np.unique(column(part, "flops")) > 0).sum()) < _FEWEST_STEPS:
                continue
            trials = int(column(part, "n_trials").max())
            sections.append(
                Section(
                    f"Ablation over training: {_words(feature)}, {_words(method)}",
                    figure=ablation_over_steps_figure(part),
                    note="From when on does the model use the feature? Curves part where it does. Whiskers: 95 % "
                    f"intervals; {trials:,} trials of every control.",
                    downloads={f"ablate_{feature}_{method}": part},
                )
            )
    return sections


def interchange_sections(rows: pd.DataFrame | None) -> list[Section]:
    """Interchanges, a section a feature with a panel a label."""
    note = (
        "Does the answer follow what is swapped in? Each pair's corrupted run gets a part of the clean run's "
        "activation where the label is read; the figure shows in how many pairs the next token of the answer that "
        "tells the two apart becomes the clean one. The whole activation is all that the place holds; random "
        "directions are the control. Whiskers: 95 % intervals."
    )
    return [
        Section(
            f"Interchange: {_words(feature)}",
            figure=interchange_figure(part),
            note=note,
            downloads={f"interchange_{feature}": part},
        )
        for feature, part in _parts(rows, "feature")
    ]


def patch_sections(rows: pd.DataFrame | None) -> list[Section]:
    """Patching maps, a section a feature and label, each followed by its attributions where there are any."""
    sections = []
    for feature, of_feature in _parts(rows, "feature"):
        for label, part in groups(of_feature, "label"):
            what = f"{_words(feature)}, label {label}"
            sections.append(
                Section(
                    f"Patching: {what}",
                    figure=patch_figure(part),
                    note="One activation of the clean run is written into the corrupted run: 1 brings the clean answer "
                    "back, 0 changes nothing. Buttons change the metric. A cross: no value.",
                    downloads={f"patch_{feature}_{label}": part},
                )
            )
            if np.isfinite(column(part, "attribution") + column(part, "logit_diff_normalised")).any():
                sections.append(
                    Section(
                        f"Attribution: {what}",
                        figure=attribution_figure(part),
                        note="The gradient's estimate of every patch above, which takes two runs in all, beside its "
                        "exact value. Far from the dotted line the estimate misleads.",
                    )
                )
    return sections


def unit_sections(rows: pd.DataFrame | None) -> list[Section]:
    """Single heads and neurons, a section a site and method."""
    return [
        Section(
            f"Single {_UNITS.get(name, _words(name))}, {_words(method)}",
            figure=units_figure(part),
            note="How much the loss over the answer rises when one unit alone is replaced at every token. Hovering "
            "over one shows the 95 % interval.",
            downloads={f"ablate_units_{name}_{method}": part},
        )
        for name, of_name in _parts(rows, "name")
        for method, part in groups(of_name, "method")
    ]


def _parts(rows: pd.DataFrame | None, name: str) -> list[tuple[str, pd.DataFrame]]:
    """The rows by a column's values; none without rows."""
    return [] if rows is None else groups(rows, name)


def _words(name: str) -> str:
    """A name as a person reads it."""
    return str(name).replace("_", " ")
