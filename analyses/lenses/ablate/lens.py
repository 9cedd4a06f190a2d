"""Whether the model uses a feature: taken out of its activations, beside controls that disturb it as much."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.checkpoints import over_checkpoints
from analyses.lenses.ablate.figure import ablation_figure, ablation_over_steps_figure
from analyses.lenses.probe.lens import LENS as PROBE_LENS
from analyses.lenses.probe.lens import part_name, probe, probe_data
from analyses.models_at import trained_at
from analyses.result import Result, chosen_features, chosen_labels, require_one_a_token, with_holm
from qfl_interp.config import ProbeConfig
from qfl_interp.data.task import Batch, Feature
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.interventions.controls import Control, moves_made, plane_controls, plane_means, same_norm
from qfl_interp.interventions.edits import RowInterventions
from qfl_interp.interventions.project_out import Planes, plane_ablation, pooled_planes, probe_planes
from qfl_interp.interventions.replace import activations_at, donors_of, mean, mean_of, resample, zero
from qfl_interp.interventions.scoring import score_ablation
from qfl_interp.models.build import HookedModel
from qfl_interp.models.hooks import Site
from qfl_interp.models.metrics import ExampleScores
from qfl_interp.probes import load_probes
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples
from qfl_interp.stats import bootstrap_mean, paired_sign_flip, rank_p_value

LENS = "ablate"
METHODS = ("project_out", "zero", "mean", "resample")
_METRICS = ("loss", "loss_answer", "exact", "exact_answer")
# Names of the controls in the table.
_CONDITION = {"random": "random", "feature": "random_feature", "same_norm": "same_norm"}


class AblationSettings(NamedTuple):
    """What decides the numbers beside the model and the probes; no labels: all of them."""

    method: str
    top_k: int
    epsilon: float
    n_trials: int
    labels: tuple[int, ...] = ()

    def part(self, step: int, feature: str, others: Sequence[str], config: ProbeConfig) -> str:
        """The table part of a step and feature; `others` lend directions to a control."""
        return f"{part_name(trained_at(step), feature, config)}-{digest(repr((*self, sorted(others))))}"


def ablate(
    run: Checkpoints,
    features: str | Sequence[str] | None = None,
    steps: Steps = "last",
    *,
    config: ProbeConfig | None = None,
    method: str = "project_out",
    top_k: int = 1,
    epsilon: float = 1.0,
    labels: int | Sequence[int] | None = None,
    n_trials: int = 32,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Take features out of the model: does it need them?

    Each label's probe directions are taken out of the activations; loss and greedy exact match are scored. For each
    label the layers with the lowest training loss are taken; the ablation acts there (at the probes' site) at the token
    where the label is read, in every example. With a pooled probe it acts at every token from the first label to the
    last. Controls disturb the same places, `n_trials` times each: "random" takes out as many random directions, through
    the mean activation; "random_feature" as many directions of the call's other features (left out where they have too
    few); "same_norm" adds random vectors exactly as long as the ablation's changes, example by example. Examples are
    the probes' test set, which neither the model nor the probes were fitted on. Probes that are missing are fitted
    first.

    Examples:
        `qfl ablate runs/add16 carry`,
        `qfl ablate runs/add16 --steps log:10 --jobs 2`

    Args:
        run: What to look at.
        features: Names; by default those of the task with `by_default`. The Holm correction is over those of one call:
            name all of them together.
        steps: As in `probe`; the last checkpoint by default.
        config: The probes'; `config.site` is what is changed, one without heads.
        method: "project_out" takes the probes' directions out; "zero", "mean" (over examples) and "resample" (another
            example's) replace the whole activation there, with the same-norm control alone.
        top_k: Layers, those of the best probes first.
        epsilon: Strength; 1 removes the component, 0 changes nothing.
        labels: Only these labels, all by default. A label whose value is the very next token of the answer, such as the
            last carry of a sum, costs that token when it is taken out of the last block, whatever else the model does:
            leave it out to ask about the others.
        n_trials: Trials of every control; 19 is the fewest that can reach p = 0.05 by rank.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, feature and condition: intact, ablated, and the controls. Intervals are 95 % percentile
        bootstraps over examples; for a control of each example's mean over trials. difference: the ablated model's
        exact match less this control's, negative where the feature matters more. p_value_paired: sign-flip test over
        examples, ablated against this control's mean, on the answer's exact match, two-sided; the row "ablated" repeats
        that of the first control. p_value_trials: rank of the ablated model's exact match among the control's trials,
        one-sided. p_value_holm: the paired one, Holm-corrected over the features of this call, for each step and
        condition.

    Raises:
        QflError: Unknown feature or step, or a feature none of whose probes could be fitted.
        ValueError: An unknown method or label, a site with heads, `epsilon` outside [0, 1], or `n_trials` or `top_k`
            below 1.
    """
    config = config or ProbeConfig()
    chosen = chosen_features(run, features)
    only = () if labels is None else tuple(sorted({label for f in chosen for label in chosen_labels(f, labels)}))
    settings = AblationSettings(method, top_k, epsilon, n_trials, only)
    _check(settings, config)
    names = [f.name for f in chosen]
    at = run.resolve_steps(steps)
    table = run.table(LENS)

    def part(step: int, name: str) -> str:
        return settings.part(step, name, [other for other in names if other != name], config)

    missing = [step for step in at if not all(table.has(part(step, name)) for name in names)]
    if missing:
        how: dict[str, Any] = {"jobs": jobs, "device": device, "progress": progress}
        probe(run, names, missing, config=config, n_untrained=0, **how)
    parts = {step: {name: part(step, name) for name in names} for step in missing}
    work = functools.partial(_ablate_at, run, parts, settings, config, device)
    over_checkpoints(
        missing, functools.partial(_test_examples, run, config), work, label="ablating", jobs=jobs, progress=progress
    )
    rows = with_holm(table.read([part(step, name) for step in at for name in names]))
    columns = ["step", "feature", "condition", "exact_answer", "loss_answer"]
    return Result(
        f"Ablation in {run.run_id} ({method}): exact match and loss (nats) over the answer alone",
        rows.filter([*columns, "difference", "p_value_holm"]),
        rows,
        lambda: (ablation_figure if len(at) == 1 else ablation_over_steps_figure)(rows),
    )


