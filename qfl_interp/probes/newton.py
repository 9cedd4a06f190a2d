"""Many small logistic regressions at once: Newton steps with line search, in float64, on shared data.

Every problem minimises `c * sum_i log(1 + exp(-sign_i * logit_i)) + ||w||^2 / 2` with `logit = z @ (w, b)`.
A *site* is one data matrix; several problems (outputs) read the same one. A problem keeps the Cholesky factor
of an old Hessian as long as its steps contract (the chord, or Shamanskii's, method), so that random labels
hardly need a Hessian of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.probes.design import Design, Rows, factorise, line_search, penalty_gradient

# The objective lies within this fraction of its minimum when a problem counts as converged. The test loss is
# off by the square root: 1e-8 leaves up to 5e-4 nats on nearly separable problems, 1e-11 about 1e-5 for 10 %
# more time.
RELATIVE_GAP = 1e-11
# A Hessian is renewed unless the last step shrank the squared Newton decrement to this fraction; 0.001 to 0.1
# cost about the same.
_CONTRACTION = 0.01


class Solution(NamedTuple):
    """What `solve` found, one entry a problem.

    `coef` are weights, then the intercept, in the columns of `z`; the start where a problem was not asked for.
    `wrong_logit` is `-sign * logit`, 0 for masked examples. `converged` certifies that the objective lies within a
    fraction `gap` of its minimum.
    """

    coef: Float[Tensor, "site output column"]
    wrong_logit: Float[Tensor, "site output example"]
    converged: Bool[Tensor, "site output"]
    n_iter: Int[Tensor, "site output"]


@dataclass
class _Rows(Rows):
    """Running problems with the old Hessian's factor."""

    sign: Float[Tensor, "row example"]
    wrong_logit: Float[Tensor, "row example"]
    wrong_prob: Float[Tensor, "row example"]
    factor: Float[Tensor, "row column column"]
    scale: Float[Tensor, "row column"]
    drift: Float[Tensor, " row"]


def _refactorise(design: Design, rows: _Rows, which: Bool[Tensor, " row"], c: float) -> None:
    """Give these rows the factor of the Hessian at their current point."""
    picked = which.nonzero()[:, 0]
    hessian = design.z.new_empty(len(picked), *rows.factor.shape[1:])
    for k, (row, site) in enumerate(zip(picked.tolist(), rows.site[picked].tolist(), strict=True)):
        prob = rows.wrong_prob[row]
        hessian[k] = design.gram(site, c * prob * (1 - prob))
    rows.factor[picked], rows.scale[picked] = factorise(hessian)
    rows.drift[picked] = 0


