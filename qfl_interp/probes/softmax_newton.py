"""Many small softmax regressions at once: Newton steps by preconditioned conjugate gradients, in float64.

Every problem minimises `c * sum_i (logsumexp(logit_i) - logit_i[y_i]) + ||W||^2 / 2` with `logit = z @ (W, b)`. Its
Hessian has (class x column)^2 entries and costs as much as a hundred gradients; a step needs it only as products with
vectors, which cost one gradient each. Two preconditioners keep these few: a Kronecker product of a class and a data
matrix, right at the base rate and good while classes overlap, and, where that no longer serves, the Hessian of a
weighted sample of the examples, which is nearly exact when few examples are still in doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.probes.design import Design, Rows, line_search, penalty_gradient
from qfl_interp.probes.preconditioners import (
    Precondition,
    Problem,
    class_curvature,
    curved,
    product_preconditioner,
    sample_preconditioner,
)

# The objective is certified to lie within this fraction of its minimum when a problem counts as converged. The
# bound is loose (it uses the penalty's curvature alone), so that the true gap is a hundredth of it or less.
RELATIVE_GAP = 1e-9
# A Newton direction is solved for until the residual has fallen to this fraction, or further near the minimum.
_FORCING = 0.2
_FORCING_MIN = 1e-3
# Conjugate gradient steps of one Newton step: at most, and above which a preconditioner is given up or renewed.
_INNER_MAX = 60
_INNER_PRODUCT_MAX = 25
_INNER_SAMPLE_MAX = 12
# The sample's Hessian is used up to this many classes x columns: 32 MiB.
_SAMPLE_COLUMNS_MAX = 2048


class SoftmaxSolution(NamedTuple):
    """What `solve_softmax` found, one entry a problem.

    `coef` are weights, then the intercept, in the columns of `z`; 0 for absent classes, the start where not wanted.
    `converged` certifies that the objective lies within a fraction `RELATIVE_GAP` of its minimum.
    """

    coef: Float[Tensor, "site output class column"]
    converged: Bool[Tensor, "site output"]
    n_iter: Int[Tensor, "site output"]


@dataclass
class _Rows(Rows):
    """Running problems with their probabilities, and how the last step was found."""

    target: Int[Tensor, "row 1 example"]
    kept: Bool[Tensor, "row example"]
    present: Bool[Tensor, "row class"]
    c: Float[Tensor, " row"]
    logit: Float[Tensor, "row class example"]
    prob: Float[Tensor, "row class example"]
    n_inner: Int[Tensor, " row"]
    sampled: Bool[Tensor, " row"]


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, " row"]:
    """Inner product over classes and columns."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def _logits(design: Design, coef: Tensor, site: Tensor) -> Float[Tensor, "row class example"]:
    """`z @ coef` of every row and class."""
    found = design.logits(coef.flatten(0, 1), site.repeat_interleave(coef.shape[1]))
    return found.view(*coef.shape[:2], design.z.shape[1])


def _pull_back(design: Design, residual: Tensor, site: Tensor) -> Float[Tensor, "row class column"]:
    """`z.T @ residual` of every row and class."""
    found = design.pull_back(residual.flatten(0, 1), site.repeat_interleave(residual.shape[1]))
    return found.view(*residual.shape[:2], design.z.shape[2])


class _Preconditioners:
    """One preconditioner a row: renewed products first, then samples that are kept while they serve."""

    def __init__(self) -> None:
        self._each: dict[int, Precondition] = {}

    def renew(self, design: Design, rows: _Rows) -> None:
        """Bring every row's up to date, by how many inner steps the last Newton step took."""
        small = rows.coef[0].numel() <= _SAMPLE_COLUMNS_MAX
        for row, index in enumerate(rows.index.tolist()):
            n_inner, sampled = int(rows.n_inner[row]), bool(rows.sampled[row])
            if sampled and n_inner <= _INNER_SAMPLE_MAX:
                continue
            problem = Problem(design, int(rows.site[row]), rows.prob[row], rows.kept[row])
            if small and (sampled or n_inner > _INNER_PRODUCT_MAX):
                self._each[index] = sample_preconditioner(problem, float(rows.c[row]))
                rows.sampled[row] = True
            else:
                self._each[index] = product_preconditioner(problem, float(rows.c[row]))

    def apply(self, residual: Tensor, index: list[int], present: Tensor) -> Float[Tensor, "row class column"]:
        """The preconditioned residuals of the problems `index`, 0 for absent classes."""
        found = [self._each[i](r) for i, r in zip(index, residual, strict=True)]
        return torch.stack(found) * present[..., None]


