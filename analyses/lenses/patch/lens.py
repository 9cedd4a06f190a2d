"""Where the model holds what decides its answer: clean activations written into corrupted runs, place by place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from plotly.graph_objects import Figure

from qfl_interp.analyses.at_step import View
from qfl_interp.analyses.choose import chosen_labels
from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lenses.patch.attribution_figure import attribution_figure
from qfl_interp.analyses.lenses.patch.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.patch.figure import patch_figure
from qfl_interp.analyses.lenses.patch.findings import findings
from qfl_interp.analyses.lenses.patch.pairs import HEADS, deciding_features, pairs_of, tokens_at
from qfl_interp.analyses.lenses.patch.panel import patch_panel
from qfl_interp.analyses.models_at import models_at
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.data.task import Task
from qfl_interp.digests import digest
from qfl_interp.interventions.attribution import attribution_error, attribution_patch
from qfl_interp.interventions.pairs import PatchPairs
from qfl_interp.interventions.patching import PatchScores, patch_sweep
from qfl_interp.models.build import HookedModel
from qfl_interp.plots.panels import Panel
from qfl_interp.report.page import Finding, Section
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.seeding import generator
from qfl_interp.tables import column, distinct, groups

COMPONENTS = ("resid_pre", "attn_out", "mlp_out")
_METRICS = ("logit_diff", "loss", "exact")
# Gradients between the corrupted and the clean run that attribution averages.
_GRADIENTS = 5


@dataclass(frozen=True)
class Patch(PartLens[Callable[[str, int], PatchPairs], HookedModel]):
    """A part a checkpoint, feature, label and component."""

    n_pairs: int = 64
    seed: int = 0
    attribution: bool = True

    name = "patch"
    question = "Where does the model hold what decides its answer?"
    tables, result = TABLES, RESULT
    order = 70
    methods = """
    - **Patching** writes one activation of the clean run, at one layer and position, into the corrupted run of such a
      pair. The scale is the corrupted run at 0 and the clean run at 1; the logit difference is the clean token's
      logit less the corrupted one's at the first token from the label on in which their answers differ.
      **Attribution** is the gradient's approximation of that effect.
    """
    limits = """
    - A patch tells which places matter for the pairs it was made with, one place at a time; what several places
      hold in common may show in none.
    - Late in the stack, at the token whose prediction is scored, a patch may bring the answer itself back rather than
      what the answer is computed from.
    """
    by = ("feature", "label")
    apart = True

    def part(self, piece: Piece) -> str:
        settings = digest(repr((self.n_pairs, self.seed, self.attribution)))
        return f"{piece.at}-{'-'.join(map(str, piece.key.values()))}-{settings}"

    def share(self) -> Callable[[str, int], PatchPairs]:
        of = functools.partial(pairs_of, self.run, n_pairs=self.n_pairs, seed=self.seed)
        return functools.lru_cache(maxsize=8)(of)

    def rows(self, shared: Callable[[str, int], PatchPairs], view: HookedModel, piece: Piece) -> pd.DataFrame:
        feature, label, component = piece.key.values()
        pairs, heads = shared(feature, label), component == HEADS
        site = "z" if heads else component
        scores = patch_sweep(view, pairs, component=site, positions="all" if heads else None)
        rng = generator(self.seed, f"patch/bootstrap/{feature}/{label}/{component}", piece.at.step)
        rows = _rows(scores, pairs, self.run.task, rng)
        rows = rows.assign(attribution=np.nan, attribution_r=np.nan, attribution_n=0)
        if self.attribution:
            found = attribution_patch(view, pairs, component=site, integrated=_GRADIENTS).normalised()
            # The gradient's estimate of several patches at once is the sum of theirs.
            found = found.sum(axis=1, keepdims=True) if heads else found
            rows["attribution"] = found.ravel()
            error = attribution_error(scores.normalised(), found)
            rows = rows.assign(attribution_r=error.pearson_r, attribution_n=error.n)
        return rows

    def columns(self, piece: Piece) -> dict[str, Any]:
        where = self.where(piece)
        return {"step": where.pop("step"), **piece.key, **where, "analysis": self.analysis(piece)}

    @classmethod
    def views(cls, run: Checkpoints) -> list[View]:
        """Its maps; and the attributions where a call has made any."""
        question = "Does the gradient's estimate of a patch agree with the patch?"
        attributed = cls.kept(run, _attributed)
        more = [attributed.view("patch/attribution", question, cls._attribution_at)] if attributed.shows_any() else []
        return super().views(run) + more

    @classmethod
    def draw_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        return patch_figure(rows, step=step, slider=False)

    @classmethod
    def _attribution_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        return attribution_figure(rows, step=step, slider=False)

    @classmethod
    def panels_of(cls, rows: pd.DataFrame) -> list[Panel]:
        """Of one component where several were patched: the residual stream, if it was."""
        panels = []
        for (feature, label), part in cls.parts_of(rows):
            components = distinct(part, "component")
            shown = COMPONENTS[0] if COMPONENTS[0] in components else components[0]
            panels.append(patch_panel(part, feature, label, component=shown))
        return panels

    @staticmethod
    def findings_of(rows: pd.DataFrame) -> list[Finding]:
        return findings(rows)

    @classmethod
    def sections_of(cls, rows: pd.DataFrame) -> list[Section]:
        """Each map followed by its attributions where there are any."""
        sections = []
        note = (
            "One activation of the clean run is written into the corrupted run: 1 brings the clean answer back, 0 "
            "changes nothing. Buttons change the metric. A cross: no value."
        )
        for values, part in cls.parts_of(rows):
            sections.append(cls.section_of("Patching: {}, label {}", values, part, patch_figure, note))
            if _attributed(part):
                sections.append(
                    Section(
                        sections[-1].title.replace("Patching", "Attribution", 1),
                        figure=attribution_figure(part),
                        note="The gradient's estimate of every patch above, which takes two runs in all, beside its "
                        "exact value. Far from the dotted line the estimate misleads.",
                    )
                )
        return sections


def patch(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "last",
    *,
    components: str | Sequence[str] = COMPONENTS,
    labels: int | Sequence[int] | None = None,
    n_pairs: int = 64,
    attribution: bool = True,
    seed: int = 0,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Patch clean activations into corrupted runs: where does the model hold what decides its answer?

    A pair's examples differ in one label of the feature. The corrupted run gets one activation of the clean run, at
    each layer (and head) and position in turn. Three metrics say how far that moves it from the corrupted run (0) to
    the clean one (1): `logit_diff`, the clean token's logit less the corrupted one's at the first token from the label
    on in which the two answers differ; `loss` of the clean answer from there on, behind the corrupted prompt; `exact`,
    the share of pairs in which all of that comes out. `attribution` approximates the first by gradients (the mean of 5
    between the runs; one alone can have every sign wrong). `attribution_r` is its correlation with the exact value,
    over the `attribution_n` entries of the map in which a patch changes something. Where a checkpoint gives both runs
    the same values, as an unembedding of zeros does, there is nothing to bring back: NaN.

    Examples:
        `qfl patch runs/add16 carry`,
        `qfl patch runs/add16 carry --label 3 --component heads --steps log:8`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default` whose pairs change the answer.
        steps: As in `probe`; the last checkpoint by default.
        components: Of "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", and by head "z", "q", "k", "v", at
            one position at a time; "heads" is the output z of one head at every position at once.
        labels: Which labels the pairs differ in; the middle one by default.
        n_pairs (--pairs): Pairs of a clean and a corrupted example.
        attribution: Compute the approximation by gradients too.
        seed: Draws pairs and bootstraps.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, feature, label, component, layer, head and position (-1: every one at once). Intervals are 95 %
        bootstraps over pairs.

    Raises:
        QflError: Unknown feature or step, or the model has no such component.
        ValueError: A label that the feature does not have, that no pair changes, or (of a feature that was named) whose
            pairs leave the answer alone.
    """
    if n_pairs < 1:
        raise ValueError(f"n_pairs must be at least 1, got {n_pairs}. 64 is the default.")
    if components == COMPONENTS:
        components = _there(run)
    chosen, left_out = deciding_features(run, features, labels, seed)
    pieces = [
        Piece(at, {"feature": feature.name, "label": label, "component": component})
        for at in models_at(run, steps)
        for feature in chosen
        for label in chosen_labels(feature, labels)
        for component in ([components] if isinstance(components, str) else components)
    ]
    lens = Patch(run, device, n_pairs, seed, attribution)
    rows = lens.compute(pieces, label="patching", jobs=jobs, progress=progress)
    return Result(
        f"Patching in {run.run_id}: the clean activation that brings most of the answer back (0 corrupted, 1 clean)"
        + left_out
        + _told_apart(rows),
        _summary(rows),
        rows,
        patch_figure,
        one_of=("feature", "label"),
        columns=RESULT,
        cube=Cube(("step", "component", "layer", "head", "position")),
        of=run.label,
    )


