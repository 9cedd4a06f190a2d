"""Curvature as an adaptive optimiser sees it: `P^(1/2) H P^(1/2)`, Adam's P from its second moments, and the edge.

Gradient descent with momentum on a quadratic, `theta <- theta - lr P m`, diverges along an eigenvector of `P H` whose
eigenvalue passes the edge of `stability_edge`. `P H` and the symmetric `P^(1/2) H P^(1/2)` have the same eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature.hessian import SymmetricOperator
from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.shapes import compact_repr


class AdamState(NamedTuple):
    """What AdamW remembers, as vectors of a parameter space, float64 on the CPU.

    Attributes:
        first: Moving average of the gradient, not corrected for its start at zero.
        second: Moving average of its square, likewise.
        n_updates: Updates behind them.
    """

    first: Float[Tensor, " parameter"]
    second: Float[Tensor, " parameter"]
    n_updates: int

    __repr__ = compact_repr


def adam_state(space: ParameterSpace, tensors: Mapping[str, Tensor]) -> AdamState:
    """The moments in a checkpoint's optimiser tensors.

    Args:
        space: The parameters.
        tensors: "<parameter>/exp_avg", "<parameter>/exp_avg_sq" and "<parameter>/step", as training saves them; empty
            before the first update, which gives zeros.

    Raises:
        ValueError: Names or shapes do not fit the parameters, an entry is not finite, or parameters have made
            different numbers of updates.
    """
    if not tensors:
        nothing = torch.zeros(len(space), dtype=torch.float64)
        return AdamState(nothing, nothing.clone(), 0)
    by_field: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}, "step": {}}
    for key, tensor in tensors.items():
        name, _, field = key.rpartition("/")
        by_field.setdefault(field, {})[name] = tensor
    counts = {int(step) for step in by_field["step"].values()}
    if len(counts) != 1:
        raise ValueError(
            f"all parameters must have made equally many updates, got {sorted(counts)[:5]}. The optimiser's tensors "
            "are not those of one AdamW."
        )
    first, second = (space.flatten(by_field[field]).double().cpu() for field in ("exp_avg", "exp_avg_sq"))
    if not bool(torch.isfinite(first).all() & torch.isfinite(second).all()) or bool((second < 0).any()):
        raise ValueError("the moments must be finite and the second ones not negative. Did the run diverge?")
    return AdamState(first, second, counts.pop())


def adam_preconditioner(state: AdamState, *, beta2: float, eps: float) -> Float[Tensor, " parameter"]:
    """Adam's diagonal P: `1 / (sqrt(v / (1 - beta2^t)) + eps)` with the second moment v after t updates.

    Raises:
        ValueError: There was no update yet, so that nothing is known of the gradients.
    """
    if state.n_updates < 1:
        raise ValueError("a preconditioner needs at least 1 update of the optimiser, got 0. Take a later step.")
    return 1 / ((state.second / (1 - beta2**state.n_updates)).sqrt() + eps)


def adam_update(
    theta: Float[Tensor, " parameter"],
    gradient: Float[Tensor, " parameter"],
    state: AdamState,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Float[Tensor, " parameter"]:
    """What AdamW adds to the parameters in its next update: `-lr (weight_decay theta + P m / (1 - beta1^t))`.

    Args:
        theta: The parameters before it.
        gradient: The batch's, already clipped.
        state: The moments before it.
        lr: Learning rate of this update.
        betas: AdamW's.
        eps: AdamW's.
        weight_decay: AdamW's.

    References:
        Decoupled Weight Decay Regularization (arXiv 1711.05101), Algorithm 2, as `torch.optim.AdamW` has it.
    """
    beta1, beta2 = betas
    after = AdamState(
        beta1 * state.first + (1 - beta1) * gradient,
        beta2 * state.second + (1 - beta2) * gradient**2,
        state.n_updates + 1,
    )
    momentum = after.first / (1 - beta1**after.n_updates)
    return -lr * (weight_decay * theta + adam_preconditioner(after, beta2=beta2, eps=eps) * momentum)


class Preconditioned:
    """`P^(1/2) H P^(1/2)` with a diagonal P held fixed, through its products with vectors.

    Args:
        hessian: H.
        preconditioner: The diagonal of P.

    Raises:
        ValueError: An entry of P is not positive and finite, or there are not as many as H has rows.
    """

    def __init__(self, hessian: SymmetricOperator, preconditioner: Float[Tensor, " parameter"]) -> None:
        if len(preconditioner) != len(hessian):
            raise ValueError(f"preconditioner must have {len(hessian)} entries, got {len(preconditioner)}.")
        good = torch.isfinite(preconditioner) & (preconditioner > 0)
        if not bool(good.all()):
            worst = int((~good).int().argmax())
            raise ValueError(
                f"preconditioner must be positive and finite, got {float(preconditioner[worst])} in entry {worst} and "
                f"{int((~good).sum())} such entries in all."
            )
        self.hessian = hessian
        self._root = preconditioner.double().sqrt()

    def __len__(self) -> int:
        """How many parameters there are."""
        return len(self.hessian)

    def product(self, vector: Float[Tensor, " parameter"]) -> Float[Tensor, " parameter"]:
        """`P^(1/2) H P^(1/2) v`, in the precision and on the device of H's products."""
        root = self._root.to(vector.device)
        image = self.hessian.product(root * vector.double())
        return (root.to(image.device) * image.double()).to(image.dtype)


def stability_edge(lr: float, *, momentum: float = 0.0) -> float:
    """The curvature above which steps of a learning rate grow on a quadratic: `(2 + 2 b) / ((1 - b) lr)`.

    With `m <- b m + (1 - b) g` and `theta <- theta - lr P m`, P fixed, the coordinate x along an eigenvector of
    `P^(1/2) H P^(1/2)` with eigenvalue s obeys `x'' = (1 + b - (1 - b) lr s) x' - b x`. Both roots of
    `z^2 - (1 + b - (1 - b) lr s) z + b` lie within the unit circle where `0 < (1 - b) lr s < 2 + 2 b`. Without momentum
    this is gradient descent's `2 / lr`; at b = 0.9 it is `38 / lr`.

    Left out: AdamW's weight decay w, which moves the edge by the factor `1 - lr w / 2`; the scaling of the first
    moment in the first `1 / (1 - b)` updates; clipping, which acts as a smaller learning rate.

    Args:
        lr: Learning rate.
        momentum: Adam's beta1; 0 for gradient descent.

    Raises:
        ValueError: `lr` is not positive and finite, or `momentum` is outside [0, 1).

    References:
        Adaptive Gradient Methods at the Edge of Stability (arXiv 2207.14484), section 2; Gradient Descent on Neural
        Networks Typically Occurs at the Edge of Stability (arXiv 2103.00065).
    """
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be positive and finite, got {lr!r}: without a step there is no edge.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}.")
    return (2 + 2 * momentum) / ((1 - momentum) * lr)
