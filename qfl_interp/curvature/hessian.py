"""Hessian-vector products of the mean token loss: forward over reverse, a chunk of sequences at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp

from qfl_interp.curvature.ordered_sums import ordered_sums
from qfl_interp.curvature.token_losses import TokenLoss, require_finite


@runtime_checkable
class SymmetricOperator(Protocol):
    """A symmetric matrix known through its products with vectors."""

    def __len__(self) -> int:
        """Rows of the matrix."""
        ...

    def product(self, vector: Float[Tensor, " parameter"]) -> Float[Tensor, " parameter"]:
        """The matrix times a vector."""
        ...


class Hessian:
    """The Hessian of the *mean* loss over the scored tokens of a dataset, through its products with vectors.

    The paper writes sums over its sample; the mean has the same eigenvectors, and eigenvalues that do not grow with the
    sample. The model is not changed, and the parameters are copied: changing the model later does not move the Hessian.

    Args:
        loss: The tokens' losses.
        parameters: Where, by name. Default: the model's own.
        chunk: Sequences differentiated at a time; bounds the memory.

    Attributes:
        n_products: Hessian-vector products so far.

    Raises:
        ValueError: `chunk` is below 1, or the parameters are not those of the loss.

    References:
        Hidden Breakthroughs in Language Model Training (arXiv 2506.15872), Algorithm 1.
    """

    def __init__(self, loss: TokenLoss, parameters: Mapping[str, Tensor] | None = None, *, chunk: int = 128) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 sequence, got {chunk}.")
        self.loss = loss
        self.chunk = chunk
        self.n_products = 0
        self._theta = loss.own(loss.parameters() if parameters is None else parameters)

    def __len__(self) -> int:
        """How many parameters there are."""
        return len(self.loss.space)

    def __repr__(self) -> str:
        return f"Hessian({self.loss!r}, {self.n_products} products so far)"

    def gradient(self) -> Float[Tensor, " parameter"]:
        """The gradient of the mean loss, in the loss's precision.

        Raises:
            ValueError: An entry is not finite.
        """
        return self._mean(lambda gradient: gradient(self._theta), "gradient of the mean loss")

    def product(self, vector: Float[Tensor, " parameter"]) -> Float[Tensor, " parameter"]:
        """`H v`, in the loss's precision.

        Raises:
            ValueError: `vector` has another length, or an entry of the product is not finite.
        """
        tangent = self.loss.space.unflatten(self._own(vector))
        self.n_products += 1
        return self._mean(lambda gradient: jvp(gradient, (self._theta,), (tangent,))[1], "Hessian-vector product")

    def along(self, directions: Float[Tensor, "direction parameter"]) -> Float[Tensor, " direction"]:
        """`b' H b` of each direction, which is its curvature where `b` has length 1; one product each.

        Raises:
            ValueError: Directions have another length, or an entry of a product is not finite.
        """
        curvatures = [self._own(direction).double() @ self.product(direction).double() for direction in directions]
        return self._own(torch.stack(curvatures) if curvatures else directions.new_zeros(0))

    def _own(self, tensor: Tensor) -> Tensor:
        """The tensor in the loss's precision, on its device."""
        return tensor.to(self.loss.scored.tokens.device, self.loss.dtype)

    @torch.no_grad()  # whether gradients are on outside would change some kernels, and with them the last bit
    def _mean(self, derivative: Callable[[Callable[..., dict[str, Tensor]]], dict[str, Tensor]], what: str) -> Tensor:
        """A derivative of the mean loss from those of its chunks, each given as the gradient of the chunk's sum."""
        total = torch.zeros(len(self), dtype=self.loss.dtype, device=self.loss.scored.tokens.device)
        for part in self.loss.chunks(self.chunk):
            gradient = grad(lambda theta, part=part: part(theta).sum() / len(self.loss))
            with ordered_sums(total.device):
                total += self.loss.space.flatten(derivative(gradient))
        require_finite(total, what)
        return total
