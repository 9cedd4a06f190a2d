"""Rows of numbers about a network in training: one about the step, one a layer, one about the whole network.

The cosine of the new and the cumulative update is an idea of the source's first version [A]; the other columns are
those of our reconstruction [R].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qfl_interp.curvature import cosine
from qfl_interp.curvature.soft_rank import gradient_weighted, soft_ranks
from qfl_interp.homogeneous.config import MLPTrainConfig, SoftRank
from qfl_interp.homogeneous.depthwise import Rule, Scales, alignments, relative_updates, scales
from qfl_interp.homogeneous.images import Labelled
from qfl_interp.homogeneous.losses import mean_loss, targets_of
from qfl_interp.homogeneous.minibatch import Minibatch, frobenius, run_minibatch
from qfl_interp.homogeneous.mlp import HomogeneousMLP
from qfl_interp.homogeneous.sharpness import Sharpness, top_sharpness
from qfl_interp.homogeneous.taylor import Coefficients
from qfl_interp.seeding import generator


def step_row(step: int, lr: float, found: Coefficients, loss_after: float) -> dict[str, Any]:
    """One row of the table "steps": the quadratic model along the step that follows `step` updates.

    Columns: `step`, `lr` of that update, `c0` (the batch's loss before it), `c1`, `c2`, `gauss_newton` and
    `feature_motion` (c2's two parts), `sharpness` (`S = 2 c2 / |c1|`), `edge_ratio` (`lr S / 2`: above 1 is beyond the
    edge along the step), `loss_after` (the same batch's loss after the update).
    """
    return {
        "step": step, "lr": lr, "c0": found.c0, "c1": found.c1, "c2": found.c2, "gauss_newton": found.gauss_newton,
        "feature_motion": found.feature_motion, "sharpness": found.sharpness,
        "edge_ratio": lr * found.sharpness / 2, "loss_after": loss_after,
    }  # fmt: skip


def layer_rows(step: int, lr: float, batch: Minibatch, xi: Scales, start: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    """Rows of the table "layers": one for each weight matrix, and the features it reads, on the batch.

    Columns: `step`, `layer` (from 0), `xi`, `u` (relative change of the layer's preactivations by its own update),
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
            "step": step, "layer": k, "xi": xi[k], "u": u[k], "rho": rho[k], "cumulative_cosine": along,
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


class Evaluation:
    """What is measured of the whole network now and then: on all examples, and sharpness on a fixed sample."""

    def __init__(self, config: MLPTrainConfig, data: Labelled, rule: Rule) -> None:
        self._config, self._data, self._rule = config, data, rule
        n = min(config.n_sharpness, len(data.train_x))
        order = generator(config.seed, "homogeneous/sharpness").permutation(len(data.train_x))
        self._sample = torch.from_numpy(order[:n])

    def row(self, model: HomogeneousMLP, step: int) -> dict[str, Any]:
        """One row of the table "evaluations", without the learning rate.

        Columns: `step`, `train_loss`, `train_accuracy`, `test_loss`, `test_accuracy`; on the sample `lambda_h` and
        `lambda_p` (largest eigenvalues of the Hessian and of the preconditioned one), their `residual`s and whether
        they `converged`, `n_sharpness`, `soft_rank` (of the last hidden features, the one the configuration names) and
        `gradient_weighted`. What a network that is about to diverge has no finite value of is NaN, and not converged.
        """
        data, config = self._data, self._config
        row: dict[str, Any] = {"step": step}
        for part, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
            row |= {f"{part}_{name}": value for name, value in accuracy(model, x, y, config).items()}
        inputs, labels = data.train_x[self._sample], data.train_y[self._sample]
        targets = targets_of(config.loss, labels, data.n_classes, inputs.dtype)
        batch = run_minibatch(model, inputs, targets, config.loss)
        try:
            plain = top_sharpness(model, inputs, targets, config.loss, seed=config.seed)
            scaled = top_sharpness(model, inputs, targets, config.loss, scales(self._rule, batch), seed=config.seed)
        except ValueError:  # a product that is not finite, or no scales: the columns below say so
            plain = scaled = Sharpness(math.nan, math.nan, False, len(inputs))
        for name, found in (("h", plain), ("p", scaled)):
            row |= {f"lambda_{name}": found.value, f"residual_{name}": found.residual}
            row[f"converged_{name}"] = found.converged
        return row | {"n_sharpness": len(inputs)} | last_ranks(batch, config.soft_rank)


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
def accuracy(model: HomogeneousMLP, x: Tensor, y: Tensor, config: MLPTrainConfig) -> dict[str, float]:
    """Loss and accuracy of classification on some examples."""
    outputs = model(x)
    targets = targets_of(config.loss, y, outputs.shape[1], outputs.dtype)
    right = (outputs.argmax(dim=1) == y).double().mean()
    return {"loss": float(mean_loss(config.loss, outputs, targets)), "accuracy": float(right)}
