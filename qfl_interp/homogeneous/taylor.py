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
from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature import step_sharpness
from qfl_interp.homogeneous.depthwise import Scales, gram_is_cheaper, own_image
from qfl_interp.homogeneous.losses import mean_loss, output_hessian
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
    """
    _require_scales(batch, xi)
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


class PairCoefficients(NamedTuple):
    """c2 by pairs of layers: which two updates together bend the loss. Sums are `Coefficients`' two parts.

    Attributes:
        gauss_newton: Symmetric: entry (j, k) is what the output's changes by updates j and k give together.
        feature_motion: Entry (j, k), j < k: update j moves the features that update k reads. Zero elsewhere: the
            output is linear in each matrix.
    """

    gauss_newton: Float[Tensor, "layer layer"]
    feature_motion: Float[Tensor, "layer layer"]


@torch.no_grad()
def pair_coefficients(batch: Minibatch, xi: Scales) -> PairCoefficients:
    """c2 by pairs of layers, from one tangent pass for each layer's update alone: a diagnostic."""
    _require_scales(batch, xi)
    norm, depth = batch.residual_norm, batch.depth
    motion = batch.outputs.new_zeros(depth, depth)
    outputs = []
    for j in range(depth):
        tangent = -(xi[j] * norm) * own_image(batch, j)
        for k in range(j + 1, depth):
            tangent = batch.slopes[k - 1] * tangent
            motion[j, k] = -xi[k] * norm**2 * _moving(batch, k, tangent)
            tangent = batch.alphas[k] * (tangent @ batch.weights[k].mT)
        outputs.append(tangent)
    bent = [output_hessian(batch.loss, batch.outputs, f) for f in outputs]
    gauss_newton = torch.einsum("jio,kio->jk", torch.stack(outputs), torch.stack(bent)) / (2 * batch.n)
    return PairCoefficients(gauss_newton, motion)


@torch.no_grad()
def tangent_kernel(batch: Minibatch, xi: Scales) -> Float[Tensor, "batch d_out batch d_out"]:
    """`Theta[i, o, i', o'] = sum_k xi_k alpha_k^2 (A_{k-1})_{ii'} <J_{k,i,o}, J_{k,i',o'}>`, `J_k = d f / d z_k`.

    The neural tangent kernel of the scaled step: with `b` the last layer's backward vectors, `c1 = -b' Theta b`,
    `df = -Theta b` and `gauss_newton = df' H df / (2n)`. Memory: the square of `n d_out`.
    """
    _require_scales(batch, xi)
    n, d_out = batch.outputs.shape
    jacobian = torch.eye(d_out).to(batch.outputs).expand(n, -1, -1)  # [batch, d_out, m_k]
    kernel = batch.outputs.new_zeros(n, d_out, n, d_out)
    for k in range(batch.depth - 1, -1, -1):
        x = batch.features[k]
        inner = torch.einsum("iom,jpm->iojp", jacobian, jacobian)
        kernel += xi[k] * batch.alphas[k] ** 2 * (x @ x.mT)[:, None, :, None] * inner
        if k:
            jacobian = batch.alphas[k] * (jacobian @ batch.weights[k]) * batch.slopes[k - 1][:, None]
    return kernel


def frozen_sign_loss(batch: Minibatch, xi: Scales, s: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The minibatch loss at `W - s Delta` with every slope held at its value for s = 0; differentiable by s.

    The output is then a polynomial of degree `depth` in s: the loss without kinks, whose derivatives at 0 are those
    of the coefficients. The true loss has kinks; finite differences of it do not validate c2.
    """
    _require_scales(batch, xi)
    x = batch.features[0]
    for k, gradient in enumerate(batch.gradients()):
        z = batch.alphas[k] * (x @ (batch.weights[k] - s * xi[k] * gradient).mT)
        x = z if k + 1 == batch.depth else batch.slopes[k] * z
    return mean_loss(batch.loss, x, batch.targets)


def _require_scales(batch: Minibatch, xi: Scales) -> None:
    """Raise `ValueError` unless there is one factor a layer."""
    if len(xi) != batch.depth:
        raise ValueError(f"xi must have {batch.depth} entries, one a layer, got {len(xi)}.")
