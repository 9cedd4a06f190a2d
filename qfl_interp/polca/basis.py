"""Orthonormal directions of weight space: the paper's Algorithm 1, and others to hold it against.

Each function finds new directions, orthogonal to each other and to a basis found before: what a token's loss does along
them is counted once.

References:
    Hidden Breakthroughs in Language Model Training (arXiv 2506.15872), Algorithm 1. LCA: Loss Change Allocation (arXiv
    1909.01440).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qfl_interp.curvature import SymmetricOperator, gram_matrix, orthonormalise, top_eigenpairs

Directions = Float[Tensor, "direction parameter"]
# Vectors of float64 that finding a direction takes without an eigensolver, amply.
_VECTORS = 24
# Square matrices of all inner products that are held at once: the products, a block of them, the identity, the errors.
_GRAMS = 5
# A principal direction with a smaller share of the whole movement is rounding.
_MIN_SHARE = 1e-12
# Coordinates of the parameters that are multiplied at a time in float64.
_BLOCK = 1 << 18


class NewDirections(NamedTuple):
    """Directions found together.

    Attributes:
        vectors: Orthonormal rows, orthogonal to the basis they extend.
        eigenvalues: Of the Hessian confined to what that basis leaves; of a trajectory, the mean squared distance from
            the start along the direction; NaN where there is no eigenproblem.
        residuals: Of the eigenvectors, relative to the eigenvalue; NaN where there is no eigenproblem.
        converged: False where the eigensolver ran out of products.
        n_products: Hessian-vector products spent on all of them together.
    """

    vectors: Float[Tensor, "new parameter"]
    eigenvalues: Float[Tensor, " new"]
    residuals: Float[Tensor, " new"]
    converged: Bool[Tensor, " new"]
    n_products: int


def hessian_directions(
    hessian: SymmetricOperator,
    basis: Directions,
    k: int = 1,
    *,
    tol: float = 1e-3,
    max_products: int = 300,
    seed: int = 0,
) -> NewDirections:
    """The k eigenvectors of `Pi H Pi` with the largest eigenvalues, where Pi takes the basis out (Algorithm 1).

    The paper writes `Pi H`, which has the same non-zero eigenvalues but is not symmetric.

    Args:
        hessian: Of the mean loss at a basis checkpoint.
        basis: Found before; no rows at first.
        k: How many.
        tol: Relative residual that counts as converged.
        max_products: Hessian-vector products at most.
        seed: Of the eigensolver's start.

    Raises:
        ValueError: There is no room for k more directions, or a product is not finite.
    """
    deflate = basis if len(basis) else None
    found = top_eigenpairs(hessian, k, deflate=deflate, tol=tol, max_products=max_products, seed=seed)
    vectors = found.vectors.to(basis.dtype)
    return NewDirections(vectors, found.values.double(), found.residuals.double(), found.converged, found.n_products)


def added_directions(basis: Directions, vectors: Float[Tensor, "new parameter"], what: str) -> NewDirections:
    """The vectors made orthonormal, in their order, and orthogonal to the basis.

    Raises:
        ValueError: A vector vanishes or lies in the span of the basis and of those before it.
    """
    rows = orthonormalise(vectors, basis if len(basis) else None)
    if len(rows) < len(vectors):
        raise ValueError(
            f"{what} must be linearly independent of each other and of the {len(basis)} directions found before, got "
            f"{len(vectors) - len(rows)} of {len(vectors)} that are not. Take fewer directions or basis checkpoints."
        )
    return _without_eigenproblem(rows)


def random_directions(
    n: int, n_parameters: int, rng: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> NewDirections:
    """Orthonormal directions that know nothing of the model, uniformly distributed.

    Raises:
        ValueError: There are more than parameters.
    """
    empty = torch.empty(0, n_parameters, dtype=dtype)
    return added_directions(empty, torch.randn(n, n_parameters, generator=rng, dtype=dtype), "random directions")


def top_parameters(parameters: Float[Tensor, " parameter"], n: int) -> NewDirections:
    """The axes of the n parameters of largest magnitude, largest first: what LCA follows.

    Raises:
        ValueError: There are fewer parameters.
    """
    if n > len(parameters):
        raise ValueError(f"n must be at most the number of parameters, {len(parameters)}, got {n}.")
    largest = parameters.abs().argsort(descending=True, stable=True)[:n]
    rows = parameters.new_zeros(n, len(parameters))
    rows[torch.arange(n), largest] = 1.0
    return _without_eigenproblem(rows)


def trajectory_directions(movement: Float[Tensor, "time parameter"], n: int) -> NewDirections:
    """The n principal directions of where training went, `theta_t - theta_0`: of largest mean squared distance.

    Not centred: the first points where training went as a whole. By the eigenvectors of the Gram matrix, which has as
    many rows as there are times; nothing else is larger than `movement`, which is overwritten.

    Raises:
        ValueError: The movement has fewer than n dimensions.
    """
    gram = gram_matrix(movement)
    eigenvalues, mixing = (part.flip(-1)[..., :n] for part in torch.linalg.eigh(gram))
    rank = int((eigenvalues > _MIN_SHARE * gram.trace()).sum())
    if rank < n:
        raise ValueError(
            f"the parameters' movement must have at least {n} dimensions, got {rank} from {len(movement)} checkpoints. "
            "Take fewer directions, or more basis checkpoints."
        )
    for part in movement.split(_BLOCK, dim=1):
        part[:n] = (mixing.mT @ part.double()).to(part.dtype)
    found = added_directions(movement[:0], movement[:n], "principal directions")
    return found._replace(eigenvalues=(eigenvalues / len(movement)).to(found.eigenvalues.device))


def _without_eigenproblem(rows: Directions) -> NewDirections:
    """Directions that no eigensolver found."""
    blank = torch.full((len(rows),), math.nan, dtype=torch.float64)
    return NewDirections(rows, blank, blank, torch.ones(len(rows), dtype=torch.bool), 0)


def orthogonality(basis: Directions) -> Float[Tensor, " direction"]:
    """How far each direction is from orthonormal: the largest `|<b_i, b_j> - (i = j)|` over j."""
    gram = gram_matrix(basis)
    return (gram - torch.eye(len(basis), dtype=gram.dtype, device=gram.device)).abs().amax(dim=1)


def basis_bytes(
    n_directions: int,
    n_parameters: int,
    *,
    at_once: bool = False,
    n_vectors: int = _VECTORS,
    dtype: torch.dtype = torch.float32,
    jobs: int = 1,
) -> int:
    """Memory that a basis needs, in bytes, roughly.

    While it is found: the directions, three times where all are found together, and the vectors that finding takes.
    While gradients are projected: the directions and a copy laid out for the products, in every process. Always: their
    inner products with each other, which show that they are orthonormal.

    `n_vectors` counts the float64 vectors beside the directions: `solver_vectors` for eigenvectors. `at_once` is
    whether all are found together; `jobs` is how many processes project gradients.
    """
    found = n_directions * dtype.itemsize * (3 if at_once else 1) + n_vectors * 8
    projected = jobs * 2 * n_directions * dtype.itemsize
    return n_parameters * max(found, projected) + _GRAMS * 8 * n_directions**2
