"""Whether the answer follows a feature's value: its direction alone, swapped between two runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from plotly.graph_objects import Figure

from qfl_interp.analyses.choose import chosen_labels, require_one_a_token
from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lenses.interchange.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.interchange.figure import interchange_figure, interchange_panel
from qfl_interp.analyses.lenses.patch.pairs import deciding_features
from qfl_interp.analyses.lenses.probe.data import part_name, probe_tensors, stored_probes
from qfl_interp.analyses.lenses.probe.lens import probe
from qfl_interp.analyses.models_at import ModelAt, models_at
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.analyses.stored import interval_columns, with_holm
from qfl_interp.config import ProbeConfig
from qfl_interp.data.examples import held_out_pairs
from qfl_interp.digests import digest
from qfl_interp.interventions.interchange import Condition, InterchangeScores, interchange_scores
from qfl_interp.interventions.pairs import PatchPairs, patch_pairs
from qfl_interp.models.build import HookedModel
from qfl_interp.plots.panels import Panel
from qfl_interp.probes import independent
from qfl_interp.report.page import Section
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.seeding import generator
from qfl_interp.stats import bootstrap_mean, paired_sign_flip
from qfl_interp.tables import groups

# Conditions, and what the summary calls them.
_SWAPPED: dict[Condition, str] = {
    "none": "nothing",
    "feature": "probe",
    "mean_shift": "class means",
    "random": "random",
    "whole": "everything",
}


@dataclass(frozen=True)
class Interchange(PartLens[Callable[[str, int], PatchPairs], HookedModel]):
    """A part a checkpoint, feature and label."""

    config: ProbeConfig = field(default_factory=ProbeConfig)
    n_pairs: int = 256
    n_random: int = 32

    name = "interchange"
    question = "Does the answer follow a feature's value when its directions are swapped?"
    tables, result = TABLES, RESULT
    order = 60
    methods = """
    - **Interchange** takes pairs of examples that differ in one label of a feature. At the token where the label is
      read, the corrupted run gets the clean run's component along some directions and keeps the rest of its own
      activation; a pair counts as flipped if the next differing token of its answer becomes the clean one. Beside
      the probe's directions stand those in which the classes' mean activations differ, no swap, random directions
      of the probe's number and the whole activation (Geiger et al., https://arxiv.org/abs/2106.02997).
    """
    by = ("feature", "label")
    together = ("label",)
    of_probes = True

    def part(self, piece: Piece) -> str:
        name, label = piece.key.values()
        settings = digest(repr((self.n_pairs, self.n_random)))
        return f"{part_name(piece.at, name, self.config)}-{label}-{settings}"

    def fetch(self, missing: Mapping[ModelAt, Sequence[Piece]], *, jobs: int, progress: bool) -> None:
        names = list(dict.fromkeys(piece.key["feature"] for pieces in missing.values() for piece in pieces))
        how: dict[str, Any] = {"config": self.config, "n_untrained": 0, "device": self.device}
        probe(self.run, names, [at.step for at in missing], **how, jobs=jobs, progress=progress)

    def share(self) -> Callable[[str, int], PatchPairs]:
        return functools.lru_cache(maxsize=None)(self._pairs)

    def _pairs(self, name: str, label: int) -> PatchPairs:
        """The pairs of a feature and label, the clean examples of the split "test"."""
        seed, task = self.config.seed, self.run.task
        return patch_pairs(
            task, held_out_pairs(task, "test", self.n_pairs, name, label, seed=seed, stream="interchange")
        )

    def rows(self, shared: Callable[[str, int], PatchPairs], view: HookedModel, piece: Piece) -> pd.DataFrame:
        (name, label), step, seed = piece.key.values(), piece.at.step, self.config.seed
        feature, pairs = self.run.task.feature(name), shared(name, label)
        # Patching drops some pairs; what is left is read back from the prompts.
        positions, source = (
            torch.from_numpy(np.array(feature.positions(self.run.task.decode(tokens))[:, label]))
            for tokens in (pairs.corrupted_answer, pairs.clean)
        )
        stored = stored_probes(self.run, feature, step, self.config)
        shifts = probe_tensors(self.run, step, name, self.config)["mean_shift"].double()
        rows = []
        for layer in range(len(stored.weight)):
            kept, shift = stored.fitted[layer, label], shifts[layer, label]
            if not kept.any():
                raise ValueError(
                    f"label {label} of {name!r} has no probe at step {step}: it does not vary or few examples have it. "
                    "Choose another label."
                )
            scores = interchange_scores(
                view,
                pairs,
                layer=layer,
                positions=positions,
                source_positions=source,
                directions=stored.weight[layer, label][kept],
                mean_shift=independent(shift, shift[:, 0]).directions,
                rng=generator(seed, f"interchange/{name}/{label}/{layer}", step),
                name=self.config.site,
                n_random=self.n_random,
            )
            rng = generator(seed, f"interchange/bootstrap/{name}/{label}/{layer}", step)
            rows += [{"layer": layer, "n_directions": int(kept.sum()), **row} for row in _rows(scores, rng)]
        return pd.DataFrame(rows)

    def columns(self, piece: Piece) -> dict[str, Any]:
        probes = {"site": self.config.site, "settings": self.config.digest()}
        return {**self.where(piece), **piece.key, **probes, "analysis": self.analysis(piece)}

    @classmethod
    def draw_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        return interchange_figure(with_holm(rows), step=step, slider=False)

    @classmethod
    def panels_of(cls, rows: pd.DataFrame) -> list[Panel]:
        return [interchange_panel(part, *values) for values, part in cls.parts_of(rows)]

    @classmethod
    def sections_of(cls, rows: pd.DataFrame) -> list[Section]:
        note = (
            "Does the answer follow what is swapped in? Each pair's corrupted run gets a part of the clean run's "
            "activation where the label is read; the figure shows in how many pairs the next token of the answer that "
            "tells the two apart becomes the clean one. The whole activation is all that the place holds; random "
            "directions are the control. Whiskers: 95 % intervals."
        )
        return [
            cls.section_of("Interchange: {}", [feature], part, interchange_figure, note)
            for feature, part in groups(with_holm(rows), "feature")
        ]


def interchange(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "last",
    *,
    config: ProbeConfig | None = None,
    labels: int | Sequence[int] | None = None,
    n_pairs: int = 256,
    n_random: int = 32,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Swap a feature's direction alone between two runs: does the answer follow the feature?

    A pair's examples differ in one label. Where that label is read, the corrupted run gets the clean run's component
    along the probe's directions ("feature") and keeps the rest of its own activation. `flipped` is the share of pairs
    whose next differing token of the answer becomes the clean one. Beside it: no swap ("none"), random subspaces of the
    probe's dimension ("random"), the whole activation ("whole"; no upper bound, as effects can cancel), and the
    directions in which the classes' mean activations differ ("mean_shift"): a probe says how to read a label, which
    need not be how the model writes it. The call fits missing probes first.

    Example:
        `qfl interchange runs/add16 carry`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default` whose pairs change the answer.
        steps: As in `probe`; the last checkpoint by default.
        config: The probes'; `config.site` is what is swapped, one without heads.
        labels: Which labels the pairs differ in; the middle one by default.
        n_pairs (--pairs): Pairs of a clean and a corrupted example.
        n_random: Random subspaces to compare with.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, feature, label, layer and condition. Intervals are 95 % bootstraps over pairs (of the random
        control's mean over draws); `p_value_paired` of "feature" and "mean_shift" is a two-sided paired sign-flip
        test against that mean, `p_value_holm` corrected over the features, labels and layers of a step in this call.

    Raises:
        QflError: Unknown feature or step, or the model has no such site.
        ValueError: A site with heads, a label that the feature does not have or that no pair changes, or one that was
            not fitted.

    References:
        Geiger et al., arXiv 2106.02997 and 2303.02536.
    """
    config = config or ProbeConfig()
    require_one_a_token(config.site, "an interchange", "Use resid_post, attn_out or mlp_out.")
    if n_pairs < 1 or n_random < 1:
        raise ValueError(
            f"n_pairs and n_random must be at least 1, got {n_pairs} and {n_random}. The defaults are 256 and 32."
        )
    chosen, left_out = deciding_features(run, features, labels, config.seed)
    targets = [{"feature": f.name, "label": label} for f in chosen for label in chosen_labels(f, labels)]
    pieces = [Piece(at, target) for at in models_at(run, steps) for target in targets]
    lens = Interchange(run, device, config, n_pairs, n_random)
    rows = with_holm(lens.compute(pieces, label="swapping", jobs=jobs, progress=progress))
    return Result(
        f"Interchange in {run.run_id}: share of answers that follow what was swapped" + left_out,
        _summary(rows),
        rows,
        interchange_figure,
        one_of=("feature",),
        columns=RESULT,
        cube=Cube(("step", "label", "layer", "condition")),
    )


def _rows(scores: InterchangeScores, rng: np.random.Generator) -> list[dict[str, object]]:
    """One row a condition."""
    random = np.stack([swap.flipped for swap in scores.random]).astype(float).mean(axis=0)
    rows: list[dict[str, object]] = []
    for condition in _SWAPPED:
        flipped = random if condition == "random" else getattr(scores, condition).flipped.astype(float)
        interval = bootstrap_mean(flipped, rng)
        p_value = paired_sign_flip(flipped, random, rng).p_value if condition in ("feature", "mean_shift") else math.nan
        rows.append(
            {
                "condition": condition,
                **interval_columns("flipped", interval),
                "logit_diff_normalised": scores.normalised(condition),
                "p_value_paired": p_value,
                "n_pairs": len(scores.pair),
                "n_undecided": scores.n_undecided,
                "n_random": len(scores.random),
            }
        )
    return rows


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a step, feature, label and layer: one column a condition."""
    keys = ["feature", "label", "step", "layer"]
    named = rows.assign(swapped=[_SWAPPED[condition] for condition in rows["condition"]])
    wide = named.pivot_table(index=keys, columns="swapped", values="flipped", sort=False).reset_index()
    return wide.rename_axis(columns=None).filter([*keys, *_SWAPPED.values()])