def _newton_directions(
    design: Design, rows: _Rows, gradient: Tensor, goal: Tensor, preconditioners: _Preconditioners
) -> tuple[Float[Tensor, "row class column"], Float[Tensor, "row class example"]]:
    """Approximate Newton directions and the change of the logits along them, by conjugate gradients.

    A row stops when the preconditioned residual has fallen enough, or when the residual alone would pass `goal`.
    """
    direction, change = torch.zeros_like(gradient), torch.zeros_like(rows.logit)
    site, prob, present, c, index = rows.site, rows.prob, rows.present, rows.c, rows.index.tolist()
    found, moved = torch.zeros_like(gradient), torch.zeros_like(change)
    residual = -gradient
    search = preconditioners.apply(residual, index, present)
    energy = _dot(residual, search)
    forcing = torch.clamp(energy / rows.decrement, _FORCING_MIN, _FORCING)
    rows.decrement, enough = energy, forcing.square() * energy
    alive = torch.arange(len(index), device=gradient.device)
    for inner in range(1, _INNER_MAX + 1):
        along = _logits(design, search, site)
        product = c[:, None, None] * _pull_back(design, curved(prob, along), site) + penalty_gradient(search)
        step = (energy / _dot(search, product))[:, None, None]
        found.addcmul_(step, search)
        moved.addcmul_(step, along)
        residual = residual - step * product
        scaled = preconditioners.apply(residual, index, present)
        left = _dot(residual, scaled)
        done = (left <= enough) | (_dot(residual, residual) <= goal / 4) | (inner == _INNER_MAX)
        search = scaled + (left / energy)[:, None, None] * search
        energy = left
        if done.any():
            rows.n_inner[alive[done]] = inner
            direction[alive[done]], change[alive[done]] = found[done], moved[done]
            if done.all():
                break
            index = [i for i, stop in zip(index, done.tolist(), strict=True) if not stop]
            running = (alive, site, prob, present, c, found, moved, residual, search, energy, enough, goal)
            alive, site, prob, present, c, found, moved, residual, search, energy, enough, goal = (
                value[~done] for value in running
            )
    return direction, change


def _take_step(rows: _Rows, direction: Tensor, change: Tensor) -> None:
    """Move every row along its direction, to where the slope has nearly vanished."""
    linear, quadratic = (_dot(direction, penalty_gradient(value)) for value in (rows.coef, direction))
    wanted = change.gather(1, rows.target)[:, 0].sum(-1)  # the change of a masked example is 0
    decrement = rows.c * (wanted - _dot(rows.prob, change)) - linear

    def slope(which: slice | Tensor, at: Tensor) -> Tensor:
        moved = change[which]
        prob = torch.softmax(torch.addcmul(rows.logit[which], at[:, None, None], moved), 1)
        rows.prob[which] = prob
        return rows.c[which] * (_dot(prob, moved) - wanted[which]) + linear[which] + at * quadratic[which]

    def curvature(which: Tensor) -> Tensor:
        moved = change[which]
        return rows.c[which] * _dot(curved(rows.prob[which], moved), moved) + quadratic[which]

    step = line_search(slope, curvature, decrement)[:, None, None]
    rows.coef = rows.coef + step * direction
    rows.logit.addcmul_(step, change)


def _certified(design: Design, rows: _Rows, gradient: Tensor, goal: Tensor) -> Bool[Tensor, " row"]:
    """Whether twice the objective's excess over its minimum cannot pass `goal`.

    With the intercepts at their best the objective curves at least like the penalty, so that the excess is at most
    half the squared gradient of the weights. What is left of the intercepts' own gradient is eliminated by a Newton
    step of theirs, which changes the gradient of the weights.
    """
    near = gradient[..., :-1].flatten(1).square().sum(-1) <= goal
    if not near.any():
        return near
    prob, c = rows.prob[near], rows.c[near][:, None, None]
    bias = gradient[near][..., -1:]
    shift = torch.linalg.pinv(c * class_curvature(prob, rows.kept[near]), hermitian=True) @ bias
    rest = gradient[near] - c * _pull_back(design, curved(prob, shift.expand_as(prob)), rows.site[near])
    bound = _dot(shift, bias) + rest[..., :-1].flatten(1).square().sum(-1)
    near[near.clone()] = bound <= goal[near]
    return near


