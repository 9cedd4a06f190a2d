"""Where on the budget axis a task is learned: the fall of the loss across runs of growing budgets, over seeds.

Budgets of a sweep are far apart (half a decade, say), so the bracket of an edge is one grid step: that is the
resolution, and no interval over seeds can be finer in truth. What resampling adds is whether the edge stays at the
same grid point with other seeds.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from qfl_interp.emergence.transition import Transition, find_transition
from qfl_interp.stats import Interval, t_interval

# A plateau of a sweep holds at least this many budgets.
MIN_PLATEAU_BUDGETS = 2


@dataclass(frozen=True, repr=False)
class AcrossTransition:
    """The transition of the loss across budgets.

    Attributes:
        transition: Of the curve of means over seeds; its brackets are neighbouring budgets of the grid.
        start: Where the loss leaves the plateau, in FLOPs, with the interval over seeds; None where none was found in
            the mean curve.
        end: The same of where it reaches the lower level.
        found_share: Share of resamples, by their probability, that have a transition; the intervals rest on these only.
        n_seeds: Seeds resampled.
        n_resamples: Different resamples looked at.
        step_decades: The widest grid step beside an edge, in decades: the resolution of `start` and `end`; NaN where
            none was found.
    """

    transition: Transition
    start: Interval | None
    end: Interval | None
    found_share: float
    n_seeds: int
    n_resamples: int
    step_decades: float

    def __repr__(self) -> str:
        if self.start is None or self.end is None:
            return f"AcrossTransition(none: {self.transition.reason}; in {self.found_share:.0%} of resamples)"
        edges = ", ".join(f"{e.estimate:.3g} [{e.low:.3g}, {e.high:.3g}]" for e in (self.start, self.end))
        return (
            f"AcrossTransition({edges} FLOPs, grid step {self.step_decades:.2g} decades, "
            f"found in {self.found_share:.0%} of resamples, seeds={self.n_seeds})"
        )


@dataclass(frozen=True, repr=False)
class Crossing:
    """The budget at which a growing score passes a level.

    Attributes:
        level: The level.
        budgets: The interpolated budget of each seed, in FLOPs; NaN where its score does not pass.
        mean: Geometric mean over the seeds that pass, with Student's t interval of log budget; None for fewer than two.
    """

    level: float
    budgets: Float[np.ndarray, " seed"]
    mean: Interval | None

    def __repr__(self) -> str:
        passed = f"{int(np.isfinite(self.budgets).sum())} of {self.budgets.size} seeds"
        return f"Crossing({self.level:g} passed by {passed}, {self.mean})"


def across_transition(
    budget: Shaped[np.ndarray, " budget"],
    loss: Shaped[np.ndarray, "budget seed"],
    rng: np.random.Generator,
    *,
    chance_loss: float | None,
    n_resamples: int = 500,
    level: float = 0.95,
) -> AcrossTransition:
    """The fall of the loss across budgets, by `find_transition` on the mean over seeds, and its spread over seeds.

    Seeds (columns) are resampled whole, so that a seed's runs at all budgets stay together. Where there are at most
    `n_resamples` different resamples they are all taken, weighted by their multinomial probability; otherwise
    `n_resamples` are drawn. The ends of the intervals are percentiles of the edges found. With 3 seeds there are 10
    different resamples and the interval is about the range of the seeds: read it as that.

    Args:
        budget: Training FLOPs, increasing.
        loss: Final validation losses in nats; NaN where a run is missing: the mean is over those there, and a
            resample without any at a budget takes all that are.
        rng: Used where resamples are drawn.
        chance_loss: Loss of a model that knows only which tokens occur where, over the same scored tokens; see
            `find_transition`.
        n_resamples: The most resamples looked at.
        level: Nominal coverage.

    Raises:
        ValueError: No seed, a budget without any loss, or what `find_transition` refuses (fewer than 3 budgets, budgets
            that do not increase).
    """
    losses = np.asarray(loss, dtype=np.float64)
    flops = np.asarray(budget, dtype=np.float64)
    there = ~np.isnan(losses)
    if losses.shape[1] == 0 or not there.any(axis=1).all():
        empty = [f"{c:.3g}" for c in flops[~there.any(axis=1)]]
        raise ValueError(f"loss must hold a finished run at each budget, got none at {empty}. Leave these budgets out.")
    n_seeds = losses.shape[1]

    def of_mean(count: Int[np.ndarray, " seed"]) -> Transition:
        """The transition with each seed taken `count` times; a budget where none of them ran takes the mean of all."""
        count = np.where(there @ count > 0, count[:, None], 1).T * there
        mean = np.sum(np.where(there, losses, 0.0) * count, axis=1) / count.sum(axis=1)
        return find_transition(flops, mean, chance_loss=chance_loss, min_plateau_points=MIN_PLATEAU_BUDGETS)

    whole = of_mean(np.ones(n_seeds, dtype=np.int64))
    found = [(of_mean(count), weight) for count, weight in _resamples(n_seeds, n_resamples, rng)]
    edges = np.array([(t.start_flops, t.end_flops, weight) for t, weight in found if t.found]).reshape(-1, 3)
    share = float(edges[:, 2].sum() / sum(weight for _, weight in found))
    if not whole.found:
        return AcrossTransition(whole, None, None, share, n_seeds, len(found), math.nan)

    def interval(estimate: float, column: int) -> Interval:
        if len(edges) == 0:
            return Interval(estimate, math.nan, math.nan, n_seeds, level, "bootstrap over seeds")
        low, high = (_quantile(edges[:, column], edges[:, 2], q) for q in ((1 - level) / 2, (1 + level) / 2))
        return Interval(estimate, low, high, n_seeds, level, "bootstrap over seeds")

    brackets = (whole.start_bracket, whole.end_bracket)
    step = max(math.log10(bracket.high / bracket.low) for bracket in brackets)
    start, end = interval(whole.start_flops, 0), interval(whole.end_flops, 1)
    return AcrossTransition(whole, start, end, share, n_seeds, len(found), step)


def crossing(
    budget: Shaped[np.ndarray, " budget"], score: Shaped[np.ndarray, "budget seed"], *, level: float = 0.5
) -> Crossing:
    """Where a score (exact match) first rises past a level, interpolated linearly in log budget, for each seed.

    A seed that is at the level at its first budget already, or never, does not pass: NaN. The mean speaks of seeds that
    pass only.

    Args:
        budget: Training FLOPs, increasing.
        score: NaN where a run is missing; the neighbours are then joined.
        level: In the score's unit.

    Raises:
        ValueError: The budgets are not positive and increasing.
    """
    flops, scores = np.asarray(budget, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if np.any(flops <= 0) or np.any(np.diff(flops) <= 0):
        raise ValueError("budget must be positive and increase along the rows of score. Sort by budget.")
    x = np.log(flops)
    logs = np.array([_first_crossing(x, column, level) for column in scores.T])
    passed = logs[np.isfinite(logs)]
    mean = None
    if passed.size > 1:
        of_log = t_interval(passed)
        estimate, low, high = (math.exp(value) for value in (of_log.estimate, of_log.low, of_log.high))
        mean = Interval(estimate, low, high, passed.size, of_log.level, "Student t of log budget")
    return Crossing(level, np.exp(logs), mean)


def _first_crossing(x: Float[np.ndarray, " budget"], y: Float[np.ndarray, " budget"], level: float) -> float:
    """The first x at which y, joined by straight lines, rises to the level; NaN if it never does."""
    there = ~np.isnan(y)
    x, y = x[there], y[there]
    rises = np.flatnonzero((y[:-1] < level) & (y[1:] >= level))
    if rises.size == 0:
        return math.nan
    i = int(rises[0])
    return float(x[i] + (level - y[i]) / (y[i + 1] - y[i]) * (x[i + 1] - x[i]))


def _resamples(n: int, most: int, rng: np.random.Generator) -> Iterator[tuple[Int[np.ndarray, " seed"], float]]:
    """How often each of n seeds is taken, and the weight of that: all multisets, or `most` drawn ones."""
    if math.comb(2 * n - 1, n) <= most:
        for chosen in itertools.combinations_with_replacement(range(n), n):
            count = np.bincount(chosen, minlength=n)
            ways = math.factorial(n) / math.prod(math.factorial(int(c)) for c in count)
            yield count, ways / n**n
        return
    drawn = Counter(tuple(row) for row in rng.multinomial(n, np.full(n, 1 / n), size=most).tolist())
    for row, times in drawn.items():
        yield np.array(row), times / most


def _quantile(values: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"], q: float) -> float:
    """The least value below or at which at least a share q of the weight lies."""
    order = np.argsort(values)
    below = np.cumsum(weight[order]) / weight.sum()
    # The cumulative sum rounds.
    return float(values[order][min(int(np.searchsorted(below, q - 1e-12)), values.size - 1)])
