"""The first three Taylor coefficients of the minibatch loss along a step, from Gram matrices.

`L(W - s Delta) = c0 + c1 s + c2 s^2 + O(s^3)` with `Delta_k = xi_k G_k`. That formulas with low-dimensional tensors and
Gram matrices exist is the source's [A, S]; these are our derivation [R], exact wherever no preactivation is 0. With
`A_k = X_k X_k'`, `C_k = B_k B_k'`, the slopes D held fixed (the network is piecewise multilinear):

    c1 = - sum_k xi_k alpha_k^2 <C_k, A_{k-1}> = - sum_k xi_k |G_k|^2
    dZ_k = alpha_k dX_{k-1} W_k' - xi_k alpha_k^2 A_{k-1} B_k,    dX_k = D_k * dZ_k,    dX_0 = 0
    c2 = 1/(2n) sum_i df_i' H_i df_i  -  1/2 sum_{k>=2} xi_k alpha_k^2 <C_k, dA_{k-1}>,    df = dZ_l

The first part of c2 is Gauss-Newton; the second is minus the alignment of the backward Gram matrix with the velocity of
the feature Gram matrix: what features that move add to the curvature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qfl_interp.curvature import step_sharpness
from qfl_interp.homogeneous.depthwise import Scales, gram_is_cheaper, own_image
from qfl_interp.homogeneous.losses import output_hessian
from qfl_interp.homogeneous.minibatch import Minibatch, frobenius


class Coefficients(NamedTuple):
    """The quadratic model of the minibatch loss along a step of one minibatch.

    Attributes:
        c0: The loss.
        c1: Its slope, per unit of learning rate; negative.
        gauss_newton: The part of `c2` at frozen features.
        feature_motion: The part of `c2` from features that move.
    """

    c0: float
    c1: float
    gauss_newton: float
    feature_motion: float

    @property
    def c2(self) -> float:
        """Half the curvature."""
        return self.gauss_newton + self.feature_motion

    @property
    def sharpness(self) -> float:
        """`S = 2 c2 / |c1|`, as `qfl_interp.curvature.step_sharpness`; `lr S / 2` above 1 is beyond the edge."""
        return step_sharpness(self.c1, self.c2)


@torch.no_grad()
def taylor_coefficients(batch: Minibatch, xi: Scales) -> Coefficients:
    """c0, c1 and c2 along `Delta_k = xi_k G_k`, for one more forward pass.

    Each product goes through the Gram matrix or through the gradient, whichever takes fewer operations.

    Args:
        batch: From `run_minibatch`.
        xi: A factor for each layer's gradient.

    Raises:
        ValueError: There is not one factor a layer.
    """
    if len(xi) != batch.depth:
        raise ValueError(f"xi must have {batch.depth} entries, one a layer, got {len(xi)}.")
    norm = batch.residual_norm
    slope = sum(x * _gradient_square(batch, k) for k, x in enumerate(xi))
    motion, tangent = 0.0, None
    for k, alpha in enumerate(batch.alphas):
        d_z = -(xi[k] * norm) * own_image(batch, k)
        if tangent is not None:
            d_z = d_z + alpha * (tangent @ batch.weights[k].mT)
            motion -= xi[k] * norm**2 * _moving(batch, k, tangent)
        tangent = d_z if k + 1 == batch.depth else batch.slopes[k] * d_z
    assert tangent is not None
    bent = output_hessian(batch.loss, batch.outputs, tangent)
    return Coefficients(batch.value, -(norm**2) * slope, float((tangent * bent).sum()) / (2 * batch.n), motion)


def _gradient_square(batch: Minibatch, k: int) -> float:
    """`|G_k|^2 / residual_norm^2 = alpha_k^2 <C_k, A_{k-1}>`, both in units of the residuals."""
    if gram_is_cheaper(batch, k):
        x, b = batch.features[k], batch.unit_backward[k]
        return batch.alphas[k] ** 2 * float(((x @ x.mT) * (b @ b.mT)).sum())
    return frobenius(batch.unit_gradients[k]) ** 2


def _moving(batch: Minibatch, k: int, tangent: Tensor) -> float:
    """`alpha_k <B_k, dX_{k-1} G_k'> = alpha_k^2 <C_k, dA_{k-1}> / 2`, B and G in units of the residuals."""
    b, alpha = batch.unit_backward[k], batch.alphas[k]
    if gram_is_cheaper(batch, k):
        return alpha**2 * float(((b @ b.mT) * (batch.features[k] @ tangent.mT)).sum())
    return alpha * float((b * (tangent @ batch.unit_gradients[k].mT)).sum())
