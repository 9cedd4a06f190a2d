"""Top eigenvalues of a homogeneous network's Hessian, plain and preconditioned by the scales of a rule [R].

That the rule's own sharpness, with the scales held fixed, is the one to judge its edge by, and that it does not change
under the rescalings of `depthwise`, is our derivation [R].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from qfl_interp.curvature import top_eigenpairs
from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.curvature.preconditioned import Preconditioned
from qfl_interp.homogeneous.config import Loss
from qfl_interp.homogeneous.depthwise import Scales, preconditioner
from qfl_interp.homogeneous.losses import Targets, mean_loss
from qfl_interp.models.build import parameters_to_save
from qfl_interp.models.mlp import HomogeneousMLP, SampleReader


class MLPHessian:
    """The Hessian of the mean loss on some examples, through its products with vectors.

    That of the current linear piece: where a preactivation is 0 the loss has a kink instead. The parameters are
    copied: changing the model later does not move the Hessian.
    """

    def __init__(
        self, model: HomogeneousMLP | SampleReader, inputs: Float[Tensor, "batch d_in"], targets: Targets, loss: Loss
    ) -> None:
        self.space = ParameterSpace.of(model)
        self._theta = {name: tensor.clone().requires_grad_() for name, tensor in parameters_to_save(model).items()}
        self._dtype, self._device = inputs.dtype, inputs.device
        # Reverse over reverse: forward and backward pass run once, and every product is one pass back through both.
        with torch.enable_grad():
            value = mean_loss(loss, functional_call(model, self._theta, (inputs,)), targets)
            self._gradient = torch.autograd.grad(value, list(self._theta.values()), create_graph=True)

    def __len__(self) -> int:
        """How many parameters there are."""
        return len(self.space)

    def gradient(self) -> Float[Tensor, " parameter"]:
        """The gradient of the mean loss."""
        return self._flat(self._gradient).detach()

    def product(self, vector: Float[Tensor, " parameter"]) -> Float[Tensor, " parameter"]:
        """`H v`."""
        parts = list(self.space.unflatten(vector.to(self._device, self._dtype)).values())
        return self._flat(torch.autograd.grad(self._gradient, list(self._theta.values()), parts, retain_graph=True))

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """One vector of tensors in the order of the parameters."""
        return torch.cat([tensor.flatten() for tensor in tensors])


class Sharpness(NamedTuple):
    """The algebraically largest eigenvalue of a Hessian on some examples.

    `residual` is `|H v - value v| / |value|` of its vector, `converged` whether that is within the tolerance. That of
    few examples exceeds that of many.
    """

    value: float
    residual: float
    converged: bool
    n: int


def top_sharpness(
    model: HomogeneousMLP | SampleReader,
    inputs: Float[Tensor, "batch d_in"],
    targets: Targets,
    loss: Loss,
    xi: Scales | None = None,
    *,
    tol: float = 1e-3,
    seed: int = 0,
) -> Sharpness:
    """`lambda_H`, or with scales `lambda_P = lambda_max(P^(1/2) H P^(1/2))`, P holding `xi_k` fixed in layer k.

    By Lanczos: power iteration would find the largest absolute value, and diverged networks have negative ones. Under
    the scaled rule `lambda_P` is invariant under rescaling and `lambda_H` is not; judge the edge `lr lambda_P / 2 = 1`
    by it.

    Args:
        model: The network.
        inputs: The examples.
        targets: Class ids for "cross_entropy", vectors for "squared_error".
        loss: Which loss.
        xi: A rule's scales on these examples.
        tol: Largest relative residual that counts as converged.
        seed: Decides the start.

    Raises:
        ValueError: A product is not finite: the network has diverged; or Lanczos cannot start.
    """
    operator = MLPHessian(model, inputs, targets, loss)
    if xi is not None:
        operator = Preconditioned(operator, preconditioner(xi, tuple(w.numel() for w in model.weights)))
    found = top_eigenpairs(operator, 1, tol=tol, seed=seed)
    return Sharpness(float(found.values[0]), float(found.residuals[0]), bool(found.converged[0]), len(inputs))