def _start(
    design: Design, target: Tensor, kept: Tensor, present: Tensor, start: Tensor, wanted: Tensor, c: Tensor
) -> _Rows:
    """Rows at the better of `start` and the base rate."""
    index = wanted.flatten().nonzero()[:, 0]
    site = index // wanted.shape[1]
    target, present = target.flatten(0, 1)[index][:, None], present.flatten(0, 1)[index]
    kept, c = kept[site], c.flatten()[index]
    coef = start.flatten(0, 1)[index] * present[..., None]
    logit = _logits(design, coef, site).masked_fill_(~present[..., None], -torch.inf)
    counts = torch.zeros_like(present, dtype=coef.dtype).scatter_add_(1, target[:, 0], kept.to(coef.dtype))
    n_kept = counts.sum(1)
    loss = torch.where(kept, logit.logsumexp(1) - logit.gather(1, target)[:, 0], 0).sum(1)
    objective = c * loss + _dot(coef, penalty_gradient(coef)) / 2
    cold = ~(objective < c * n_kept * torch.special.entr(counts / n_kept[:, None]).sum(1))
    coef[cold] = 0
    coef[cold, :, -1] = counts[cold].log().masked_fill(~present[cold], 0)
    coef -= present[..., None] * (coef.sum(1, keepdim=True) / present.sum(1)[:, None, None])
    logit = _logits(design, coef, site).masked_fill_(~present[..., None], -torch.inf)
    blank = torch.zeros_like(index)
    prob = torch.softmax(logit, 1)
    return _Rows(index, site, coef, torch.zeros_like(n_kept), target, kept, present, c, logit, prob, blank, blank > 0)


def solve_softmax(
    z: Float[Tensor, "site example column"],
    target: Int[Tensor, "site output example"],
    kept: Bool[Tensor, "site example"],
    present: Bool[Tensor, "site output class"],
    start: Float[Tensor, "site output class column"],
    wanted: Bool[Tensor, "site output"],
    *,
    c: Float[Tensor, "site output"],
    max_iter: int,
) -> SoftmaxSolution:
    """Minimise every wanted problem's objective.

    `z` is centred data in float64 with a last column of ones for the intercept; a masked example is a row of zeros, of
    any class. Classes that are not present among the kept examples have probability 0, and at least two must be in a
    wanted problem. `start` is used where it beats the base rate.
    """
    design, preconditioners = Design(z), _Preconditioners()
    rows = _start(design, target, kept, present, start, wanted, c)
    coef = start.flatten(0, 1).clone()
    converged = torch.zeros_like(wanted).flatten()
    n_iter = torch.zeros_like(converged, dtype=torch.int64)
    for iteration in range(max_iter + 1):
        # -log(p) >= 1 - p, so this bounds the objective from below
        missed = ((1 - rows.prob.gather(1, rows.target)[:, 0]) * rows.kept).sum(1)
        goal = 2 * RELATIVE_GAP * (rows.c * missed + _dot(rows.coef, penalty_gradient(rows.coef)) / 2)
        excess = rows.prob.scatter_add(1, rows.target, torch.full_like(rows.prob[:, :1], -1))
        gradient = rows.c[:, None, None] * _pull_back(design, excess, rows.site) + penalty_gradient(rows.coef)
        del excess
        done = _certified(design, rows, gradient, goal)
        n_iter[rows.index], converged[rows.index] = iteration, done
        stop = done | (iteration == max_iter)
        if stop.any():
            coef[rows.index[stop]] = rows.coef[stop]
            rows.keep(~stop)
            gradient, goal = gradient[~stop], goal[~stop]
        if not len(rows.index):
            break
        preconditioners.renew(design, rows)
        direction, change = _newton_directions(design, rows, gradient, goal, preconditioners)
        _take_step(rows, direction, change)
    # At the optimum the weights sum to 0 over the classes; so do the intercepts, which an equal shift leaves as good.
    coef, present = coef.view_as(start), present[..., None]
    coef = (coef - coef.sum(2, keepdim=True) / present.sum(2, keepdim=True).clamp_min(1)) * present
    return SoftmaxSolution(coef, converged.view(wanted.shape), n_iter.view(wanted.shape))
