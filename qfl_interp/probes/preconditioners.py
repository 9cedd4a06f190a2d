"""Preconditioners of one softmax regression: what makes conjugate gradients on its Hessian short."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qfl_interp.probes.design import Design, factorise

# Examples in the Hessian's sample, for each of its columns.
_SAMPLE_PER_COLUMN = 2

# Takes the residual of one problem `[class, column]` to its preconditioned one.
Precondition = Callable[[Float[Tensor, "class column"]], Float[Tensor, "class column"]]


class Problem(NamedTuple):
    """One softmax regression at its present point.

    `site` is the data matrix it reads; absent classes have probability 0, and `kept` is False for masked examples.
    """

    design: Design
    site: int
    prob: Float[Tensor, "class example"]
    kept: Bool[Tensor, " example"]


def curved(prob: Float[Tensor, "row class example"], moved: Tensor) -> Float[Tensor, "row class example"]:
    """The softmax's Jacobian `diag(p) - p p'` of every example, times `moved`."""
    found = prob * moved
    return found.addcmul_(prob, found.sum(1, keepdim=True), value=-1)


def class_curvature(prob: Tensor, kept: Tensor) -> Float[Tensor, "row class class"]:
    """`sum_i diag(p_i) - p_i p_i'` over the kept examples: the Hessian of the intercepts, up to `c`."""
    used = prob * kept[:, None]
    return torch.diag_embed(used.sum(-1)) - used @ prob.mT


def product_preconditioner(problem: Problem, c: float) -> Precondition:
    """The inverse of `c S x G + penalty`: S the summed Jacobians, G the mean of `z z'`, weighted by `1 - |p|^2`."""
    prob, kept = problem.prob, problem.kept
    doubt = (1 - prob.square().sum(0)) * kept
    gram = problem.design.gram(problem.site, doubt / doubt.sum().clamp_min(torch.finfo(prob.dtype).tiny))
    values, basis = torch.linalg.eigh(class_curvature(prob[None], kept[None])[0])
    # Equal shifts of all logits (and absent classes) have no curvature; the residual has no part along them.
    curvature = c * values.clamp_min(1e-9 * values[-1])
    factor, scale = factorise(curvature[:, None, None] * gram)

    def precondition(residual: Tensor) -> Tensor:
        along = scale * (basis.mT @ residual)
        return basis @ (scale * torch.cholesky_solve(along[..., None], factor)[..., 0])

    return precondition


def _sampling_weights(doubt: Float[Tensor, " example"], wanted: int) -> Float[Tensor, " example"]:
    """Probabilities proportional to `doubt`, at most 1, that sum to about `wanted`."""
    chance = torch.zeros_like(doubt)
    for _ in range(4):  # examples cut off at 1 leave more to the others
        certain = chance >= 1
        rest = doubt.masked_fill(certain, 0).sum()
        if rest < 1e8 * torch.finfo(doubt.dtype).tiny:  # all that is in doubt is certain to be drawn: 0 / 0 to share
            break
        chance = torch.where(certain, 1, (doubt * ((wanted - certain.sum()) / rest)).clamp(max=1))
    return chance


def sample_preconditioner(problem: Problem, c: float) -> Precondition:
    """The inverse Hessian of a sample: systematic sampling by `1 - |p|^2`, each example over its probability."""
    prob = problem.prob
    n_classes, n_columns = len(prob), problem.design.z.shape[2]
    # Of examples that are certain, rounding would leave it below zero, and their weights without a root.
    doubt = (1 - prob.square().sum(0)).clamp_min(0) * problem.kept
    chance = _sampling_weights(doubt, _SAMPLE_PER_COLUMN * n_classes * n_columns)
    steps = chance.cumsum(0).floor()
    drawn = torch.diff(steps, prepend=steps.new_zeros(1)).nonzero()[:, 0]
    z, p = problem.design.z[problem.site][drawn], prob[:, drawn].mT
    weight = (c / chance[drawn]).sqrt()[:, None]
    spread = ((weight * p)[:, :, None] * z[:, None, :]).flatten(1)
    hessian = (spread.mT @ spread).neg_()
    for k in range(n_classes):
        part = slice(k * n_columns, (k + 1) * n_columns)
        hessian[part, part] += spread[:, part].mT @ (weight * z)
    # It penalises all intercepts but the last: close enough for a preconditioner, and it makes them unique.
    factor, scale = factorise(hessian[None])

    def precondition(residual: Tensor) -> Tensor:
        along = (scale[0] * residual.flatten())[:, None]
        return (scale[0] * torch.cholesky_solve(along, factor[0])[:, 0]).view_as(residual)

    return precondition
