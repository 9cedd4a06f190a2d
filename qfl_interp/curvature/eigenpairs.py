"""Top eigenpairs of a symmetric operator in the complement of a basis, by Lanczos."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qfl_interp.curvature.hessian import SymmetricOperator
from qfl_interp.curvature.orthonormal import orthonormalise, require_orthonormal, without_span
from qfl_interp.curvature.token_losses import require_finite
from qfl_interp.seeding import generator, torch_generator
from qfl_interp.shapes import compact_repr

# A relative residual that every Ritz vector is within.
_ANY = 1e30
# Vectors of the run that is not restarted.
_LONG = 40
# ARPACK counts in 32 bits.
_MOST_RESTARTS = 2**31 - 1


class Eigenpairs(NamedTuple):
    """Eigenpairs of `Pi H Pi` in the complement of a basis, largest eigenvalue first.

    Attributes:
        values: Rayleigh quotients `v' H v` of the vectors.
        vectors: Orthonormal rows, orthogonal to the basis; their signs carry no meaning.
        residuals: `|Pi H Pi v - value v| / max(|value|, 1e-30)` of each, measured with the vectors as they are.
        converged: Whether the residual is within the tolerance.
        n_products: Products with the matrix that it took, those of the residuals included.
    """

    values: Float[Tensor, " pair"]
    vectors: Float[Tensor, "pair parameter"]
    residuals: Float[Tensor, " pair"]
    converged: Bool[Tensor, " pair"]
    n_products: int

    __repr__ = compact_repr


class _Deflated:
    """`Pi H Pi - shift (I - Pi)` on float64 vectors, with Pi the projection onto the complement of a basis.

    `Pi H Pi` has the eigenvalue 0 on the basis, above the wanted ones where those are negative. The shift moves it
    down to twice the length of `H`'s first image of a unit vector; for a random vector that is near the root mean
    square of the eigenvalues, which less than half of them can be further below 0 than twice.
    """

    def __init__(self, hessian: SymmetricOperator, basis: Float[Tensor, "basis parameter"]) -> None:
        self.hessian = hessian
        self.basis = basis
        self.n_products = 0
        self.dtype, self.device = torch.float64, basis.device  # until the first product shows the Hessian's own
        self._shift: float | None = None

    def product(self, vector: Float[Tensor, " parameter"]) -> Float[Tensor, " parameter"]:
        """`Pi H v` of a vector of the complement, float64 on the basis's device."""
        image = self.hessian.product(vector)
        self.n_products += 1
        require_finite(image, "product of the Hessian with a vector")
        self.dtype, self.device = image.dtype, image.device
        return without_span(image.to(self.basis.device).double()[None], self.basis)[0]

    def shifted(self, vector: np.ndarray) -> np.ndarray:
        """The operator as ARPACK sees it."""
        whole = torch.tensor(vector.ravel(), device=self.basis.device)
        outside = without_span(whole[None], self.basis)[0]
        image = self.product(outside)
        if self._shift is None:
            if not bool(image.any()):
                raise ValueError(
                    "hessian must not send the start to zero: Lanczos finds nothing from there. Is the loss constant? "
                    "Otherwise choose another seed or start."
                )
            self._shift = 2.0 * float(image.norm() / whole.norm())
        return (image - self._shift * (whole - outside)).cpu().numpy()


def top_eigenpairs(
    hessian: SymmetricOperator,
    k: int = 1,
    *,
    deflate: Float[Tensor, "basis parameter"] | None = None,
    tol: float = 1e-3,
    max_products: int = 300,
    seed: int = 0,
    start: Float[Tensor, " parameter"] | None = None,
) -> Eigenpairs:
    """The `k` algebraically largest eigenpairs of `Pi H Pi` in the complement of a basis B, `Pi = I - B' B`.

    Lanczos with implicit restarts and full re-orthogonalisation (SciPy's `eigsh`) in float64, on `2 k + 8` vectors;
    only the products have the Hessian's own precision. If that has not converged after two thirds of the products or
    more, the best vectors of a run without restarts, on up to 40 vectors, join those that have; in tests on dense
    spectra these came closer to the top than restarting on. A last Rayleigh-Ritz step on the vectors projected again
    makes values, vectors and residuals fit each other. A complement of few dimensions is diagonalised whole.

    Args:
        hessian: What to diagonalise.
        k: How many pairs.
        deflate: Orthonormal rows B whose span is left out; on the device where to project.
        tol: Largest relative residual that counts as converged.
        max_products: Products after which the best found is returned, at least `3 k + 3`.
        seed: Decides the start, and so every bit of the result on one device.
        start: Where to start instead of at random, e.g. the eigenvector of the checkpoint before.

    Returns:
        Vectors in the precision and on the device of the Hessian's products. Pairs that did not converge are marked.

    Raises:
        ValueError: `k` is below 1 or above the dimension of the complement; the basis is not orthonormal; `tol` or
            `max_products` is too small; `start` lies in the span of the basis; the product with the start is zero; a
            product is not finite.
    """
    n = len(hessian)
    basis = torch.zeros(0, n, dtype=torch.float64) if deflate is None else deflate.detach()
    _check(n, k, basis, tol, max_products)
    operator = _Deflated(hessian, basis)
    krylov, products = _sizes(k, max_products)
    if n - len(basis) <= krylov:
        candidates = _complement(basis)
    else:
        first = _start(n, basis, start, seed)
        candidates = _lanczos(operator, k, first, krylov, tol, products, seed)
    return _rayleigh_ritz(operator, candidates, k, tol)


