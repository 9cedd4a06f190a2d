"""Rows of numbers about a network in training: one about the step, one a layer, one about the whole network.

The cosine of the new and the cumulative update is an idea of the source's first version [A]; the other columns are
those of our reconstruction [R].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qfl_interp.curvature import cosine
from qfl_interp.curvature.soft_rank import gradient_weighted, soft_ranks
from qfl_interp.data.task import Batch
from qfl_interp.homogeneous.config import SoftRank
from qfl_interp.homogeneous.depthwise import Scales, alignments, relative_updates, scales
from qfl_interp.homogeneous.losses import mean_loss
from qfl_interp.homogeneous.minibatch import Minibatch, frobenius, minibatch_of
from qfl_interp.homogeneous.sharpness import Sharpness, top_sharpness
from qfl_interp.homogeneous.taylor import taylor_coefficients
from qfl_interp.homogeneous.updates import Steps
from qfl_interp.models.mlp import SampleReader


def step_row(
    model: SampleReader, steps: Steps, batch: Minibatch, xi: Scales, lr: float, targets: Any
) -> dict[str, Any]:
    """The quadratic model along the step on a batch.

    Columns: `lr` of that update, `c0` (the batch's loss before it), `c1`, `c2`, `gauss_newton` and `feature_motion`
    (c2's two parts), `step_sharpness` (`S = 2 c2 / |c1|`), `edge_ratio` (`lr S / 2`: above 1 is beyond the edge along
    the step), `loss_after` (the same batch's loss after the update).
    """
    found = taylor_coefficients(batch, xi)
    moved = zip(batch.weights, xi, batch.unit_gradients, strict=True)
    after = tuple(w - (lr * x * batch.residual_norm) * g for w, x, g in moved)
    inputs, slopes = batch.features[0], model.cfg.slopes
    return {
        "lr": lr, "c0": found.c0, "c1": found.c1, "c2": found.c2, "gauss_newton": found.gauss_newton,
        "feature_motion": found.feature_motion, "step_sharpness": found.sharpness,
        "edge_ratio": lr * found.sharpness / 2,
        "loss_after": minibatch_of(after, batch.alphas, slopes, inputs, targets, steps.loss).value,
    }  # fmt: skip


def layer_rows(lr: float, batch: Minibatch, xi: Scales, start: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    """A row for each weight matrix, and the features it reads, on the batch.

    Columns: `layer` (from 0), `xi`, `u` (relative change of the layer's preactivations by its own update),
    `rho` (alignment in [0, 1]), `cumulative_cosine` (between the update and the way from the initial weights; NaN
    before the first update), `weight_norm`, and of the features the layer reads `stable_rank`, `participation_ratio`,
    `entropy_rank`, `centred_stable_rank`, `centred_participation_ratio` (the last two NaN where the features are the
    same in every example).
    """
    u, rho = relative_updates(batch, xi, lr), alignments(batch)
    rows = []
    for k, (weight, first, gradient) in enumerate(zip(batch.weights, start, batch.unit_gradients, strict=True)):
        way = first - weight
        along = cosine(way.flatten(), gradient.flatten())
        rows.append({
            "layer": k, "xi": xi[k], "u": u[k], "rho": rho[k], "cumulative_cosine": along,
            "weight_norm": frobenius(weight), **ranks_of(batch.features[k]),
        })  # fmt: skip
    return rows


def ranks_of(features: Tensor) -> dict[str, float]:
    """The columns of soft ranks; the centred ones NaN where there are none."""
    plain = soft_ranks(features)
    try:
        centred = soft_ranks(features, centre=True)[:2]
    except ValueError:
        centred = (math.nan, math.nan)
    return {**plain._asdict(), "centred_stable_rank": centred[0], "centred_participation_ratio": centred[1]}


def evaluation_row(
    model: SampleReader,
    steps: Steps,
    splits: Mapping[str, Batch],
    sample: Batch | None,
    *,
    seed: int,
    soft_rank: SoftRank,
) -> dict[str, Any]:
    """What is measured of the whole network: losses and accuracies, soft ranks, and sharpness on a sample.

    Columns: of each of the splits `<split>_loss` and `<split>_accuracy`; on the sample, where there is one, `lambda_h`
    and `lambda_p` (largest eigenvalues of the Hessian and of the preconditioned one), `residual_h` and `residual_p`,
    `converged_h` and `converged_p`, `n_sharpness`, `soft_rank` (of the last hidden features, the one that is asked for)
    and `gradient_weighted`. What a network that is about to diverge has no finite value of is NaN, and not converged.
    """
    row: dict[str, Any] = {}
    for part, batch in splits.items():
        row |= {f"{part}_{name}": value for name, value in accuracy(model, steps, batch).items()}
    if sample is None:
        return row
    batch = steps.minibatch(model, sample)
    inputs, targets = batch.features[0], steps.targets(model, sample)
    try:
        plain = top_sharpness(model, inputs, targets, steps.loss, seed=seed)
        scaled = top_sharpness(model, inputs, targets, steps.loss, scales(steps.rule, batch), seed=seed)
    except ValueError:  # a product that is not finite, or no scales: the columns below say so
        plain = scaled = Sharpness(math.nan, math.nan, False, len(inputs))
    for name, found in (("h", plain), ("p", scaled)):
        row |= {f"lambda_{name}": found.value, f"residual_{name}": found.residual}
        row[f"converged_{name}"] = found.converged
    return row | {"n_sharpness": len(inputs)} | last_ranks(batch, soft_rank)


def last_ranks(batch: Minibatch, chosen: SoftRank) -> dict[str, float]:
    """The soft rank of the last hidden features that is asked for, and the gradient-weighted one; NaN where none."""
    features, last = batch.features[-1].double(), batch.unit_backward[-1].double()
    try:
        ranks = soft_ranks(features)._asdict()
        ranks["gradient_weighted"] = gradient_weighted(features @ features.mT, last @ last.mT)
    except ValueError:
        return {"soft_rank": math.nan, "gradient_weighted": math.nan}
    return {"soft_rank": ranks[chosen], "gradient_weighted": ranks["gradient_weighted"]}


@torch.no_grad()
def accuracy(model: SampleReader, steps: Steps, batch: Batch) -> dict[str, float]:
    """Loss and accuracy of classification on some samples."""
    targets = steps.targets(model, batch)
    outputs = model(model.samples[batch.tokens[:, 0].to(model.samples.device)])
    right = (outputs.argmax(dim=1).cpu() == batch.tokens[:, 1]).double().mean()
    return {"loss": float(mean_loss(steps.loss, outputs, targets)), "accuracy": float(right)}