def _check(settings: AblationSettings, config: ProbeConfig) -> None:
    """Refuse settings that name nothing that can be done."""
    if settings.method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {settings.method!r}.")
    if settings.n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, got {settings.n_trials}. The paper uses 32.")
    if not 0 <= settings.epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], got {settings.epsilon}. 1 removes the component.")
    if settings.top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {settings.top_k}. The paper uses 1.")
    require_one_a_token(
        config.site, "a feature's ablation", "Use resid_post, attn_out or mlp_out here, and `ablate_units` for heads."
    )


def _test_examples(run: Checkpoints, config: ProbeConfig) -> Examples:
    """The probes' test examples."""
    return probe_data(run, config).test


def _ablate_at(
    run: Checkpoints,
    parts: Mapping[int, Mapping[str, str]],
    settings: AblationSettings,
    config: ProbeConfig,
    device: str | torch.device,
    examples: Examples,
    step: int,
) -> None:
    """Score what is missing of one checkpoint, feature by feature, and write it."""
    model, batch, table = run.load_model(step, device=device), run.task.encode(examples), run.table(LENS)
    for name, part in parts[step].items():
        if table.has(part):
            continue
        feature = run.task.feature(name)
        others = [run.task.feature(other) for other in parts[step] if other != name]
        planes = _planes(run, feature, step, examples, settings, config)
        make, controls = _conditions(run, model, batch, planes, others, step, settings, config)
        rng = generator(config.seed, f"ablate/{feature.name}", step)
        scores = score_ablation(model, batch, make, controls, n_trials=settings.n_trials, rng=rng)
        rows = _rows(scores, generator(config.seed, f"ablate/bootstrap/{feature.name}", step)).assign(
            **run.identity(),
            step=step,
            flops=run.flops(step),
            feature=name,
            site=config.site,
            method=settings.method,
            top_k=settings.top_k,
            epsilon=settings.epsilon,
            labels=",".join(map(str, settings.labels)) or "all",
            pooled=config.pooled,
            settings=config.digest(),
            analysis=part.rpartition("-")[2],
        )
        table.write(part, rows)