def _solve_newton(rows: _Rows, gradient: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """The Newton direction with the factor each row holds; stores the squared decrement."""
    direction = torch.cholesky_solve((rows.scale * gradient)[:, :, None], rows.factor)[:, :, 0]
    direction = -rows.scale * direction
    rows.decrement = -torch.linalg.vecdot(gradient, direction)
    return direction


def _next_direction(
    design: Design, rows: _Rows, c: float, gap: float
) -> tuple[Float[Tensor, "row column"], Bool[Tensor, " row"]]:
    """Newton directions, with a new Hessian where the old one no longer serves; and which rows are done."""
    gradient = penalty_gradient(rows.coef) - design.pull_back(c * rows.wrong_prob * rows.sign, rows.site)
    # log(1 + e^x) >= sigmoid(x), so this bounds the objective from below
    objective = c * torch.linalg.vecdot(rows.wrong_prob, rows.sign.abs())
    objective += torch.linalg.vecdot(rows.coef, penalty_gradient(rows.coef)) / 2
    goal = gap * objective
    last = rows.decrement
    direction = _solve_newton(rows, gradient)
    near = rows.decrement <= goal
    stale = torch.where(near, rows.decrement * rows.drift.exp() > goal, rows.decrement > _CONTRACTION * last)
    if stale.any():
        _refactorise(design, rows, stale, c)
        direction = _solve_newton(rows, gradient)
    return direction, rows.decrement * rows.drift.exp() <= goal


def _line_search(
    rows: _Rows,
    change: Float[Tensor, "row example"],
    direction: Float[Tensor, "row column"],
    c: float,
) -> Float[Tensor, " row"]:
    """Step lengths at which the slope has nearly vanished; stores the wrong-class probabilities there.

    It touches the logits only, not the data, so that it costs little beside the step itself.
    """
    linear = torch.linalg.vecdot(direction, penalty_gradient(rows.coef))
    quadratic = torch.linalg.vecdot(direction, penalty_gradient(direction))

    def slope(which: slice | Tensor, at: Tensor) -> Tensor:
        moved = change[which]
        prob = torch.addcmul(rows.wrong_logit[which], at[:, None], moved).sigmoid_()
        rows.wrong_prob[which] = prob
        return c * torch.linalg.vecdot(prob, moved) + linear[which] + at * quadratic[which]

    def curvature(which: Tensor) -> Tensor:
        prob, moved = rows.wrong_prob[which], change[which]
        return c * torch.linalg.vecdot(prob * (1 - prob), moved * moved) + quadratic[which]

    return line_search(slope, curvature, rows.decrement)


def _start(
    design: Design,
    sign: Float[Tensor, "site output example"],
    start: Float[Tensor, "site output column"],
    wanted: Bool[Tensor, "site output"],
    c: float,
) -> _Rows:
    """Rows at the better of `start` and the base rate, with a Hessian there.

    At the base rate all examples weigh alike, so that the outputs of a site share one Gram matrix.
    """
    n_outputs, n_columns = start.shape[1:]
    index = wanted.flatten().nonzero()[:, 0]
    site = index // n_outputs
    sign, coef = sign.flatten(0, 1)[index], start.flatten(0, 1)[index]
    wrong_logit = design.logits(coef, site).mul_(sign).neg_()
    n_kept = sign.abs().sum(1)
    rate = (sign > 0).sum(1) / n_kept
    # the entropy bounds the base rate's objective; softplus(0) of a masked example is no loss
    entropy = torch.special.entr(rate) + torch.special.entr(1 - rate)
    objective = (torch.nn.functional.softplus(wrong_logit) * sign.abs()).sum(1) * c
    objective += torch.linalg.vecdot(coef, penalty_gradient(coef)) / 2
    cold = ~(objective < c * n_kept * entropy)
    coef[cold] = 0
    coef[cold, -1] = torch.logit(rate[cold])
    wrong_logit[cold] = -sign[cold] * coef[cold, -1:]
    zeros = torch.zeros_like(rate)
    rows = _Rows(
        index=index,
        site=site,
        sign=sign,
        coef=coef,
        wrong_logit=wrong_logit,
        wrong_prob=wrong_logit.sigmoid(),
        factor=coef.new_zeros(len(index), n_columns, n_columns),
        scale=torch.ones_like(coef),
        drift=zeros,
        decrement=torch.full_like(zeros, torch.inf),
    )
    if cold.any():
        sites, which = site[cold].unique_consecutive(return_inverse=True)
        gram = torch.stack([design.gram(s) for s in sites.tolist()])
        curvature = c * rate[cold] * (1 - rate[cold])
        rows.factor[cold], rows.scale[cold] = factorise(gram[which] * curvature[:, None, None])
    if not cold.all():
        _refactorise(design, rows, ~cold, c)
    return rows


def solve(
    z: Float[Tensor, "site example column"],
    sign: Float[Tensor, "site output example"],
    start: Float[Tensor, "site output column"],
    wanted: Bool[Tensor, "site output"],
    *,
    c: float,
    max_iter: int,
    gap: float = RELATIVE_GAP,
) -> Solution:
    """Minimise every wanted problem's objective.

    A problem stops by its gap, not by its step. Let `lambda^2 = g' M^-1 g` be the squared Newton decrement
    with a Hessian M from a point whose logits differ from the present ones by at most `drift`. Because
    `|sigma''| <= sigma'`, the present Hessian is at least `exp(-drift) M`, and the objective exceeds its
    minimum by about `exp(drift) lambda^2 / 2` at most. Twice that must not pass `gap` times a lower
    bound of the objective. (The one caveat: a Hessian so singular that rounding calls for a jitter, see
    `design.JITTERS`.)

    `z` is centred data in float64 with a last column of ones for the intercept, and `sign` +1 or -1 for the two
    classes; a masked example is a row of zeros and has sign 0. `start` is used where it beats the base rate. Both
    classes must occur in a wanted problem, which has converged at the relative gap `gap`, or stops after `max_iter`
    steps.
    """
    design = Design(z)
    rows = _start(design, sign, start, wanted, c)
    coef = start.flatten(0, 1).clone()
    wrong_logit = torch.zeros_like(sign).flatten(0, 1)
    converged = torch.zeros_like(wanted).flatten()
    n_iter = torch.zeros_like(converged, dtype=torch.int64)
    for iteration in range(max_iter + 1):
        direction, done = _next_direction(design, rows, c, gap)
        n_iter[rows.index] = iteration
        converged[rows.index] = done
        stop = done | (iteration == max_iter)
        if stop.any():
            coef[rows.index[stop]] = rows.coef[stop]
            wrong_logit[rows.index[stop]] = rows.wrong_logit[stop]
            rows.keep(~stop)
            direction = direction[~stop]
        if not len(rows.index):
            break
        change = design.logits(direction, rows.site).mul_(rows.sign).neg_()
        step = _line_search(rows, change, direction, c)
        rows.coef = rows.coef + step[:, None] * direction
        rows.wrong_logit.addcmul_(step[:, None], change)
        rows.drift = rows.drift + step * torch.linalg.vector_norm(change, torch.inf, dim=1)
    shape = wanted.shape
    return Solution(coef.view(*shape, -1), wrong_logit.view(*shape, -1), converged.view(shape), n_iter.view(shape))
