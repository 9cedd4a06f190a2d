"""One curve of several seeds: their mean and the range between the lowest and the highest of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class SeedCurve(NamedTuple):
    """One seed's values along a training.

    Attributes:
        places: How far training was, ascending, above 0.
        values: What was measured there.
    """

    places: Float[np.ndarray, " point"]
    values: Float[np.ndarray, " point"]


class SeedBand(NamedTuple):
    """The seeds' mean and range; of length 0 where their trainings have no stretch in common.

    Attributes:
        places: Where any seed was measured, in the stretch that all of them have in common.
        mean: Arithmetic mean over the seeds.
        low: The lowest seed's value.
        high: The highest seed's value.
    """

    places: Float[np.ndarray, " place"]
    mean: Float[np.ndarray, " place"]
    low: Float[np.ndarray, " place"]
    high: Float[np.ndarray, " place"]


def over_seeds(curves: Sequence[SeedCurve]) -> SeedBand:
    """Mean, lowest and highest value over seeds, from the latest first to the earliest last place of any of them.

    A seed that was not measured at a place is interpolated there: linearly in the value, between its neighbours in the
    logarithm of the place. Nothing is extrapolated.

    Args:
        curves: At least one; each with at least one point.

    Raises:
        ValueError: There is no curve, or one has no point, places that do not ascend, a place that is not above 0, or a
            value that is not finite.
    """
    if not curves:
        raise ValueError("a mean over seeds needs at least one seed, got none.")
    for places, values in curves:
        wrong = not len(places) or places[0] <= 0 or (np.diff(places) <= 0).any()
        if wrong or not np.isfinite(places).all() or not np.isfinite(values).all():
            raise ValueError(
                "a seed's curve needs finite values at ascending places above 0, got "
                f"values {values.tolist()} at {places.tolist()}."
            )
    start, end = max(c.places[0] for c in curves), min(c.places[-1] for c in curves)
    grid = np.unique(np.concatenate([c.places for c in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    seeds = np.stack([np.interp(np.log(grid), np.log(c.places), c.values) for c in curves])
    return SeedBand(grid, seeds.mean(axis=0), seeds.min(axis=0), seeds.max(axis=0))
