"""Top eigenpairs of a symmetric operator in the complement of a basis, by Lanczos that looks after every product."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qfl_interp.curvature.hessian import SymmetricOperator
from qfl_interp.curvature.krylov import Deflated, KrylovSpace
from qfl_interp.curvature.orthonormal import orthonormalise, require_orthonormal
from qfl_interp.seeding import torch_generator
from qfl_interp.shapes import compact_repr

# The share of starts from which a larger eigenvalue may stay hidden.
_MISSED = 0.01
# Vectors of a Krylov space for one pair before it is restarted.
_SPACE = 40


class Eigenpairs(NamedTuple):
    """Eigenpairs of `Pi H Pi` in the complement of a basis, largest eigenvalue first.

    Attributes:
        values: Rayleigh quotients `v' H v` of the vectors.
        vectors: Orthonormal rows, orthogonal to the basis; their signs carry no meaning.
        residuals: `|Pi H Pi v - value v| / max(|value|, 1e-30)` of each.
        converged: Whether the residual is within the tolerance and products sufficed to look for larger eigenvalues.
        n_products: Products with the matrix that it took.
    """

    values: Float[Tensor, " pair"]
    vectors: Float[Tensor, "pair parameter"]
    residuals: Float[Tensor, " pair"]
    converged: Bool[Tensor, " pair"]
    n_products: int

    __repr__ = compact_repr


class _Pairs(NamedTuple):
    """Float64 pairs on the basis's device; whether the search for larger ones has ended."""

    values: Float[Tensor, " pair"]
    vectors: Float[Tensor, "pair parameter"]
    residuals: Float[Tensor, " pair"]
    complete: bool


def top_eigenpairs(
    hessian: SymmetricOperator,
    k: int = 1,
    *,
    deflate: Float[Tensor, "basis parameter"] | None = None,
    tol: float = 1e-3,
    max_products: int = 300,
    seed: int = 0,
) -> Eigenpairs:
    """The `k` algebraically largest eigenpairs of `Pi H Pi` in the complement of a basis B, `Pi = I - B' B`.

    Lanczos with full re-orthogonalisation in float64 and thick restarts; only the products have the Hessian's own
    precision. It ends with the first product after which the residuals are within the tolerance and at most one start
    in a hundred would still hide an eigenvalue larger by `tol |value|` or more (`KrylovSpace.missed`). For `k = 1` that
    is the start that found the pair. More pairs may share an eigenvalue, of which one start sees one vector: a second
    random start looks for what is missing beside them.

    There is no warm start: from a neighbour's eigenvector the second eigenvector can look like the first, and the
    random start that would tell finds the pair as fast by itself (docs/benchmarks.md).

    Args:
        hessian: What to diagonalise.
        k: How many pairs.
        deflate: Orthonormal rows B whose span is left out; on the device where to project.
        tol: Largest relative residual that counts as converged.
        max_products: Products after which the best found is returned, at least `3 k + 3`.
        seed: Decides the starts, and so every bit of the result on one device.

    Returns:
        Vectors in the precision and on the device of the Hessian's products. Pairs that did not converge are marked.

    Raises:
        ValueError: `k` is below 1 or above the dimension of the complement; the basis is not orthonormal; `tol` or
            `max_products` is too small; the product with the start is zero; a product is not finite.
    """
    n = len(hessian)
    basis = torch.zeros(0, n, dtype=torch.float64) if deflate is None else deflate.detach()
    _check(n, k, basis, tol, max_products)
    rng = torch_generator(seed, "curvature")
    operator = Deflated(hessian, basis)
    found = _first(operator, k, tol, max_products, rng)
    # A pair that the second start finds is joined to the others by their images.
    while not found.complete and k > 1 and bool((found.residuals <= tol).all()):
        beside = Deflated(hessian, basis, found.vectors)
        most = max_products - operator.n_products - (k + 1)
        floor = float(found.values[-1] + tol * found.values[-1].abs())
        missing, complete = _above(beside, floor, tol, most, rng)
        operator.n_products += beside.n_products
        if missing is None:
            found = found._replace(complete=complete)
            break
        found = _joined(operator, torch.cat([found.vectors, missing]), k)
    converged = ((found.residuals <= tol) & found.complete).to(operator.device)
    values, vectors, residuals = (part.to(operator.device, operator.dtype) for part in found[:3])
    return Eigenpairs(values, vectors, residuals, converged, operator.n_products)