def solver_vectors(k: int, max_products: int) -> int:
    """About how many float64 vectors of one entry a parameter `top_eigenpairs` holds at once, the products' own too.

    They are those of the longer Lanczos run, which comes where the shorter one has not converged, and about 12 + 4 k
    beside it by measurement; 4 more are left for the products.
    """
    krylov, products = _sizes(k, max_products)
    return _long(krylov, products) + 4 * k + 16


def _sizes(k: int, max_products: int) -> tuple[int, int]:
    """Vectors of the run that is restarted, and the products Lanczos may take: Rayleigh-Ritz takes `2 k` at most."""
    products = max_products - 2 * k
    return min(2 * k + 8, products - 1), products


def _long(krylov: int, products: int) -> int:
    """Vectors of the run that is not restarted, in a space that has room for them."""
    return max(krylov, min(_LONG, products // 3))


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


def _start(n: int, basis: Tensor, start: Tensor | None, seed: int) -> np.ndarray:
    """A unit vector of the complement, random or near a given one."""
    if start is None:
        start = torch.randn(n, generator=torch_generator(seed, "curvature"), dtype=torch.float64)
    elif start.shape != (n,):
        raise ValueError(f"start must have {n} parameters, got shape {tuple(start.shape)}.")
    rows = orthonormalise(start.to(basis.device).double()[None], basis)
    if len(rows) == 0:
        raise ValueError("start must not be zero or in the span of deflate, or nothing is left of it. Leave it out.")
    return rows[0].cpu().numpy()


def _lanczos(
    operator: _Deflated, k: int, first: np.ndarray, krylov: int, tol: float, products: int, seed: int
) -> Float[Tensor, "candidate parameter"]:
    """The best vectors that ARPACK finds within a number of products; at least `k` of them."""
    # A quarter of a second, and finished tables have their eigenpairs.
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    n = len(first)
    linear = LinearOperator((n, n), matvec=operator.shifted, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    options: dict[str, Any] = {"which": "LA", "v0": first}
    # Since SciPy 1.17 ARPACK draws its restart vectors from a generator that is new in each process unless it is given.
    if "rng" in inspect.signature(eigsh).parameters:
        options["rng"] = generator(seed, "curvature/arpack")

    def vectors(size: int, tol: float, restarts: int) -> np.ndarray:
        # SciPy's default of `tol` is the integer 0.
        return eigsh(linear, k, ncv=size, tol=tol, maxiter=restarts, **options)[1]  # pyright: ignore[reportArgumentType]

    # A factorisation takes as many products as it has vectors and one for its start; a restart keeps `k` or more of
    # them. A long factorisation is held back for the case of no convergence; its Ritz vectors pass at any tolerance.
    long = min(_long(krylov, products), n)
    restarts = min((products - (krylov + 1) - (long + 1)) // (krylov - k), _MOST_RESTARTS)
    if restarts < 1:
        found = vectors(krylov, _ANY, 1)
    else:
        try:
            # ARPACK stops where its estimate of the residual is within the tolerance; a little room for rounding.
            found, converged = vectors(krylov, 0.9 * tol, restarts), True
        except ArpackNoConvergence as partial:
            found, converged = partial.eigenvectors, False
        if not converged:
            # Not in the handler: the exception holds all vectors of the run that ended.
            found = np.concatenate([found, vectors(long, _ANY, 1)], axis=1)
    return torch.from_numpy(np.ascontiguousarray(found.T)).to(operator.basis.device)


def _rayleigh_ritz(operator: _Deflated, candidates: Tensor, k: int, tol: float) -> Eigenpairs:
    """The best `k` eigenpairs in the span of candidates, with their residuals."""
    rows = orthonormalise(candidates, operator.basis)
    assert len(rows) >= k, f"{len(rows)} of {len(candidates)} candidates for {k} pairs lie outside the basis"
    images = torch.stack([operator.product(row) for row in rows])
    small = rows @ images.mT
    values, mixing = torch.linalg.eigh((small + small.mT) / 2)
    values, mixing = values[-k:].flip(0), mixing[:, -k:].flip(1)
    vectors = mixing.mT @ rows
    scale = values.abs().clamp_min(1e-30)
    residuals = (mixing.mT @ images - values[:, None] * vectors).norm(dim=1) / scale
    converged = (residuals <= tol).to(operator.device)
    values, vectors, residuals = (found.to(operator.device, operator.dtype) for found in (values, vectors, residuals))
    return Eigenpairs(values, vectors, residuals, converged, operator.n_products)


def _complement(basis: Float[Tensor, "basis parameter"]) -> Float[Tensor, "rest parameter"]:
    """Orthonormal rows that span the complement of a basis, for few parameters."""
    q, _ = torch.linalg.qr(basis.double().mT, mode="complete")
    return q[:, len(basis) :].mT
