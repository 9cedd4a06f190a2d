"""What an ablation does to the model and what its controls do, by the names of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qfl_interp.analyses.lenses.probe.data import StoredProbes, probe_tensors, stored_probes
from qfl_interp.config import ProbeConfig
from qfl_interp.data.task import Batch, Feature
from qfl_interp.errors import QflError
from qfl_interp.interventions.controls import (
    Control,
    moves_made,
    plane_controls,
    plane_means,
    same_norm,
    through_means,
)
from qfl_interp.interventions.edits import RowInterventions
from qfl_interp.interventions.planes import (
    Planes,
    independent_planes,
    joined,
    plane_ablation,
    pooled_planes,
    probe_planes,
)
from qfl_interp.interventions.replace import activations_at, donors_of, mean, mean_of, resample, zero
from qfl_interp.models.build import HookedModel
from qfl_interp.models.hooks import Site
from qfl_interp.runs.series import Checkpoints
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples

# Names of the controls in the table.
_CONDITION = {"random": "random", "feature": "random_feature", "same_norm": "same_norm"}


class AblationSettings(NamedTuple):
    """What decides the numbers beside the model and the probes; no labels: all of them."""

    method: str = "written"
    top_k: int = 1
    epsilon: float = 1.0
    n_trials: int = 32
    labels: tuple[int, ...] = ()


def conditions(
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
    if settings.method in ("written", "project_out"):
        means = plane_means(model, batch.tokens, planes)
        if settings.method == "written":
            planes = through_means(independent_planes(planes), planes.directions, means)
        make = plane_ablation(planes, epsilon=epsilon)
        moves = moves_made(model, batch.tokens, make)
        pool = _pool(run, others, step, settings, config)
        needed = max((int(planes.kept[rows].sum()) for rows in planes.together()), default=0)
        enough = all(len(pool.get(int(layer), ())) >= needed for layer in np.unique(planes.layers))
        controls = plane_controls(planes, means, moves=moves, pool=pool if enough else None, epsilon=epsilon)
        return make, {_CONDITION[name]: control for name, control in controls.items()}
    make = _replacement(model, batch, planes, settings, generator(config.seed, "ablate/donors", step))
    moves = moves_made(model, batch.tokens, make)
    return make, {"same_norm": lambda rng: same_norm(moves, rng)}


def ablated_planes(
    run: Checkpoints,
    features: Sequence[Feature],
    step: int,
    examples: Examples,
    settings: AblationSettings,
    config: ProbeConfig,
) -> Planes:
    """What is taken out of this step, of all features at once, at the layers of each label's best probes."""
    return joined([_planes_of(run, feature, step, examples, settings, config) for feature in features])


def _planes_of(
    run: Checkpoints, feature: Feature, step: int, examples: Examples, settings: AblationSettings, config: ProbeConfig
) -> Planes:
    """What is taken out of one feature: its probes' directions, or for "written" those of the class means."""
    stored = _directions(run, feature, step, settings, config)
    labels = np.flatnonzero(~np.isnan(stored.train_loss).all(axis=0))
    if settings.labels:
        labels = labels[np.isin(labels, settings.labels)]
    if len(labels) == 0:
        raise QflError(
            f"no probe of {feature.name!r} could be fitted at step {step}: the labels do not vary. "
            "Choose another step or feature."
        )
    loss = stored.train_loss[:, labels]
    weight, intercept, fitted = (t[:, labels] for t in (stored.weight, stored.intercept, stored.fitted))
    positions = feature.positions(examples)[:, labels]
    if config.pooled and settings.method != "written":  # every label holds the one probe of its layer
        best = np.argsort(loss.mean(axis=1), kind="stable")[: settings.top_k]
        one = (weight[:, 0], intercept[:, 0], fitted[:, 0])
        return pooled_planes(*one, layers=best, positions=positions, name=config.site)
    # The lowest loss first, the earliest of equal ones; NaN, where nothing was fitted, comes last.
    best = np.argsort(loss, axis=0, kind="stable")[: settings.top_k].T
    return probe_planes(weight, intercept, fitted, layers=best, positions=positions, name=config.site)


def _directions(
    run: Checkpoints, feature: Feature, step: int, settings: AblationSettings, config: ProbeConfig
) -> StoredProbes:
    """The probes' planes; for "written" the directions in which the activations differ with what the label says."""
    stored = stored_probes(run, feature, step, config)
    if settings.method != "written":
        return stored
    shift = probe_tensors(run, step, feature.name, config)["mean_shift"]
    fitted = stored.fitted.any(dim=2, keepdim=True) & (shift != 0).any(dim=3)
    return stored._replace(weight=shift, intercept=torch.zeros_like(shift[..., 0]), fitted=fitted)


def _pool(
    run: Checkpoints, others: Sequence[Feature], step: int, settings: AblationSettings, config: ProbeConfig
) -> dict[int, Tensor]:
    """Other features' directions by layer, of the same kind."""
    found: dict[int, list[Tensor]] = {}
    for feature in others:
        stored = _directions(run, feature, step, settings, config)
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
