"""The transition of a loss curve: the stretch of compute in which the loss leaves its plateau and falls.

The method, as one would write it in a paper. Let x = log10 of the training FLOPs of each validation (step 0
has no logarithm and is left out), y(x) the validation loss after a running median of three, which removes
single spikes and leaves monotone curves as they are, and m(x) the least-squares non-increasing (isotonic) fit
of y.

1. If a chance loss is given, points before y first comes within 10 % of it are left out before m is fitted:
   they are the initial fall, in which the model learns only which tokens occur. What follows stays, also where
   y rises above chance again, as it does while a model memorises its training set.
2. For a fall from m_j to m_k (j < k) of depth d, a *flat stretch* is one of at least `MIN_PLATEAU_DECADES` =
   0.25 decades of compute (a factor of 1.8) over which m falls by at most `PLATEAU_BAND` = 0.1 d. The fall
   counts if a flat stretch of enough validations ends at j (the plateau) and there is none between j and k
   (it is one fall). The transition is the deepest fall that counts, if it leads at least `MIN_DROP` of the
   chance loss below both the plateau and chance: coming back from above chance is none.
3. The plateau's level p and the level after the fall f are the means of m over the two flat stretches beside
   the fall, weighted by their length in x. The transition ends at the first validation with m <= f + 0.05
   (p - f). It starts at the last one with m >= q - 0.05 (p - f), where q is the plateau's level at its end:
   first q = p, then q the mean of m over the 0.25 decades before the start just found, again until the start
   stays, so that a drifting plateau does not start the fall too early, on whatever grid it was validated.

Depth and flatness are tied together, so that no scale is chosen by hand, and a loss that is convex in log
compute (a power law, a straight line) has no transition by construction: before any of its falls it is
steeper than within. The start is the earliest time that fits the data between two validations; its bracket is
that time and the next, and covers the sampling in time only, not noise or drift. On synthetic curves
validated every 0.5 % of the run (sigmoid or linear falls of 0.25 decades, drift 0.06 nats a decade, noise 1
%) the start was off by -0.02 decades in the median and +0.01 at the latest; sparse sampling and noise of
several percent of the fall move it earlier, by up to 0.3 decades in the worst case seen. A noise of 0.05 nats
can feign a plateau in a power law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

# A flat stretch is at least this long in log10 FLOPs.
MIN_PLATEAU_DECADES = 0.25
# Over a flat stretch the loss falls by at most this share of the fall.
PLATEAU_BAND = 0.1
# The transition runs from this share of the fall to one minus it.
CROSSING = 0.05
# The initial fall ends when the loss is within this factor of chance.
CHANCE_FACTOR = 1.1
# The least depth of a transition, as a fraction of the chance loss (without it, of the largest fitted loss).
MIN_DROP = 0.2


class Bracket(NamedTuple):
    """Two neighbouring validations or checkpoints, in training FLOPs, between which something happened."""

    low: float
    high: float


@dataclass(frozen=True, repr=False)
class Transition:
    """The fall of a loss curve, or why there is none.

    Compute stands for whatever the curve was searched along: where FLOPs are not known, tokens or steps.

    Attributes:
        found: Whether there is one; if not, every number below but `n_points` is NaN.
        reason: What was found, in one sentence; with `found` false, why nothing was.
        start_flops: Training FLOPs of the last validation at which the loss was still within the plateau's
            band.
        end_flops: Of the first validation at which the loss was within the band of the level it fell to.
        start_bracket: `start_flops` and the next validation: the loss left the band between them.
        end_bracket: The validation before `end_flops`, and `end_flops`.
        plateau_start_flops: The first validation of the plateau.
        plateau_loss: Level of the plateau, in the loss's unit.
        final_loss: Level the loss fell to; a later, smaller fall is not in it.
        complete: Whether the level fallen to was held for `MIN_PLATEAU_DECADES`; if not, the run may have
            ended within the transition, and `end_flops` and `final_loss` are those of its last validations.
        n_points: Validations that the search used.
    """

    found: bool
    reason: str
    start_flops: float
    end_flops: float
    start_bracket: Bracket
    end_bracket: Bracket
    plateau_start_flops: float
    plateau_loss: float
    final_loss: float
    complete: bool
    n_points: int

    def with_reason(self, reason: str) -> Transition:
        """The same, with another sentence on it."""
        return replace(self, reason=reason)

    def __repr__(self) -> str:
        if not self.found:
            return f"Transition(none: {self.reason})"
        span = f"{self.start_flops:.3g}..{self.end_flops:.3g} FLOPs"
        tail = "" if self.complete else ", incomplete"
        return f"Transition({span}, loss {self.plateau_loss:.3g} -> {self.final_loss:.3g}{tail})"


def find_transition(
    flops: Shaped[np.ndarray, " step"],
    loss: Shaped[np.ndarray, " _"],
    *,
    chance_loss: float | None,
    min_plateau_points: int = 3,
) -> Transition:
    """The deepest fall of a loss curve that follows a plateau; the module's docstring states the method.

    Args:
        flops: Training FLOPs of each validation, increasing; a leading 0 (step 0) is left out.
        loss: Validation loss.
        chance_loss: Loss, in the same unit, of a model that knows only which tokens occur where: the task's random
            baseline, over the same scored tokens as `loss`. None searches the whole curve; then one that was
            validated from the first updates on can show the warm-up as a plateau at the untrained model's
            loss, and the initial fall as the transition.
        min_plateau_points: Validations the plateau must hold; 2 for a sweep with one point a budget.

    Returns:
        The transition, or one with `found` false and the reason.

    Raises:
        ValueError: The arrays differ in length, hold fewer than 3 points with FLOPs above 0, are not finite,
            or the FLOPs do not increase.
    """
    from sklearn.isotonic import IsotonicRegression  # half a second, and finished tables have their transition

    x, y = _checked(flops, loss)
    kept = np.asarray(flops, dtype=np.float64)[-x.size :]
    smooth = _without_spikes(y)
    if chance_loss is not None:
        trained = smooth <= CHANCE_FACTOR * chance_loss
        if not trained.any():
            reached = f"{CHANCE_FACTOR:g} x chance ({chance_loss:.3g})"
            return no_transition(f"the loss ends at {smooth[-1]:.3g} and never comes within {reached}", 0)
        first = int(trained.argmax())
        x, smooth, kept = x[first:], smooth[first:], kept[first:]
    fit = IsotonicRegression(increasing=False).fit_transform(x, smooth)
    scale = float(fit[0]) if chance_loss is None else chance_loss
    needed = MIN_DROP * scale
    if min(float(fit[0]), scale) - fit[-1] < needed:
        span = f"{fit[0]:.3g} to {fit[-1]:.3g}"
        return no_transition(f"still on the plateau: the loss falls from {span}, by less than {needed:.3g}", x.size)
    fall = _deepest_fall(x, fit, min_plateau_points)
    if fall is None:
        plateau = f"{MIN_PLATEAU_DECADES:g} decades and {min_plateau_points} validations"
        span = f"{fit[0]:.3g} to {fit[-1]:.3g}"
        return no_transition(
            f"the loss falls from the start, from {span}: no plateau of {plateau} comes before", x.size
        )
    depth = min(float(fit[fall.before]), scale) - float(fit[fall.after])
    if depth < needed:
        return no_transition(
            f"the deepest fall after a plateau is {depth:.3g} (below chance), less than {needed:.3g}", x.size
        )
    return _describe(x, fit, kept, fall)


class _Fall(NamedTuple):
    """Indices of a fall: its last plateau point and the first point of the level after it."""

    before: int
    after: int


def _checked(
    flops: Shaped[np.ndarray, " step"], loss: Shaped[np.ndarray, " _"]
) -> tuple[Float[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """log10 FLOPs and loss of the validations after step 0."""
    compute, y = np.asarray(flops, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if compute.size != y.size:
        raise ValueError(f"flops and loss must have one value a validation each, got {compute.size} and {y.size}.")
    for name, values in (("flops", compute), ("loss", y)):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise ValueError(
                f"{name} must be finite, got {values[bad[0]]} at index {bad[0]}. "
                "A diverged run has no transition: cut the curve there."
            )
    if compute.size and (compute[0] < 0 or np.any(np.diff(compute) <= 0)):
        raise ValueError("flops must be at least 0 and increase from each validation to the next. Sort by step.")
    positive = compute > 0
    if positive.sum() < 3:
        raise ValueError(
            f"a transition needs at least 3 validations with flops > 0, got {positive.sum()}. Validate more often."
        )
    return np.log10(compute[positive]), y[positive]


def _without_spikes(y: Float[np.ndarray, " kept"]) -> Float[np.ndarray, " kept"]:
    """A running median of three; the ends are kept."""
    smooth = y.copy()
    smooth[1:-1] = np.median([y[:-2], y[1:-1], y[2:]], axis=0)
    return smooth


def _stretch(
    x: Float[np.ndarray, " kept"], fit: Float[np.ndarray, " kept"], start: int, stop: int, drop: float
) -> float:
    """The longest stretch, in decades, within [start, stop] over which the fit falls by at most `drop`."""
    inside = fit[start : stop + 1]
    last = np.searchsorted(-inside, drop - inside, side="right") - 1
    return float(np.max(x[start + last] - x[start : stop + 1]))


def _deepest_fall(x: Float[np.ndarray, " kept"], fit: Float[np.ndarray, " kept"], min_points: int) -> _Fall | None:
    """The deepest fall that a plateau precedes and that no flat stretch interrupts."""
    best, depth = None, 0.0
    # Within a run of equal values the last one leaves the shortest fall.
    for before in np.flatnonzero(np.diff(fit) < 0):
        # A later end gives a deeper fall, a wider band and longer flat stretches: bisect for the last end
        # that has no flat stretch before it.
        low, high = int(before), fit.size - 1
        while low < high:
            middle = (low + high + 1) // 2
            drop = PLATEAU_BAND * (fit[before] - fit[middle])
            if _stretch(x, fit, int(before), middle, drop) < MIN_PLATEAU_DECADES:
                low = middle
            else:
                high = middle - 1
        fall = _Fall(int(before), int(np.flatnonzero(fit == fit[low])[0]))
        fallen = float(fit[fall.before] - fit[fall.after])
        first = _first_within(fit, fall.before, PLATEAU_BAND * fallen)
        long_enough = x[fall.before] - x[first] >= MIN_PLATEAU_DECADES
        if fallen > depth and long_enough and fall.before - first + 1 >= min_points:
            best, depth = fall, fallen
    return best


def _first_within(fit: Float[np.ndarray, " kept"], index: int, drop: float) -> int:
    """The first point whose fitted loss is at most `drop` above the one at `index`."""
    return int(np.flatnonzero(fit <= fit[index] + drop)[0])


def _level(x: Float[np.ndarray, " kept"], fit: Float[np.ndarray, " kept"]) -> float:
    """The mean of the fit, weighted by length in x (trapezium rule)."""
    return float(fit[0] if fit.size == 1 else np.trapezoid(fit, x) / (x[-1] - x[0]))


def _describe(
    x: Float[np.ndarray, " kept"],
    fit: Float[np.ndarray, " kept"],
    flops: Float[np.ndarray, " kept"],
    fall: _Fall,
) -> Transition:
    """Levels, crossings and brackets of a fall."""
    band = PLATEAU_BAND * float(fit[fall.before] - fit[fall.after])
    first = _first_within(fit, fall.before, band)
    last = int(np.flatnonzero(fit >= fit[fall.after] - band)[-1])
    plateau = _level(x[first : fall.before + 1], fit[first : fall.before + 1])
    final = _level(x[fall.after : last + 1], fit[fall.after : last + 1])
    margin = CROSSING * (plateau - final)
    start = int(np.flatnonzero(fit >= plateau - margin)[-1])
    # A drifting plateau ends lower than its mean: again with its last stretch, until the start stays. A later start
    # has a lower last stretch, so that it only moves on.
    settled = -1
    while start > settled:
        settled = start
        late = max(first, int(np.searchsorted(x, x[start] - MIN_PLATEAU_DECADES)))
        start = max(start, int(np.flatnonzero(fit >= _level(x[late : start + 1], fit[late : start + 1]) - margin)[-1]))
    end = int(np.flatnonzero(fit <= final + margin)[0])
    complete = bool(x[last] - x[end] >= MIN_PLATEAU_DECADES)
    return Transition(
        found=True,
        reason=f"the loss falls from a plateau at {plateau:.3g} to {final:.3g}",
        start_flops=float(flops[start]),
        end_flops=float(flops[end]),
        start_bracket=Bracket(float(flops[start]), float(flops[start + 1])),
        end_bracket=Bracket(float(flops[end - 1]), float(flops[end])),
        plateau_start_flops=float(flops[first]),
        plateau_loss=plateau,
        final_loss=final,
        complete=complete,
        n_points=int(x.size),
    )


def no_transition(reason: str, n_points: int = 0) -> Transition:
    """No transition, and why."""
    nan = math.nan
    gap = Bracket(nan, nan)
    return Transition(False, reason, nan, nan, gap, gap, nan, nan, nan, False, n_points)