class StoredProbes(NamedTuple):
    """Probes read back as planes: `[place, label, k, d]`, and the training loss they are chosen by."""

    weight: Tensor
    intercept: Tensor
    fitted: Tensor
    train_loss: np.ndarray


def stored_probes(run: Checkpoints, feature: Feature, step: int, config: ProbeConfig) -> StoredProbes:
    """The planes on which the probes of one feature at one step cannot tell its classes apart (`Probes.planes`)."""
    part, table = part_name(trained_at(step), feature.name, config), run.table(PROBE_LENS)
    probes, rows = load_probes(feature.kind, table.read_tensors(part)), table.read([part])
    n_places, n_labels = probes.fitted.shape[:2]
    sites = [(place, label) for place in range(n_places) for label in range(n_labels)]
    planes = {site: probes.planes(*site, slice(None)) for site in sites}
    most = max(1, max(len(plane.offsets) for plane in planes.values()))
    weight = torch.zeros(n_places, n_labels, most, probes.weight.shape[-1], dtype=probes.weight.dtype)
    intercept, fitted = weight[..., 0].clone(), torch.zeros(n_places, n_labels, most, dtype=torch.bool)
    for site, plane in planes.items():
        k = len(plane.offsets)
        weight[site][:k], intercept[site][:k], fitted[site][:k] = plane.directions, plane.offsets, True
    loss = rows.pivot(index=["layer", "head"], columns="label", values="train_loss").to_numpy(dtype=float)
    return StoredProbes(weight.float(), intercept.float(), fitted, loss)


def _planes(
    run: Checkpoints, feature: Feature, step: int, examples: Examples, settings: AblationSettings, config: ProbeConfig
) -> Planes:
    """What is projected out: the stored probes of this step at each label's best layers."""
    stored = stored_probes(run, feature, step, config)
    labels = np.flatnonzero(~np.isnan(stored.train_loss).all(axis=0))
    if settings.labels:
        labels = labels[np.isin(labels, settings.labels)]
    if len(labels) == 0:
        raise QflError(f"no probe of {feature.name!r} could be fitted at step {step}: the labels do not vary.")
    loss = stored.train_loss[:, labels]
    weight, intercept, fitted = (t[:, labels] for t in (stored.weight, stored.intercept, stored.fitted))
    positions = feature.positions(examples)[:, labels]
    if config.pooled:  # every label holds the one probe of its layer
        best = np.argsort(loss.mean(axis=1), kind="stable")[: settings.top_k]
        one = (weight[:, 0], intercept[:, 0], fitted[:, 0])
        return pooled_planes(*one, layers=best, positions=positions, name=config.site)
    # The lowest loss first, the earliest of equal ones; NaN, where nothing was fitted, comes last.
    best = np.argsort(loss, axis=0, kind="stable")[: settings.top_k].T
    return probe_planes(weight, intercept, fitted, layers=best, positions=positions, name=config.site)


def _conditions(
    run: Checkpoints,
    model: HookedModel,
    batch: Batch,
    planes: Planes,
    others: Sequence[Feature],
    step: int,
    settings: AblationSettings,
    config: ProbeConfig,
) -> tuple[RowInterventions, dict[str, Control]]:
    """The ablation and its controls, by the names of the table."""
    epsilon = settings.epsilon
    if settings.method == "project_out":
        make = plane_ablation(planes, epsilon=epsilon)
        moves = moves_made(model, batch.tokens, make)
        means = plane_means(model, batch.tokens, planes)
        pool = _pool(run, others, step, config)
        needed = max((int(planes.kept[rows].sum()) for rows in planes.together()), default=0)
        enough = all(len(pool.get(int(layer), ())) >= needed for layer in np.unique(planes.layers))
        controls = plane_controls(planes, means, moves=moves, pool=pool if enough else None, epsilon=epsilon)
        return make, {_CONDITION[name]: control for name, control in controls.items()}
    make = _replacement(model, batch, planes, settings, generator(config.seed, "ablate/donors", step))
    moves = moves_made(model, batch.tokens, make)
    return make, {"same_norm": lambda rng: same_norm(moves, rng)}


