"""One minibatch through a homogeneous network and back: everything that rules and formulas are made of.

The multilinear form with frozen slopes is exact wherever no preactivation is 0; the multipliers are our choice [R].

Layers count from 0 in code: entry k of a tuple belongs to `W_{k+1}` of the source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.homogeneous.config import Loss
from qfl_interp.homogeneous.losses import Targets, mean_loss, require_targets, residuals
from qfl_interp.models.mlp import HomogeneousMLP, SampleReader
from qfl_interp.shapes import compact_repr


@dataclass(frozen=True, repr=False)
class Minibatch:
    """Features, slopes and backward vectors of one minibatch.

    The backward pass is that of `B / |B|` with the last layer's B, so that small residuals do not vanish in float32:
    the true vectors are `residual_norm` times `unit_backward`.

    Attributes:
        loss: Which.
        value: The minibatch loss, `c0`.
        alphas: Layer multipliers.
        weights: `W`, each `[m_k, m_{k-1}]`; the model's own, so that numbers are taken before it is changed.
        features: `X`: what each layer reads, `[batch, m_{k-1}]`.
        preactivations: `Z`: what it gives, the last being the output.
        slopes: `D = phi'(Z)` of the hidden layers.
        residual_norm: `|B|_F` of the last layer; 0 where the loss is at its minimum.
        unit_backward: Derivatives of the loss by `Z`, divided by `residual_norm`.
    """

    loss: Loss
    value: float
    alphas: tuple[float, ...]
    weights: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    preactivations: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    residual_norm: float
    unit_backward: tuple[Tensor, ...]

    __repr__ = compact_repr

    @property
    def n(self) -> int:
        """Examples."""
        return len(self.features[0])

    @property
    def depth(self) -> int:
        """Weight matrices."""
        return len(self.weights)

    @property
    def rms(self) -> float:
        """Root mean squared residual, `sqrt(n) |B|_F` of the last layer."""
        return math.sqrt(self.n) * self.residual_norm

    @property
    def outputs(self) -> Float[Tensor, "batch d_out"]:
        """`F`, the last layer's preactivations."""
        return self.preactivations[-1]

    @cached_property
    def feature_norms(self) -> tuple[float, ...]:
        """`|X|_F` of what each layer reads, summed in float64."""
        return tuple(frobenius(x) for x in self.features)

    @cached_property
    def unit_backward_norms(self) -> tuple[float, ...]:
        """`|B_k|_F / residual_norm`."""
        return tuple(frobenius(b) for b in self.unit_backward)

    @cached_property
    def unit_gradients(self) -> tuple[Tensor, ...]:
        """`G_k / residual_norm`, with `G_k = alpha_k B_k' X_{k-1}` the loss's gradient."""
        return tuple(
            alpha * (b.mT @ x) for alpha, b, x in zip(self.alphas, self.unit_backward, self.features, strict=True)
        )

    def gradients(self) -> tuple[Tensor, ...]:
        """The gradient of the minibatch loss by each weight matrix."""
        return tuple(self.residual_norm * g for g in self.unit_gradients)


def frobenius(x: Tensor) -> float:
    """The Frobenius norm, summed in float64: squares of float32 overflow early."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def run_minibatch(
    model: HomogeneousMLP | SampleReader, inputs: Float[Tensor, "batch d_in"], targets: Targets, loss: Loss
) -> Minibatch:
    """One minibatch forward and back, in the model's precision. Hooks on the model are not run.

    `targets` are class ids for "cross_entropy", vectors for "squared_error".

    Raises:
        ValueError: Fewer than 2 examples, inputs of another width or not finite, targets that do not fit the loss; or
            `model` is no homogeneous network.
    """
    if not isinstance(model, HomogeneousMLP | SampleReader):
        raise ValueError(
            f"the formulas need a HomogeneousMLP, got {type(model).__name__}: they hold for positively homogeneous "
            "networks without biases alone. For any other take Hessian products: qfl_interp.curvature.along_step."
        )
    if inputs.shape[1] != model.cfg.d_in:
        raise ValueError(f"inputs must have d_in = {model.cfg.d_in} columns, got {inputs.shape[1]}.")
    bad = ~torch.isfinite(inputs).all(dim=1)
    if bool(bad.any()):
        raise ValueError(f"inputs must be finite, got a NaN or an infinity in row {int(bad.int().argmax())}.")
    weights = tuple(w.detach() for w in model.weights)
    return minibatch_of(weights, model.cfg.multipliers, model.cfg.slopes, inputs, targets, loss)


@torch.no_grad()
def minibatch_of(
    weights: tuple[Tensor, ...],
    alphas: tuple[float, ...],
    slopes: tuple[float, float],
    inputs: Float[Tensor, "batch d_in"],
    targets: Targets,
    loss: Loss,
) -> Minibatch:
    """One minibatch through weights with multipliers of one's own; `run_minibatch` without a model.

    `weights` are `[m_k, m_{k-1}]` each, and `slopes` is `(a, b)` of `phi(s) = a s + b |s|`.

    Raises:
        ValueError: Fewer than 2 examples, or targets that do not fit the loss.
    """
    if len(inputs) < 2:
        raise ValueError(
            f"a minibatch must hold at least 2 examples, got {len(inputs)}: of one every soft rank is 1. Take more."
        )
    a, b = slopes
    features, preactivations, signs = [inputs], [], []
    for k, (weight, alpha) in enumerate(zip(weights, alphas, strict=True)):
        z = alpha * (features[-1] @ weight.mT)
        preactivations.append(z)
        if k + 1 < len(weights):
            signs.append(a + b * z.sign())
            features.append(signs[-1] * z)
    require_targets(loss, preactivations[-1], targets)
    last = residuals(loss, preactivations[-1], targets) / len(inputs)
    norm = frobenius(last)
    backward = [last / norm if 0 < norm < math.inf else last]
    for k in range(len(weights) - 1, 0, -1):
        backward.append(signs[k - 1] * (alphas[k] * (backward[-1] @ weights[k])))
    return Minibatch(
        loss, float(mean_loss(loss, preactivations[-1], targets)), alphas, weights, tuple(features),
        tuple(preactivations), tuple(signs), norm, tuple(reversed(backward)),
    )  # fmt: skip