def _attributed(rows: pd.DataFrame) -> bool:
    """Whether there is an attribution to compare with its patch."""
    return bool(np.isfinite(column(rows, "attribution") + column(rows, "logit_diff_normalised")).any())


def _there(run: Checkpoints) -> tuple[str, ...]:
    """Those of the usual components that a model of this kind has."""
    sites = run.config.model.sites if isinstance(run, Run) else COMPONENTS
    return tuple(name for name in COMPONENTS if name in sites)


def _rows(scores: PatchScores, pairs: PatchPairs, task: Task, rng: np.random.Generator) -> pd.DataFrame:
    """One row a place and position."""
    n_places, n_positions = len(scores.places), len(scores.positions)
    low, high = scores.intervals("logit_diff", rng)
    columns: dict[str, object] = {
        "layer": np.repeat([place.layer for place in scores.places], n_positions),
        "head": np.repeat([place.head for place in scores.places], n_positions),
        "position": np.tile(scores.positions, n_places),
        "token": tokens_at(task, pairs, scores.positions) * n_places,
    }
    for name in _METRICS:
        columns[name] = getattr(scores, name).mean(axis=2, dtype=np.float64).ravel()
        columns[f"{name}_normalised"] = scores.normalised(name).ravel()
        columns[f"{name}_clean"] = scores.clean.mean(name)
        columns[f"{name}_corrupted"] = scores.corrupted.mean(name)
    return pd.DataFrame(
        {
            **columns,
            "logit_diff_low": low.ravel(),
            "logit_diff_high": high.ravel(),
            "n_pairs": len(pairs),
            "n_dropped": pairs.n_dropped,
        }
    )


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """The place with the largest effect of each feature, label, step and component."""
    keys = ["feature", "label", "step", "component"]
    known = rows.dropna(subset=["logit_diff_normalised"])
    best = known.loc[known.groupby(keys, sort=False)["logit_diff_normalised"].idxmax()]
    columns = ["layer", "head", "position", "token", "logit_diff_normalised", "exact_normalised"]
    if known["attribution"].notna().any():
        columns += ["attribution_r", "attribution_n"]
    return best.filter([*keys, *columns])  # a table of before lacks the last one


def _told_apart(rows: pd.DataFrame) -> str:
    """At which steps clean and corrupted runs give the same."""
    steps = [
        str(step) for step, part in groups(rows, "step") if not np.isfinite(column(part, "logit_diff_normalised")).any()
    ]
    return f"; no value at step {', '.join(steps)}: clean and corrupted runs answer alike there" if steps else ""
