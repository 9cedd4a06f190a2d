"""Other ways to eigenpairs, counted in products: SciPy's ARPACK, and power iteration and Lanczos from a start."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from qfl_interp.curvature import SymmetricOperator
from qfl_interp.curvature.krylov import Deflated, KrylovSpace


class Found(NamedTuple):
    """Eigenvalues, largest first, the largest relative residual, and the products it took."""

    values: list[float]
    residual: float
    products: int


class Counted:
    """An operator that counts its products."""

    def __init__(self, operator: SymmetricOperator) -> None:
        self.operator, self.n_products = operator, 0

    def __len__(self) -> int:
        return len(self.operator)

    def product(self, vector: Tensor) -> Tensor:
        """The operator times a vector, float64, on the CPU."""
        self.n_products += 1
        return self.operator.product(vector).double().cpu()


def random_start(n: int, seed: int = 0) -> Tensor:
    """A Gaussian vector."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arpack(operator: SymmetricOperator, k: int, tol: float, start: Tensor) -> Found:
    """`eigsh` on `2 k + 8` vectors, and one product for each pair's residual: the library's own way before."""
    counted = Counted(operator)
    shape = (len(operator), len(operator))

    def product(vector: np.ndarray) -> np.ndarray:
        return counted.product(torch.from_numpy(vector.ravel())).numpy()

    linear: Any = LinearOperator(shape, matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    options: Any = {"which": "LA", "v0": start.numpy(), "ncv": 2 * k + 8, "tol": 0.9 * tol, "maxiter": 100}
    values, vectors = eigsh(linear, k, **options)
    images = np.stack([counted.product(torch.from_numpy(v.copy())).numpy() for v in vectors.T])
    residuals = np.linalg.norm(images - values[:, None] * vectors.T, axis=1) / np.abs(values)
    return Found(values[::-1].tolist(), float(residuals.max()), counted.n_products)


def power_iteration(operator: SymmetricOperator, start: Tensor, *, tol: float, most: int) -> Found:
    """Power iteration on the shifted operator until `tol` or `most` products.

    The shift is the length of the operator times a random unit vector: without one it finds the eigenvalue of largest
    magnitude.
    """
    counted = Counted(operator)
    random = random_start(len(operator))
    shift = float(counted.product(random / random.norm()).norm())
    v = start / start.norm()
    while True:
        image = counted.product(v)
        value = float(v @ image)
        residual = float((image - value * v).norm()) / max(abs(value), 1e-30)
        if residual <= tol or counted.n_products >= most:
            return Found([value], residual, counted.n_products)
        v = image + shift * v
        v /= v.norm()


def lanczos_from(operator: SymmetricOperator, start: Tensor, k: int, *, tol: float, most: int) -> Found:
    """Lanczos from a start until the residuals of k pairs are within `tol`; whether others are hidden is not asked."""
    space = KrylovSpace(_From(operator, start), most, k, torch.Generator())
    while True:
        space.grow()
        ritz = space.ritz(k)
        residual = float((ritz.residuals / ritz.values.abs().clamp_min(1e-30)).max())
        if (len(ritz.values) == k and residual <= tol) or len(space) == most:
            return Found(ritz.values.tolist(), residual, len(space))


class _From(Deflated):
    """Starts where it is told to."""

    def __init__(self, operator: SymmetricOperator, start: Tensor) -> None:
        super().__init__(operator, torch.zeros(0, len(operator), dtype=torch.float64))
        self.start = start

    def random(self, rng: torch.Generator) -> Tensor:
        """The start."""
        return self.start
