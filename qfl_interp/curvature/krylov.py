"""A Krylov space that grows by one product at a time: Ritz pairs, their residuals, and what may still be hidden.

Lanczos with full re-orthogonalisation and thick restarts. With rows Q and one more row in the complement of a basis,
`A q_j = sum_i C[i, j] q_i` holds to rounding for the operator A there, so that the residual of every Ritz vector is
known without another product.

References:
    Wu and Simon, Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems, SIAM J. Matrix Anal. Appl. 22
    (2000).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature.hessian import SymmetricOperator
from qfl_interp.curvature.orthonormal import without_span
from qfl_interp.curvature.token_losses import require_finite

# Below this share of an image what the space does not have yet is rounding of float64.
_ROUNDING = 1e-13
# Coordinates of the space that a restart mixes at a time.
_BLOCK = 1 << 16


class Deflated:
    """`Pi H` on float64 vectors of the complement of orthonormal rows."""

    def __init__(self, hessian: SymmetricOperator, *bases: Float[Tensor, "_ parameter"]) -> None:
        self.hessian, self.bases = hessian, bases
        self.dimension = len(hessian) - sum(map(len, bases))
        self.n_products = 0
        self.dtype, self.device = torch.float64, bases[0].device  # until the first product shows the Hessian's own

    def product(self, vector: Float[Tensor, " parameter"]) -> Float[Tensor, " parameter"]:
        """`Pi H v` on the bases' device."""
        image = self.hessian.product(vector)
        self.n_products += 1
        require_finite(image, "product of the Hessian with a vector")
        self.dtype, self.device = image.dtype, image.device
        return self.outside(image.to(self.bases[0].device).double())

    def outside(self, vector: Float[Tensor, " parameter"]) -> Float[Tensor, " parameter"]:
        """The vector's part in the complement."""
        for basis in self.bases:
            vector = without_span(vector[None], basis)[0]
        return vector

    def random(self, rng: torch.Generator) -> Float[Tensor, " parameter"]:
        """A Gaussian vector."""
        return torch.randn(len(self.hessian), generator=rng, dtype=torch.float64).to(self.bases[0].device)


class Ritz(NamedTuple):
    """The best approximate eigenpairs in the space, largest value first.

    Attributes:
        values: Rayleigh quotients.
        mixing: The vectors in coordinates of the space.
        residuals: `|A v - value v|`.
    """

    values: Float[Tensor, " pair"]
    mixing: Float[Tensor, "row pair"]
    residuals: Float[Tensor, " pair"]


class KrylovSpace:
    """The span of a random vector's images.

    Args:
        operator: What it is a space of.
        size: Images before it is restarted.
        keep: How many of the best vectors a restart keeps.
        rng: Draws the start, and another vector where the space is closed under the operator.
    """

    def __init__(self, operator: Deflated, size: int, keep: int, rng: torch.Generator) -> None:
        self._operator, self._size, self._keep, self._rng = operator, min(size, operator.dimension), keep, rng
        first = operator.random(rng)
        # Pages that no row reaches take no memory.
        self._rows = first.new_empty(self._size + 1, len(first))
        self._images = torch.zeros(self._size + 1, self._size, dtype=first.dtype)
        self._rows[0] = self._new(first, 0)
        self._n = 0
        # Of the polynomial p whose p(A) makes the newest row from the start: its roots that restarts left behind, and
        # the log of the vector's length.
        self._left_behind: list[float] = []
        self._log_length = 0.0

    def __len__(self) -> int:
        """How many vectors the images are known of."""
        return self._n

    @property
    def whole(self) -> bool:
        """Whether the space is all there is."""
        return self._n == self._operator.dimension

    def grow(self) -> None:
        """Take the image of the newest row into the space: one product."""
        if self._n == self._size and not self.whole:
            self._restart()
        n = self._n
        image = self._operator.product(self._rows[n])
        rest, self._images[: n + 1, n] = self._split(image, n + 1)
        self._n += 1
        if self.whole:
            return
        length = float(rest.norm())
        closed = length <= _ROUNDING * float(image.norm())
        self._log_length += -math.inf if closed else math.log(length)
        if closed:
            self._rows[n + 1] = self._new(self._operator.random(self._rng), n + 1)
        else:
            self._images[n + 1, n] = length
            self._rows[n + 1] = self._new(rest / length, n + 1)

    def ritz(self, k: int) -> Ritz:
        """The best `k` pairs, or as many as the space has."""
        n = self._n
        values, mixing = torch.linalg.eigh(self._symmetric())
        values, mixing = values[-k:].flip(0), mixing[:, -k:].flip(1)
        residuals = self._images[: n + 1, :n] @ mixing
        residuals[:n] -= values * mixing
        return Ritz(values, mixing, residuals.norm(dim=0))

    def vectors(self, ritz: Ritz) -> Float[Tensor, "pair parameter"]:
        """The Ritz vectors, orthonormal rows."""
        return ritz.mixing.mT.to(self._rows.device) @ self._rows[: self._n]

    def missed(self, floor: float) -> float:
        """A bound on the share of starts from which an eigenvalue above `floor` would not have been found yet.

        No Ritz value is above `floor`. The newest row is `p(A) start / |p(A) start|` with the Ritz values, and those
        left behind, as roots of p. No part of a unit vector exceeds 1, so that an eigenvector v of an eigenvalue
        `mu >= floor` has `|<v, start>| <= |p(A) start| / p(mu)`, which falls with mu. Of starts in d dimensions of
        uniformly distributed direction a share of `sqrt(2 d / pi) c` or less has `|<v, start>| <= c`.
        """
        if self.whole:
            return 0.0
        roots = torch.cat([torch.linalg.eigvalsh(self._symmetric()), torch.tensor(self._left_behind).double()])
        if not len(roots):
            return 1.0
        if float(roots.max()) >= floor:
            return 1.0
        part = math.exp(min(0.0, self._log_length - float((floor - roots).log().sum())))
        return min(1.0, math.sqrt(2 * self._operator.dimension / math.pi) * part)

    def _symmetric(self) -> Float[Tensor, "row row"]:
        """The operator in the space; what is not symmetric is rounding of the products."""
        inside = self._images[: self._n, : self._n]
        return (inside + inside.mT) / 2

    def _split(self, vector: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """What of a vector is outside the first rows, and its coordinates inside; twice, against rounding."""
        rows, inside = self._rows[:n], self._images.new_zeros(n)
        for _ in range(2):
            vector = self._operator.outside(vector)
            along = rows @ vector
            vector = vector - along @ rows
            inside += along.cpu()
        return vector, inside

    def _new(self, vector: Tensor, n: int) -> Tensor:
        """A unit vector outside the first rows."""
        rest = self._split(vector / vector.norm(), n)[0]
        return rest / rest.norm()

    def _restart(self) -> None:
        """Keep the best vectors and the newest row."""
        n, kept = self._n, self.ritz(self._keep)
        every = torch.linalg.eigvalsh(self._symmetric())
        self._left_behind += every[: n - self._keep].tolist()
        mixing = kept.mixing.mT.to(self._rows.device)
        for columns in range(0, self._rows.shape[1], _BLOCK):
            block = self._rows[:, columns : columns + _BLOCK]
            block[: self._keep] = mixing @ block[:n]
        self._rows[self._keep] = self._rows[n]
        last = self._images[n, :n] @ kept.mixing
        self._images.zero_()
        self._images[: self._keep, : self._keep] = kept.values.diag()
        self._images[self._keep, : self._keep] = last
        self._n = self._keep
