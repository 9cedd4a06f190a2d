"""Transition and crossing on the budget axis, on curves whose edges are known, and resampling against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from qfl_interp.emergence.transition import find_transition
from qfl_interp.scaling import across_transition, crossing

BUDGET = 10.0 ** np.arange(9, 14.1, 0.5)
CHANCE = 0.65


def fall(at, start=0.65, end=0.004, budget=BUDGET):
    """A plateau, a steep fall in the middle of `at`, a second plateau."""
    return end + (start - end) / (1 + (budget / at) ** 4)


def test_edges_of_a_known_fall():
    """From 10^11 (still on the plateau) to 10^12.5 (at the lower level), with grid points half a decade apart."""
    rng = np.random.default_rng(0)
    loss = fall(5e11)[:, None] + 0.001 * rng.standard_normal((BUDGET.size, 3))
    found = across_transition(BUDGET, loss, rng, chance_loss=CHANCE)
    assert found.start is not None
    assert found.end is not None
    one = find_transition(BUDGET, loss.mean(axis=1), chance_loss=CHANCE, min_plateau_points=2)
    assert found.transition == one
    assert found.start.estimate == pytest.approx(1e11)
    assert found.end.estimate == pytest.approx(10**12.5)
    assert (found.start.low, found.start.high) == (found.start.estimate, found.start.estimate)
    assert found.found_share == pytest.approx(1)
    assert found.step_decades == pytest.approx(0.5)
    assert found.n_resamples == 10
    assert "100%" in repr(found)


def test_intervals_are_those_of_all_ordered_resamples():
    """Seeds that fall at different budgets: every one of the 27 ordered resamples, by a loop."""
    loss = np.stack([fall(at) for at in (3e10, 5e11, 8e12)], axis=1)
    found = across_transition(BUDGET, loss, np.random.default_rng(0), chance_loss=CHANCE, level=0.9)
    assert found.start is not None
    assert found.end is not None
    all_ = [
        find_transition(BUDGET, loss[:, list(s)].mean(axis=1), chance_loss=CHANCE, min_plateau_points=2)
        for s in itertools.product(range(3), repeat=3)
    ]
    kept = [t for t in all_ if t.found]
    assert found.found_share == pytest.approx(len(kept) / 27)
    for interval, name in ((found.start, "start_flops"), (found.end, "end_flops")):
        edges = np.array([getattr(t, name) for t in kept])
        low, high = np.quantile(edges, [0.05, 0.95], method="inverted_cdf")
        assert (interval.low, interval.high) == (low, high)
        assert interval.low < interval.high
        assert interval.n == 3


def test_drawn_resamples_agree_with_all():
    rng = np.random.default_rng(1)
    loss = np.stack([fall(at) for at in (5e10, 1e11, 5e11, 1e12)], axis=1)
    exact = across_transition(BUDGET, loss, rng, chance_loss=CHANCE, n_resamples=35)
    drawn = across_transition(BUDGET, loss, rng, chance_loss=CHANCE, n_resamples=34)
    assert exact.n_resamples == 35
    assert drawn.n_resamples <= 34
    assert exact.start is not None
    assert drawn.start is not None
    assert exact.start.low <= drawn.start.low <= drawn.start.high <= exact.start.high


def test_a_share_without_a_transition_is_reported():
    """One seed of three never falls: where it is taken three times (1 of 27) there is nothing."""
    loss = np.stack([fall(1e11), fall(1e11), np.full(BUDGET.size, 0.65)], axis=1)
    found = across_transition(BUDGET, loss, np.random.default_rng(0), chance_loss=CHANCE)
    assert found.found_share == pytest.approx(26 / 27)


@pytest.mark.parametrize(
    ("loss", "words"),
    [(np.full(BUDGET.size, 0.65), "still on the plateau"), (3 * (BUDGET / 1e9) ** -0.3, "no plateau")],
    ids=["flat", "power law"],
)
def test_none_found(loss, words):
    found = across_transition(BUDGET, np.stack([loss, loss], axis=1), np.random.default_rng(0), chance_loss=CHANCE)
    assert (found.start, found.end, found.found_share) == (None, None, 0)
    assert words in repr(found)


def test_missing_runs():
    """The mean is over the seeds that are there; a budget without any is an error that names it."""
    loss = np.stack([fall(5e11)] * 3, axis=1)
    loss[3, 0] = loss[5, 1] = np.nan
    found = across_transition(BUDGET, loss, np.random.default_rng(0), chance_loss=CHANCE)
    assert found.start is not None
    assert found.found_share == pytest.approx(1)
    assert found.start.low == found.start.high == pytest.approx(1e11)
    loss[4] = np.nan
    with pytest.raises(ValueError, match=r"got none at \['1e\+11'\]"):
        across_transition(BUDGET, loss, np.random.default_rng(0), chance_loss=CHANCE)


def test_crossing_by_hand():
    """Linear in log budget: 0.2 to 0.8 between 10^11 and 10^11.5 passes 0.5 half-way."""
    score = np.zeros((BUDGET.size, 4))
    score[5:, 0], score[4, 0] = 0.8, 0.2
    score[6:, 1], score[5, 1] = 1.0, 0.25
    score[:, 2] = 0.4
    score[:, 3] = 0.9
    found = crossing(BUDGET, score)
    np.testing.assert_allclose(np.log10(found.budgets[:2]), [11.25, 11.5 + 0.5 / 3], rtol=1e-12)
    assert np.isnan(found.budgets[2:]).all()
    logs = np.log(found.budgets[:2])
    low, high = scipy.stats.t.interval(0.95, 1, logs.mean(), scipy.stats.sem(logs))
    assert found.mean is not None
    assert found.mean.n == 2
    assert (found.mean.estimate, found.mean.low, found.mean.high) == pytest.approx(
        (np.exp(logs.mean()), np.exp(low), np.exp(high)), rel=1e-9
    )
    assert "2 of 4 seeds" in repr(found)


def test_crossing_takes_the_first_rise_and_skips_missing_runs():
    score = np.array([0.1, np.nan, 0.9, 0.2, 0.9])[:, None]
    found = crossing(BUDGET[:5], score)
    assert np.log10(found.budgets[0]) == pytest.approx(9.5)
    assert found.mean is None
    with pytest.raises(ValueError, match="Sort by budget"):
        crossing(BUDGET[:5][::-1], score)
