"""What the Newton solvers share: products with the data, running problems, the scaled Cholesky factor, line search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# A step is long enough when the slope along it has fallen to this fraction of what it was.
_SLOPE_FRACTION = 0.25
_LINE_SEARCH_EVALUATIONS = 30
# Added to the unit diagonal of the scaled Hessian when rounding makes it indefinite.
JITTERS = (0.0, 1e-13, 1e-11, 1e-9, 1e-6)


class Design:
    """The data matrices, multiplied site by site for the rows that use them."""

    def __init__(self, z: Float[Tensor, "site example column"]) -> None:
        self.z = z
        self._buffer = torch.empty_like(z[0])

    def _spans(self, site: Int[Tensor, " row"]) -> list[tuple[int, slice]]:
        """The slice of rows that reads each site."""
        names, counts = torch.unique_consecutive(site, return_counts=True)
        ends = counts.cumsum(0).tolist()
        return [(s, slice(e - n, e)) for s, n, e in zip(names.tolist(), counts.tolist(), ends, strict=True)]

    def logits(self, coef: Float[Tensor, "row column"], site: Int[Tensor, " row"]) -> Float[Tensor, "row example"]:
        """`z @ coef` of every row."""
        out = coef.new_empty(len(coef), self.z.shape[1])
        for s, rows in self._spans(site):
            torch.mm(coef[rows], self.z[s].mT, out=out[rows])
        return out

    def pull_back(
        self, residual: Float[Tensor, "row example"], site: Int[Tensor, " row"]
    ) -> Float[Tensor, "row column"]:
        """`z.T @ residual` of every row."""
        out = residual.new_empty(len(residual), self.z.shape[2])
        for s, rows in self._spans(site):
            torch.mm(residual[rows], self.z[s], out=out[rows])
        return out

    def gram(self, site: int, weight: Float[Tensor, " example"] | None = None) -> Float[Tensor, "column column"]:
        """`z.T @ diag(weight) @ z` of one site."""
        z = self.z[site]
        return z.mT @ (z if weight is None else torch.mul(z, weight[:, None], out=self._buffer))


@dataclass
class Rows:
    """The problems still running, one a row, sorted by site."""

    index: Int[Tensor, " row"]
    site: Int[Tensor, " row"]
    coef: Float[Tensor, "row *class column"]
    decrement: Float[Tensor, " row"]

    def keep(self, rows: Bool[Tensor, " row"]) -> None:
        """Drop all other rows."""
        for name, value in vars(self).items():
            setattr(self, name, value[rows])


def penalty_gradient(coef: Float[Tensor, "*row column"]) -> Float[Tensor, "*row column"]:
    """The penalty's gradient: the weights themselves, 0 for the intercept."""
    gradient = coef.clone()
    gradient[..., -1] = 0
    return gradient


def factorise(
    hessian: Float[Tensor, "row column column"],
) -> tuple[Float[Tensor, "row column column"], Float[Tensor, "row column"]]:
    """Cholesky factor of the Hessian scaled to a unit diagonal, and that scale; overwrites `hessian`."""
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    diagonal[:, :-1] += 1  # the penalty
    scale = diagonal.clamp_min(torch.finfo(hessian.dtype).tiny).rsqrt()
    hessian *= scale[:, :, None] * scale[:, None, :]
    for jitter in JITTERS:
        diagonal += jitter
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed.any():
            return factor, scale
    raise AssertionError("a positive semi-definite matrix with unit diagonal plus 1e-6 has a Cholesky factor")


def line_search(
    slope: Callable[[slice | Tensor, Float[Tensor, " row"]], Float[Tensor, " row"]],
    curvature: Callable[[Int[Tensor, " row"]], Float[Tensor, " row"]],
    decrement: Float[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """Step lengths at which the slope of a convex objective along each row's direction has nearly vanished.

    A bracketed Newton iteration on the slope, from step 1.

    Args:
        slope: The slopes of these rows at these steps. The last call for a row is at the step that is returned, so
            that it may store what belongs to the step.
        curvature: The second derivatives of these rows at the steps `slope` was last asked for.
        decrement: Minus the slopes at step 0.
    """
    step = torch.ones_like(decrement)
    low, high = torch.zeros_like(step), torch.full_like(step, torch.inf)
    every = torch.arange(len(step), device=step.device)
    open_rows: slice | Tensor = slice(None)  # a view: the first evaluation nearly always suffices
    for left in reversed(range(_LINE_SEARCH_EVALUATIONS)):
        at = step[open_rows]
        value = slope(open_rows, at)
        missed = value.abs() > _SLOPE_FRACTION * decrement[open_rows]
        if left == 0 or not missed.any():
            break
        open_rows = every[open_rows][missed]
        at, value = at[missed], value[missed]
        below = torch.where(value < 0, at, low[open_rows])
        above = torch.where(value < 0, high[open_rows], at)
        newton = torch.minimum(at - value / curvature(open_rows), 4 * at)
        middle = torch.where(above.isinf(), 2 * at, (below + above) / 2)
        step[open_rows] = torch.where((newton > below) & (newton < above), newton, middle)
        low[open_rows], high[open_rows] = below, above
    return step
