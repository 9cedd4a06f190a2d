"""Where the model holds what decides its answer: clean activations written into corrupted runs, place by place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from analyses.checkpoints import over_checkpoints
from analyses.lenses.patch.figure import patch_figure
from analyses.models_at import trained_at
from analyses.result import Result, chosen_features, chosen_labels
from qfl_interp.data.examples import held_out_pairs
from qfl_interp.data.task import Feature, Task
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.interventions.attribution import attribution_error, attribution_patch
from qfl_interp.interventions.pairs import PatchPairs
from qfl_interp.interventions.patching import PatchScores, patch_pairs, patch_sweep
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.seeding import generator
from qfl_interp.tables import select

LENS = "patch"
COMPONENTS = ("resid_pre", "attn_out", "mlp_out")
_METRICS = ("logit_diff", "loss", "exact")
# Gradients between the corrupted and the clean run that attribution averages.
_GRADIENTS = 5
# What stands for a token that differs between examples.
VARIES = "·"


class PatchSettings(NamedTuple):
    """What decides the numbers beside the model.

    Attributes:
        n_pairs: Clean and corrupted examples.
        seed: Draws them and the bootstrap.
        attribution: Whether the gradient approximation is computed beside.
    """

    n_pairs: int
    seed: int
    attribution: bool

    def digest(self) -> str:
        """Names them in a table part."""
        return digest(repr(tuple(self)))


class Target(NamedTuple):
    """One table part: what is patched, at which checkpoint."""

    step: int
    feature: str
    label: int
    component: str

    def __str__(self) -> str:
        return f"{trained_at(self.step)}-{self.feature}-{self.label}-{self.component}"


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

    Every layer (and head) is patched at every position. A pair's examples differ in one label of the feature. The
    corrupted run gets one activation of the clean run, and three metrics say how far that moves it from the corrupted
    run (0) to the clean one (1): `logit_diff`, the clean token's logit less the corrupted one's at the first token from
    the label on in which the two answers differ; `loss` of the clean answer from there on, behind the corrupted prompt;
    `exact`, the share of pairs in which all of that comes out. `attribution` is the first one's approximation by
    gradients (the mean of 5 between the runs; one alone can have every sign wrong), `attribution_r` its correlation
    with it over the map.

    Examples:
        `qfl patch runs/add16 carry`,
        `qfl patch runs/add16 carry --label 3 --component z --steps log:8`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default` whose pairs change the answer.
        steps: As in `probe`; the last checkpoint by default.
        components: Of "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", and by head "z", "q", "k", "v".
        labels: Which labels the pairs differ in; the middle one by default.
        n_pairs (--pairs): Pairs of a clean and a corrupted example.
        attribution: Compute the approximation by gradients too.
        seed: Draws pairs and bootstraps.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, feature, label, component, layer, head and position. Intervals are 95 % bootstraps over pairs.

    Raises:
        QflError: Unknown feature or step, or the model has no such component.
        ValueError: A label that the feature does not have, that no pair changes, or (of a feature that was named) whose
            pairs leave the answer alone.
    """
    if n_pairs < 1:
        raise ValueError(f"n_pairs must be at least 1, got {n_pairs}.")
    settings = PatchSettings(n_pairs, seed, attribution)
    chosen, left_out = deciding_features(run, features, labels, seed)
    wanted_components = [components] if isinstance(components, str) else list(components)
    wanted = [
        Target(step, feature.name, label, component)
        for step in run.resolve_steps(steps)
        for feature in chosen
        for label in chosen_labels(feature, labels)
        for component in wanted_components
    ]
    table = run.table(LENS)
    missing = [target for target in wanted if not table.has(f"{target}-{settings.digest()}")]
    prepare, work = functools.partial(_Loaded, run, settings, device), functools.partial(_patch_at, run, settings)
    over_checkpoints(missing, prepare, work, label="patching", jobs=jobs, progress=progress)
    rows = table.read([f"{target}-{settings.digest()}" for target in wanted])
    shown = select(rows, feature=wanted[0].feature, label=wanted[0].label)
    return Result(
        f"Patching in {run.run_id}: the clean activation that brings most of the answer back (0 corrupted, 1 clean)"
        + left_out,
        _summary(rows),
        rows,
        lambda: patch_figure(shown),
    )