def _pool(run: Checkpoints, others: Sequence[Feature], step: int, config: ProbeConfig) -> dict[int, Tensor]:
    """Other features' fitted directions by layer."""
    found: dict[int, list[Tensor]] = {}
    for feature in others:
        stored = stored_probes(run, feature, step, config)
        for layer in range(len(stored.weight)):
            found.setdefault(layer, []).append(stored.weight[layer][stored.fitted[layer]])
    return {layer: torch.cat(rows) for layer, rows in found.items()}


def _replacement(
    model: HookedModel, batch: Batch, planes: Planes, settings: AblationSettings, rng: np.random.Generator
) -> RowInterventions:
    """The whole activation replaced at every place that the planes name."""
    layers = np.unique(planes.layers)
    sites = {int(layer): Site(int(layer), planes.name) for layer in layers}
    # Each layer's tokens once, whatever labels share them.
    where = {layer: _distinct(planes.positions[:, planes.layers == layer].flatten(1)) for layer in sites}
    found = {layer: activations_at(model, batch.tokens, [site], where[layer])[site] for layer, site in sites.items()}
    epsilon = settings.epsilon
    if settings.method == "mean":
        means = {layer: mean_of(x, where[layer]) for layer, x in found.items()}
        return lambda rows: [mean(sites[k], means[k], where[k][rows], epsilon=epsilon) for k in sites]
    if settings.method == "resample":
        donors = {layer: donors_of(x, rng, where[layer]) for layer, x in found.items()}
        return lambda rows: [resample(sites[k], donors[k][rows], where[k][rows], epsilon=epsilon) for k in sites]
    return lambda rows: [zero(sites[k], where[k][rows], epsilon=epsilon) for k in sites]


def _distinct(positions: Tensor) -> Tensor:
    """Each example's positions, every one once; -1 for what repeats."""
    ordered = positions.sort(dim=1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(repeated, -1)


def _columns(scores: Sequence[ExampleScores], name: str) -> np.ndarray:
    """One metric as [trial, example]."""
    return np.stack([getattr(s, name) for s in scores]).astype(float)


def _rows(scores: Mapping[str, Sequence[ExampleScores]], rng: np.random.Generator) -> pd.DataFrame:
    """One row a condition, with intervals and tests."""
    rows: dict[str, dict[str, object]] = {}
    ablated = _columns(scores["ablated"], "exact_answer")[0]
    for condition, found in scores.items():
        row: dict[str, object] = {
            "condition": condition,
            "n_examples": len(found[0].loss),
            "n_trials": len(found),
            "difference": math.nan,
            "p_value_paired": math.nan,
            "p_value_trials": math.nan,
        }
        for name in _METRICS:
            interval = bootstrap_mean(_columns(found, name).mean(axis=0), rng)
            row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        if condition not in ("intact", "ablated"):
            control = _columns(found, "exact_answer")
            row["difference"] = float(ablated.mean() - control.mean())
            row["p_value_paired"] = paired_sign_flip(ablated, control.mean(axis=0), rng).p_value
            row["p_value_trials"] = rank_p_value(float(ablated.mean()), control.mean(axis=1), "less").p_value
        rows[condition] = row
    first = next(row for condition, row in rows.items() if condition not in ("intact", "ablated"))
    rows["ablated"] |= {name: first[name] for name in ("difference", "p_value_paired", "p_value_trials")}
    return pd.DataFrame(list(rows.values()))
