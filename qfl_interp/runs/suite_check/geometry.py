"""Where checkpoints lie beside each other: the statistics that find one that is out of place.

All of them compare distances between checkpoints with each other, so that no spacing of steps and no schedule is
assumed. Of the true order of a training two things hold, whatever the learning rate did:

- **Excess** of a checkpoint b between its neighbours a and c: `(|ab| + |bc|) / |ac|`. A straight path has 1, a
  random walk of equal steps sqrt(2), states of a stationary noise 2. A noise whose size falls from s to nothing behind
  b has `(sqrt(2) s + s) / s = 2.41`, the largest value of noise that does not oscillate. From 3 on (`EXCESS`) b is off
  the path.
- **Order** of neighbours b and c between a and d: the path a, b, c, d against a, c, b, d. The true order is not the
  longer one on average: of exchangeable states (stationary noise) both are equal, of a path with memory it is shorter.
  An exchange on a straight path makes it 5/3 longer, on a random walk 1.28. `ORDER` is 1.12.

Oscillation (full-batch descent at the edge of stability, looked at after every step) breaks both, but does so
everywhere: a value must also stand out from those of the other checkpoints, by `OUTLIER` robust standard deviations
(1.48 times the median distance from the median).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

EXCESS, ORDER, OUTLIER = 3.0, 1.12, 4.0
# Weights of one training that have nothing in common (correlation below it) where others have more than `IN_COMMON`.
NOTHING, IN_COMMON = 0.1, 0.5

Distances = Float[np.ndarray, "step step"]


class Exchange(NamedTuple):
    """Two neighbours whose exchange makes the path shorter by the factor `ratio`."""

    first: int
    second: int
    ratio: float


def excesses(distances: Distances, order: Sequence[int]) -> Float[np.ndarray, " ordered"]:
    """The excess of every step of `order`; NaN of its first and last, and between two that are equal."""
    found = np.full(len(order), math.nan)
    for at in range(1, len(order) - 1):
        a, b, c = order[at - 1 : at + 2]
        if distances[a, c] > 0:
            found[at] = (distances[a, b] + distances[b, c]) / distances[a, c]
    return found


def off_the_path(
    distances: Distances, order: Sequence[int], limit: float = EXCESS
) -> tuple[dict[int, float], list[int]]:
    """Steps off the path with their excess, and the order without them.

    The worst one is taken out and the others looked at again: it makes its neighbours' excess wrong.
    """
    order, found = list(order), {}
    while True:
        values = excesses(distances, order)
        bad = [at for at in range(len(order)) if values[at] > max(limit, _usual(np.log(values), at))]
        if not bad:
            return found, order
        worst = max(bad, key=lambda at: values[at])
        found[order[worst]] = float(values[worst])
        del order[worst]


def exchanged(distances: Distances, order: Sequence[int]) -> list[Exchange]:
    """Neighbours in the wrong order."""
    ratios = np.array([_ratio(distances, order, at) for at in range(len(order) - 1)])
    logs = np.log(ratios)
    found = [
        Exchange(order[at], order[at + 1], float(ratios[at]))
        for at in range(len(ratios))
        if ratios[at] > max(ORDER, _usual(logs, at))
    ]
    # An exchange lengthens the path of the pairs beside it too.
    worst = sorted(found, key=lambda pair: -pair.ratio)
    taken: set[int] = set()
    kept = []
    for pair in worst:
        if not {pair.first, pair.second} & taken:
            kept.append(pair)
            taken |= {pair.first, pair.second}
    return sorted(kept)


def place_of(distances: Distances, order: Sequence[int], step: int) -> tuple[int, int] | None:
    """The neighbours of `order` between which a step fits, None where it fits nowhere."""
    gaps = [(a, b) for a, b in itertools.pairwise(order) if step not in (a, b) and distances[a, b] > 0]
    costs = [(distances[a, step] + distances[step, b]) / distances[a, b] for a, b in gaps]
    if not costs or min(costs) > 2.0:  # stationary noise
        return None
    return gaps[int(np.argmin(costs))]


def partner_of(distances: Distances, order: Sequence[int], step: int, place: tuple[int, int]) -> int | None:
    """The step beside `place` that fits better where `step` is, as `step` does where that one is; None without one.

    A late checkpoint among early ones, which are far from each other themselves, may have no excess of its own.
    """
    best, least = None, ORDER
    for other in place:
        gains = [_way(distances, order, p, p) / _way(distances, order, p, q) for p, q in ((step, other), (other, step))]
        if abs(order.index(step) - order.index(other)) > 1 and min(gains) > least:
            best, least = other, min(gains)
    return best


def _way(distances: Distances, order: Sequence[int], at: int, through: int) -> float:
    """The way from the step before `at` to the one behind it, through some checkpoint."""
    place = order.index(at)
    beside = [order[k] for k in (place - 1, place + 1) if 0 <= k < len(order)]
    return float(sum(distances[other, through] for other in beside))


def _ratio(distances: Distances, order: Sequence[int], at: int) -> float:
    """How much longer the path is than with the pair at `at` exchanged; 1 of a pair that has no other neighbour."""
    b, c = order[at], order[at + 1]
    outer = [order[k] for k in (at - 1, at + 2) if 0 <= k < len(order)]
    before, after = (order[at - 1] if at else None), (order[at + 2] if at + 2 < len(order) else None)
    if not outer:
        return 1.0
    path = distances[b, c] + sum(distances[x, y] for x, y in ((before, b), (c, after)) if None not in (x, y))
    other = distances[b, c] + sum(distances[x, y] for x, y in ((before, c), (b, after)) if None not in (x, y))
    return path / other if other > 0 else 1.0


def _usual(logs: np.ndarray, at: int) -> float:
    """What the others' values make likely: their median and `OUTLIER` robust standard deviations, not logarithmic."""
    others = np.delete(logs, at)
    others = others[np.isfinite(others)]
    if len(others) < 3:
        return 0.0
    middle = np.median(others)
    return float(np.exp(middle + OUTLIER * 1.4826 * np.median(np.abs(others - middle))))
