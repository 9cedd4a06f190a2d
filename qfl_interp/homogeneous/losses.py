"""The two losses: value, residuals `grad ell(f_i)`, and products with `H_i`, the loss's Hessian by the outputs.

Which losses the source trains with is not known to us; these are our choice [R].
"""

from __future__ import annotations

from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from qfl_interp.homogeneous.config import Loss

Outputs = Float[Tensor, "batch d_out"]
# Class ids for the cross-entropy, vectors for the squared error.
Targets = Int[Tensor, " batch"] | Float[Tensor, "batch d_out"]


def require_targets(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    """Raise `ValueError` unless the loss is known and the targets are its own: one a row, classes within the outputs.

    A squared error would broadcast targets of another shape to a loss that means nothing.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"loss must be one of {get_args(Loss)}, got {loss!r}.")
    n, d_out = outputs.shape
    wanted = (n,) if loss == "cross_entropy" else (n, d_out)
    if tuple(targets.shape) != wanted:
        kind = "a class" if loss == "cross_entropy" else f"a vector of {d_out} numbers"
        raise ValueError(
            f"targets of {loss} must be {kind} for each of {n} examples, got shape {tuple(targets.shape)}."
        )
    if loss == "cross_entropy" and not bool(((targets >= 0) & (targets < d_out)).all()):
        raise ValueError(
            f"targets must be classes from 0 to {d_out - 1}, as many as there are outputs, got {int(targets.min())} to "
            f"{int(targets.max())}."
        )


def mean_loss(loss: Loss, outputs: Outputs, targets: Targets) -> Float[Tensor, ""]:
    """`(1/n) sum ell(f_i, y_i)`: the softmax cross-entropy in nats, or `|f - y|^2 / 2`; differentiable."""
    if loss == "cross_entropy":
        return functional.cross_entropy(outputs, targets)
    return (outputs - targets).square().sum() / (2 * len(outputs))


def residuals(loss: Loss, outputs: Outputs, targets: Targets) -> Outputs:
    """`grad ell(f_i)`, one row an example, without the `1/n`."""
    if loss == "cross_entropy":
        # The right class's entry as minus the sum of the others: 1 - p would be rounded to 0 where p is nearly 1.
        wrong = outputs.softmax(dim=1).scatter(1, targets[:, None], 0.0)
        return wrong.scatter(1, targets[:, None], -wrong.sum(dim=1, keepdim=True))
    return outputs - targets


def output_hessian(loss: Loss, outputs: Outputs, tangent: Outputs) -> Outputs:
    """`H_i v_i`, one row an example: `(diag p - p p') v`, or `v`."""
    if loss == "squared_error":
        return tangent
    p = outputs.softmax(dim=1)
    return p * (tangent - (p * tangent).sum(dim=1, keepdim=True))


def targets_of(loss: Loss, labels: Int[Tensor, " batch"], d_out: int, dtype: torch.dtype) -> Targets:
    """Class labels as the loss wants them: themselves, or one-hot."""
    return labels if loss == "cross_entropy" else functional.one_hot(labels, d_out).to(dtype)
