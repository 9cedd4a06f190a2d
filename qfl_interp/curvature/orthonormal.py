"""Orthonormal rows in parameter space, kept so in float64 without a float64 copy of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature.token_losses import require_finite

# How far from orthonormal rows may be: those in float32 are within 1e-6.
_ORTHONORMAL = 1e-5
# The share of a vector outside the span of those before it above which it is kept.
_NEW = 1e-6
# Entries of a basis that are held in float64 at a time: 64 MiB.
_BLOCK = 1 << 23


def orthonormalise(
    vectors: Float[Tensor, "vector parameter"],
    against: Float[Tensor, "basis width"] | None = None,
) -> Float[Tensor, "kept parameter"]:
    """Orthonormal rows that span, with `against`, what the vectors span with it; in the vectors' precision.

    Gram-Schmidt in their order, twice, in float64: the first row keeps its direction, and each later one the part of
    it that is new. A vector of which a millionth or less is outside the span of `against` and the vectors before it is
    left out; so is a zero vector.

    Args:
        vectors: Rows of any length.
        against: Orthonormal rows to be orthogonal to, which are not returned.

    Raises:
        ValueError: A vector is not finite, or `against` has rows of another length or is not orthonormal.
    """
    require_finite(vectors, "vectors to orthonormalise")
    if against is None:
        against = vectors[:0]
    elif against.shape[1] != vectors.shape[1]:
        raise ValueError(f"against must have rows of {vectors.shape[1]} parameters, got shape {tuple(against.shape)}.")
    require_orthonormal(against, "against")
    kept = torch.empty_like(vectors)
    n_kept = 0

    def outside(row: Tensor) -> Tensor:
        return without_span(without_span(row[None], against), kept[:n_kept])[0]

    for vector in vectors:
        row = vector.double()
        length, share = float(row.norm()), 0.0
        if length > 0:
            row = outside(row / length)
            share = float(row.norm())
        if share > _NEW:
            # What the first pass left of rounding is large against a small remainder; the second removes it.
            row = outside(row / share)
            kept[n_kept] = row / row.norm()
            n_kept += 1
    return kept[:n_kept]


def without_span(vectors: Float[Tensor, "row parameter"], basis: Float[Tensor, "basis parameter"]) -> Tensor:
    """Float64 rows without their parts along orthonormal ones."""
    inside = vectors.new_zeros(len(vectors), len(basis))
    for columns, block in _blocks(basis):
        inside += vectors[:, columns] @ block.to(vectors.device).mT
    outside = vectors.clone()
    for columns, block in _blocks(basis):
        outside[:, columns] -= inside @ block.to(vectors.device)
    return outside


def _blocks(basis: Float[Tensor, "basis parameter"]) -> Iterator[tuple[slice, Tensor]]:
    """Columns of a basis with their entries in float64, so many at a time that a whole copy never exists."""
    width = max(1, _BLOCK // max(1, len(basis)))
    for first in range(0, basis.shape[1] if len(basis) else 0, width):
        columns = slice(first, first + width)
        yield columns, basis[:, columns].double()


def gram_matrix(rows: Float[Tensor, "row parameter"]) -> Float[Tensor, "row row"]:
    """Inner products of all rows with each other, float64."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for _, block in _blocks(rows):
        gram += block @ block.mT
    return gram


def require_orthonormal(basis: Tensor, name: str) -> None:
    """Raise `ValueError` unless the rows are orthonormal."""
    gram = gram_matrix(basis)
    error = (gram - torch.eye(len(basis), dtype=torch.float64, device=basis.device)).abs().nan_to_num(math.inf)
    if bool((error > _ORTHONORMAL).any()):
        row, column = divmod(int(error.argmax()), len(basis))
        raise ValueError(
            f"{name} must have orthonormal rows (to {_ORTHONORMAL:g}), got <row {row}, row {column}> = "
            f"{float(gram[row, column]):.6g}. Pass it through orthonormalise first."
        )
