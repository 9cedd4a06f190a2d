"""Depthwise gradient scaling: how far each layer moves along its own gradient, `Delta_k = xi_k G_k`.

That gradients are scaled by depth, and that forward and backward norms cancel, is the source's [A, S]; the formula here
is our reconstruction [R]:

    xi_k = (1/l) rms^s / (alpha_k^2 |X_{k-1}|^2 |B_k|^2),    rms = sqrt(n) |B_l|

Then `c1 = -(rms^s / l) sum_k rho_k` with `rho_k` in [0, 1]: every depth contributes through its alignment alone. The
step commutes with the rescalings `W_k -> c_k W_k`, `prod c_k = 1`, under which the function does not change, and does
not depend on the multipliers alpha. With the exponent 1 on the norms it is not equivariant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.checked import _Config, _require
from qfl_interp.homogeneous.minibatch import Minibatch, frobenius

# Factor of each layer's gradient, first layer first.
Scales = tuple[float, ...]


class LayerStats(NamedTuple):
    """What a rule may look at: numbers of one minibatch, those with a layer axis first layer first.

    Attributes:
        n: Examples.
        rms: Root mean squared residual.
        alphas: Layer multipliers.
        feature_norms: `|X_{k-1}|_F`.
        backward_norms: `|B_k|_F`.
    """

    n: int
    rms: float
    alphas: tuple[float, ...]
    feature_norms: tuple[float, ...]
    backward_norms: tuple[float, ...]


# A rule of the user's own: one positive factor a layer.
Rule = Callable[[LayerStats], Sequence[float]]


@dataclass(frozen=True)
class DepthwiseRule(_Config):
    """`xi_k = rms^residual_power / (alpha_k |X_{k-1}| |B_k|)^norm_power`, divided by the depth if asked for [R].

    Args:
        norm_power: 2 for the default rule, 1 for the "normalised update", 0 for plain gradient descent.
        residual_power: `s`. With 1 the step does not depend on the loss's scale; with 2 it is proportional to it, as
            plain gradients are; with 0 it grows as the loss falls.
        depth_normalise: The factor `1/l`.

    Raises:
        ValueError: A power is not 0, 1 or 2, or `depth_normalise` is no truth value.
    """

    norm_power: int = 2
    residual_power: int = 1
    depth_normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("norm_power", "residual_power"):
            _require(getattr(self, name) in (0, 1, 2), f"{name} must be 0, 1 or 2", getattr(self, name), "")

    def __call__(self, stats: LayerStats) -> Scales:
        """The factors for one minibatch."""
        shared = stats.rms**self.residual_power / (len(stats.alphas) if self.depth_normalise else 1)
        norms = zip(stats.alphas, stats.feature_norms, stats.backward_norms, strict=True)
        return tuple(shared / (alpha * x * b) ** self.norm_power for alpha, x, b in norms)


def layer_stats(batch: Minibatch) -> LayerStats:
    """The numbers of a minibatch that rules look at."""
    backward = tuple(batch.residual_norm * b for b in batch.unit_backward_norms)
    return LayerStats(batch.n, batch.rms, batch.alphas, batch.feature_norms, backward)


def scales(rule: Rule, batch: Minibatch) -> Scales:
    """`xi_k` of each layer by a rule, checked.

    Raises:
        ValueError: Not one positive finite number a layer; says which. A layer whose features or backward vectors are
            all zero has no scale under the built-in rules.
    """
    stats = layer_stats(batch)
    try:
        given = rule(stats)
        found = tuple(float(xi) for xi in given) if isinstance(given, Iterable) else ()
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(
            f"the rule divides by zero or overflows: feature norms {stats.feature_norms}, backward norms "
            f"{stats.backward_norms}. A layer is dead or the batch is fitted exactly."
        ) from error
    if len(found) != batch.depth or not all(math.isfinite(xi) and xi > 0 for xi in found):
        raise ValueError(f"a rule must give {batch.depth} positive finite numbers, one a layer, got {given!r}.")
    return found


def alignments(batch: Minibatch) -> tuple[float, ...]:
    """`rho_k = |G_k|^2 / (alpha_k^2 |X_{k-1}|^2 |B_k|^2) = <A, C> / (tr A tr C)` of each layer, in [0, 1].

    Equal Gram matrices give 1 / participation ratio exactly.
    """
    norms = zip(batch.unit_gradients, batch.alphas, batch.feature_norms, batch.unit_backward_norms, strict=True)
    return tuple((frobenius(g) / (alpha * x * b)) ** 2 for g, alpha, x, b in norms)


def relative_updates(batch: Minibatch, xi: Scales, lr: float) -> tuple[float, ...]:
    """`u_k = lr xi_k alpha_k |X_{k-1} G_k'|_F / |Z_k|_F`: the relative change of `Z_k` by layer k's own update.

    Invariant under rescaling. NaN where `Z_k` is zero.
    """
    found = []
    for k, z in enumerate(batch.preactivations):
        length, change = frobenius(z), frobenius(own_image(batch, k))
        found.append(lr * xi[k] * batch.residual_norm * change / length if length else math.nan)
    return tuple(found)


def capped(batch: Minibatch, xi: Scales, lr: float, max_u: float) -> Scales:
    """The scales with those of hidden layers shrunk so that `u_k <= max_u`; the last layer's is left [R, ours]."""
    changes = relative_updates(batch, xi, lr)
    hidden = (x * min(1.0, max_u / u) if u > 0 else x for x, u in zip(xi[:-1], changes[:-1], strict=True))
    return (*hidden, xi[-1])


def own_image(batch: Minibatch, k: int) -> Float[Tensor, "batch d"]:
    """`alpha_k X_{k-1} G_k' / residual_norm = alpha_k^2 A_{k-1} B_k / residual_norm`, by the cheaper way."""
    x = batch.features[k]
    if gram_is_cheaper(batch, k):
        return batch.alphas[k] ** 2 * ((x @ x.mT) @ batch.unit_backward[k])
    return batch.alphas[k] * (x @ batch.unit_gradients[k].mT)


def gram_is_cheaper(batch: Minibatch, k: int) -> bool:
    """Whether products through the `n x n` Gram matrix take fewer operations than those with the gradient."""
    d_out, d_in = batch.weights[k].shape
    return batch.n * (d_in + d_out) < d_in * d_out


def preconditioner(xi: Scales, sizes: Sequence[int]) -> Float[Tensor, " parameter"]:
    """The diagonal of P: `xi_k` at each of the `sizes[k]` weights of layer k, in the order of the parameters."""
    return torch.repeat_interleave(torch.tensor(xi, dtype=torch.float64), torch.tensor(list(sizes)))
