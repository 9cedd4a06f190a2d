"""Intervals and tests against enumeration, scipy and simulated coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from qfl_interp.stats import bootstrap_mean, holm, paired_sign_flip, rank_p_value, t_interval


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_bootstrap_interval_covers_as_often_as_it_says():
    runs, n = 200, 60
    draws = rng(1).normal(3.0, 2.0, size=(runs, n))
    hits = sum((i := bootstrap_mean(row, rng(2), n_resamples=500)).low <= 3.0 <= i.high for row in draws)
    # It covers a little less than 95 % of normal means: z for t, and a factor sqrt((n - 1) / n).
    nominal = 2 * scipy.stats.t.cdf(1.96 * np.sqrt((n - 1) / n), n - 1) - 1
    assert abs(hits / runs - nominal) < 4 * np.sqrt(nominal * (1 - nominal) / runs)


def test_bootstrap_half_width_is_the_normal_one():
    values = (rng(3).random(2000) < 0.3).astype(np.float64)
    got = bootstrap_mean(values, rng(4))
    assert got.estimate == values.mean()
    assert got.n == 2000
    # Quantiles of 10,000 resamples: about 2 % of a standard error each.
    assert (got.high - got.low) / (2 * 1.96 * values.std() / np.sqrt(2000)) == pytest.approx(1, abs=0.06)


def test_bootstrap_follows_its_generator():
    values = rng(5).normal(size=30)
    assert bootstrap_mean(values, rng(1)) == bootstrap_mean(values, rng(1))
    assert bootstrap_mean(values, rng(1)) != bootstrap_mean(values, rng(2))


def test_level_widens_the_interval():
    values = rng(5).normal(size=50)
    narrow, wide = (bootstrap_mean(values, rng(1), level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("seed", range(5))
def test_exact_sign_flip_p_is_the_enumerated_one(seed, alternative):
    treated, control = rng(seed).integers(0, 4, size=(2, 8)).astype(np.float64)
    d = treated - control
    sums = [np.dot(signs, d) for signs in itertools.product([1, -1], repeat=8)]  # zeros flipped too
    high, low = np.mean(np.array(sums) >= d.sum()), np.mean(np.array(sums) <= d.sum())
    expected = {"greater": high, "less": low, "two-sided": min(1, 2 * min(high, low))}[alternative]
    got = paired_sign_flip(treated, control, rng(), alternative=alternative)
    assert got.exact
    assert got.statistic == pytest.approx(d.mean())
    assert got.p_value == pytest.approx(expected, abs=1e-12)


def test_monte_carlo_sign_flip_agrees_with_scipy():
    treated, control = rng(7).normal(0, 1, 60) + 0.1, np.zeros(60)
    got = paired_sign_flip(treated, control, rng(8), alternative="greater")
    reference = scipy.stats.permutation_test(
        (treated,), np.sum, permutation_type="samples", n_resamples=10_000, alternative="greater", rng=rng(9)
    ).pvalue
    assert not got.exact
    assert 0.01 < reference < 0.99
    assert abs(got.p_value - reference) < 4 * np.sqrt(2 * reference / 10_000)


def test_monte_carlo_sign_flip_is_never_zero():
    got = paired_sign_flip(np.ones(200), np.zeros(200), rng(), alternative="greater", n_resamples=99)
    assert got.p_value == 1 / 100
    assert paired_sign_flip(np.ones(200), np.zeros(200), rng(), alternative="less", n_resamples=99).p_value == 1


def test_monte_carlo_sign_flip_keeps_its_level():
    draws = rng(10).normal(size=(400, 30))
    hits = sum(paired_sign_flip(row, np.zeros(30), rng(1), n_resamples=199).p_value <= 0.05 for row in draws)
    assert abs(hits / 400 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 400)


def test_no_difference_gives_p_1_and_one_difference_a_half():
    same = np.arange(5.0)
    assert paired_sign_flip(same, same, rng()).p_value == 1
    one = same + np.array([0, 0, 1, 0, 0])
    assert paired_sign_flip(one, same, rng(), alternative="greater").p_value == 0.5
    assert paired_sign_flip(one, same, rng(), alternative="less").p_value == 1


def test_rank_p_value_counts_ties_against_the_observation():
    controls = np.array([0.1, 0.2, 0.3, 0.3])
    assert rank_p_value(0.3, controls).p_value == 3 / 5
    assert rank_p_value(0.3, controls, "less").p_value == 1
    assert rank_p_value(0.0, controls, "less").p_value == 1 / 5


def test_holm_against_hand_computation():
    # Sorted .01 .02 .03 .04: x4, x3, x2, x1 = .04 .06 .06 .04, running maximum .04 .06 .06 .06.
    assert holm(np.array([0.04, 0.01, 0.03, 0.02])).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]


def test_t_interval_is_scipy_s():
    values = np.array([0.2, 0.5, 0.1, 0.4])
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    got = t_interval(values, 0.9)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    assert (t_interval(np.ones(3)).low, t_interval(np.ones(3)).high) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean(np.array([1.0]), rng()), "at least 2 values, got 1"),
        (lambda: bootstrap_mean(np.array([1.0, np.nan]), rng()), "finite, got nan at index 1"),
        (lambda: t_interval(np.array([1.0])), "at least 2 values, got 1"),
        (lambda: paired_sign_flip(np.array([]), np.array([]), rng()), "at least 1 values, got 0"),
        (lambda: paired_sign_flip(np.ones(2), np.ones(3), rng()), "same examples, got 2 and 3"),
        (lambda: rank_p_value(1.0, np.array([])), "at least 1 values, got 0"),
        (lambda: rank_p_value(float("nan"), np.ones(3)), "observed must be finite"),
        (lambda: holm(np.array([0.5, 1.5])), r"lie in \[0, 1\]"),
    ],
    ids=["bootstrap-1", "bootstrap-nan", "t-1", "flip-0", "flip-lengths", "rank-0", "rank-nan", "holm"],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