def solver_vectors(k: int) -> int:
    """About how many float64 vectors of one entry a parameter `top_eigenpairs` holds at once, the products' own too."""
    return _size(k) + 2 * k + 8


def _size(k: int) -> int:
    """Vectors of a Krylov space before it is restarted."""
    return _SPACE + 2 * k


def _space(operator: Deflated, k: int, rng: torch.Generator) -> KrylovSpace:
    """A space for k pairs; a restart keeps half of what it does not need for them."""
    return KrylovSpace(operator, _size(k), k + _SPACE // 2, rng)


def _check(n: int, k: int, basis: Tensor, tol: float, max_products: int) -> None:
    """Raise `ValueError` for arguments of `top_eigenpairs` that do not go together."""
    if basis.shape[1] != n:
        raise ValueError(f"deflate must have rows of {n} parameters, got shape {tuple(basis.shape)}.")
    if not 1 <= k <= n - len(basis):
        raise ValueError(
            f"k must lie in [1, {n - len(basis)}], the dimension of the complement of {len(basis)} deflated directions "
            f"in {n} parameters, got {k}."
        )
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol!r}.")
    if max_products < 3 * k + 3:
        raise ValueError(f"max_products must be at least 3 k + 3 = {3 * k + 3} for k = {k}, got {max_products}.")
    require_orthonormal(basis, "deflate")


def _first(operator: Deflated, k: int, tol: float, most: int, rng: torch.Generator) -> _Pairs:
    """The best pairs of one start; complete where it cannot well hide others."""
    space = _space(operator, k, rng)
    while True:
        space.grow()
        ritz = space.ritz(k)
        residuals = _relative(ritz.residuals, ritz.values)
        if operator.n_products == 1 and not bool(ritz.residuals.any() or ritz.values.any()):
            raise ValueError(
                "hessian must not send the start to zero: Lanczos finds nothing from there. Is the loss constant? "
                "Otherwise choose another seed."
            )
        complete = space.whole
        if len(residuals) == k and bool((residuals <= tol).all()):
            top = float(ritz.values[0])
            complete = complete or (k == 1 and space.missed(top + tol * abs(top)) <= _MISSED)
            if complete or k > 1:
                break
        if complete or operator.n_products == most:
            break
    vectors = space.vectors(ritz)
    return _Pairs(ritz.values.to(vectors.device), vectors, residuals.to(vectors.device), complete)


def _above(
    operator: Deflated, floor: float, tol: float, most: int, rng: torch.Generator
) -> tuple[Float[Tensor, "1 parameter"] | None, bool]:
    """A vector of an eigenvalue above `floor`, where there is one; and whether it is known that there is none."""
    if operator.dimension == 0:
        return None, True
    space = _space(operator, 1, rng)
    while operator.n_products < most:
        space.grow()
        ritz = space.ritz(1)
        if float(ritz.values[0]) > floor:
            if space.whole or bool((_relative(ritz.residuals, ritz.values) <= tol).all()):
                return space.vectors(ritz), False
        elif space.missed(floor) <= _MISSED:
            return None, True
    return None, False


def _joined(operator: Deflated, rows: Float[Tensor, "row parameter"], k: int) -> _Pairs:
    """The best `k` pairs in the span of rows, by Rayleigh and Ritz."""
    rows = orthonormalise(rows)
    images = torch.stack([operator.product(row) for row in rows])
    small = rows @ images.mT
    values, mixing = torch.linalg.eigh((small + small.mT) / 2)
    values, mixing = values[-k:].flip(0), mixing[:, -k:].flip(1)
    vectors = mixing.mT @ rows
    residuals = (mixing.mT @ images - values[:, None] * vectors).norm(dim=1)
    return _Pairs(values, vectors, _relative(residuals, values), False)


def _relative(residuals: Tensor, values: Tensor) -> Tensor:
    return residuals / values.abs().clamp_min(1e-30)