def deciding_features(
    run: Checkpoints, features: str | Sequence[str] | None, labels: int | Sequence[int] | None, seed: int
) -> tuple[list[Feature], str]:
    """The features to patch (where none is named, all whose pairs change the answer), and what to say of the others.

    Raises:
        QflError: Unknown feature, or none is left.
        ValueError: A label that a feature does not have.
    """
    chosen = chosen_features(run, features)
    if features is not None:
        return chosen, ""
    kept = [feature for feature in chosen if _decides(run, feature, chosen_labels(feature, labels), seed)]
    if not kept:
        raise QflError(f"no feature of {run.task!r} has pairs whose answers differ: there is nothing to patch.")
    left_out = [feature.name for feature in chosen if feature not in kept]
    return kept, f"; left out, as their pairs leave the answer alone: {', '.join(left_out)}" if left_out else ""


def _decides(run: Checkpoints, feature: Feature, labels: Sequence[int], seed: int) -> bool:
    """Whether the answer hangs on the labels as the feature's pairs change them."""
    try:
        for label in labels:
            pairs_of(run, feature.name, label, PatchSettings(16, seed, attribution=False))
    except ValueError:
        return False
    return True


def pairs_of(run: Checkpoints, feature: str, label: int, settings: PatchSettings) -> PatchPairs:
    """The clean and corrupted runs of a label, the clean examples of the split "test"."""
    drawn = held_out_pairs(run.task, "test", settings.n_pairs, feature, label, seed=settings.seed, stream="patch")
    return patch_pairs(run.task, drawn, run.task.feature(feature).positions(drawn.clean)[:, label])


class _Loaded:
    """The last model and the last pairs of a process: targets come step by step and share them."""

    def __init__(self, run: Checkpoints, settings: PatchSettings, device: str | torch.device) -> None:
        self.model = functools.lru_cache(maxsize=1)(lambda step: run.load_model(step, device=device))
        self.pairs = functools.lru_cache(maxsize=8)(lambda name, label: pairs_of(run, name, label, settings))


def _patch_at(run: Checkpoints, settings: PatchSettings, loaded: _Loaded, target: Target) -> None:
    """Patch one component at one checkpoint and write the rows."""
    model, pairs = loaded.model(target.step), loaded.pairs(target.feature, target.label)
    scores = patch_sweep(model, pairs, component=target.component)
    rng = generator(settings.seed, f"patch/bootstrap/{target.feature}/{target.label}/{target.component}", target.step)
    rows = _rows(scores, pairs, run.task, rng)
    rows["attribution"], rows["attribution_r"] = np.nan, np.nan
    if settings.attribution:
        found = attribution_patch(model, pairs, component=target.component, integrated=_GRADIENTS).normalised()
        rows["attribution"] = found.ravel()
        rows["attribution_r"] = attribution_error(scores.normalised(), found).pearson_r
    where = {**target._asdict(), "flops": run.flops(target.step), "analysis": settings.digest()}
    run.table(LENS).write(f"{target}-{settings.digest()}", rows.assign(**run.identity(), **where))


def tokens_at(task: Task, pairs: PatchPairs, positions: Sequence[int]) -> list[str]:
    """What a person reads at each position; `VARIES` where it is not the same in all runs."""
    both = torch.cat([pairs.clean, pairs.corrupted])
    same = (both == both[:1]).all(dim=0)
    first = task.str_tokens(both[0])
    return [first[position] if same[position] else VARIES for position in positions]


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
    columns = ["layer", "head", "position", "token", "logit_diff_normalised", "exact_normalised", "attribution_r"]
    return best[[*keys, *columns]]
