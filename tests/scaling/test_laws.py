"""Power laws and tests of them against linear regression, planted curves, a global search, their null distributions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from qfl_interp.scaling import compare_laws, fit_broken_power_law, fit_power_law, lack_of_fit
from qfl_interp.scaling.least_squares import Form, _jacobian, fit, log_curve

BUDGET = 10.0 ** np.arange(9, 14.1, 0.5)


def noisy(curve, sigma, n_seeds, rng):
    """Losses of seeds about a curve, the error a factor."""
    return curve[:, None] * np.exp(sigma * rng.standard_normal((curve.size, n_seeds)))


def drop(budget, at=3e11):
    """A plateau, a fall of two decades, a second plateau."""
    return 0.004 + 0.65 / (1 + (budget / at) ** 1.5)


# The plain law


def test_plain_law_is_linear_regression():
    rng = np.random.default_rng(0)
    loss = noisy(40 * BUDGET**-0.2, 0.1, 3, rng)
    found = fit_power_law(BUDGET, loss)
    x, y = np.repeat(np.log(BUDGET), 3), np.log(loss).ravel()
    line = scipy.stats.linregress(x, y)
    half = scipy.stats.t.ppf(0.975, 31) * line.stderr
    assert found.exponent.estimate == pytest.approx(-line.slope, rel=1e-9)
    assert found.exponent.low == pytest.approx(-line.slope - half, rel=1e-9)
    assert found.exponent.high == pytest.approx(-line.slope + half, rel=1e-9)
    half = scipy.stats.t.ppf(0.975, 31) * line.intercept_stderr
    assert np.log(found.amplitude.low) == pytest.approx(line.intercept - half, rel=1e-9)
    residual = y - line.intercept - line.slope * x
    assert found.rss == pytest.approx(residual @ residual, rel=1e-9)
    assert found.sigma == pytest.approx(np.sqrt(found.rss / 31), rel=1e-9)
    np.testing.assert_allclose(found.predict(BUDGET), np.exp(line.intercept + line.slope * np.log(BUDGET)), rtol=1e-9)
    # AICc from the normal likelihood, with the variance as a third parameter.
    log_likelihood = scipy.stats.norm(scale=np.sqrt(found.rss / 33)).logpdf(residual).sum()
    constant = 33 * (1 + np.log(2 * np.pi))
    assert found.aicc == pytest.approx(6 - 2 * log_likelihood - constant + 2 * 3 * 4 / (33 - 4), rel=1e-9)
    assert found.floor is None
    assert "C^-0.2" in repr(found)


def test_missing_runs_and_order_change_nothing_else():
    rng = np.random.default_rng(1)
    loss = noisy(40 * BUDGET**-0.2, 0.1, 3, rng)
    loss[2, 1] = loss[5, :] = np.nan
    found = fit_power_law(BUDGET, loss)
    there = ~np.isnan(loss)
    line = scipy.stats.linregress(np.log(np.repeat(BUDGET, 3).reshape(-1, 3)[there]), np.log(loss[there]))
    assert found.exponent.estimate == pytest.approx(-line.slope, rel=1e-9)
    assert found.n == there.sum() == 29
    shuffled = rng.permutation(BUDGET.size)
    assert fit_power_law(BUDGET[shuffled], loss[shuffled]).rss == pytest.approx(found.rss, rel=1e-9)


def test_exact_curves_are_found_again():
    plain = fit_power_law(BUDGET, 0.02 + 2e3 * BUDGET**-0.4, irreducible=True, rng=np.random.default_rng(0))
    assert plain.floor is not None
    assert plain.exponent.estimate == pytest.approx(0.4, rel=1e-4)
    assert plain.floor.estimate == pytest.approx(0.02, rel=1e-4)
    assert plain.amplitude.estimate == pytest.approx(2e3, rel=1e-3)
    curve = 0.01 + 5 * BUDGET**-0.1 * (1 + (BUDGET / 1e11) ** (1 / 0.7)) ** (-0.5 * 0.7)
    broken = fit_broken_power_law(BUDGET, curve, np.random.default_rng(0), irreducible=True, n_resamples=20)
    assert broken.floor is not None
    values = [broken.exponent, broken.change, broken.break_flops, broken.width, broken.floor]
    assert [v.estimate for v in values] == pytest.approx([0.1, 0.5, 1e11, 0.7, 0.01], rel=2e-2)
    np.testing.assert_allclose(broken.predict(BUDGET), curve, rtol=1e-5)


def test_no_floor_is_found_where_there_is_none():
    """The bound is reached, not passed: the law with a floor is then the plain one."""
    rng = np.random.default_rng(3)
    # Bent down, away from any floor.
    loss = noisy(40 * BUDGET**-0.2 * np.exp(-0.01 * np.log(BUDGET / 1e9) ** 2), 0.02, 3, rng)
    plain, with_floor = fit_power_law(BUDGET, loss), fit_power_law(BUDGET, loss, irreducible=True, rng=rng)
    assert with_floor.floor is not None
    assert with_floor.floor.estimate < 1e-9
    assert with_floor.exponent.estimate == pytest.approx(plain.exponent.estimate, rel=1e-6)
    assert with_floor.aicc > plain.aicc


def test_descent_reaches_the_minimum_of_a_global_search():
    """An independent optimiser, from differential evolution, finds nothing lower."""
    rng = np.random.default_rng(4)
    mean = np.log(drop(BUDGET)) + 0.05 * rng.standard_normal(BUDGET.size)
    found = fit_broken_power_law(BUDGET, np.exp(mean), rng, irreducible=True, n_resamples=2)
    x = np.log(BUDGET / 1e11)

    def squares(p):
        log_a, b, s, u, log_f, floor = p
        power = np.exp(log_a - b * x - s * np.exp(log_f) * np.logaddexp(0, (x - u) / np.exp(log_f)))
        return float(np.sum((mean - np.log(floor + power)) ** 2))

    step = np.diff(x)[0]
    bounds = [(-4, 2), (-0.5, 1), (-1, 5), (x[1], x[-2]), (np.log(step / 10), 2), (0, 0.01)]
    other = scipy.optimize.differential_evolution(squares, bounds, seed=0, maxiter=150, tol=1e-10)
    assert found.rss <= other.fun * (1 + 1e-4)
    assert found.rss == pytest.approx(squares_of(found, mean), rel=1e-6)


def squares_of(law, mean):
    """The sum of squares of the law's own predictions."""
    return float(np.sum((mean - np.log(law.predict(BUDGET))) ** 2))


def test_jacobian_against_finite_differences():
    rng = np.random.default_rng(5)
    x = np.log(BUDGET / 1e11)
    parameters = rng.uniform([-1, 0, -1, -2, -1, 0.1], [1, 0.5, 2, 2, 0.7, 0.6], (7, 6))
    found = _jacobian(parameters, x)
    for column in range(6):
        step = np.zeros(6)
        step[column] = 1e-6
        slope = (log_curve(parameters + step, x) - log_curve(parameters - step, x)) / 2e-6
        np.testing.assert_allclose(found[..., column], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("irreducible", [False, True])
def test_intervals_cover(irreducible):
    """The exponent is inside its 90 % interval in 90 % of 40 made-up sweeps, within four standard errors."""
    rng = np.random.default_rng(6)
    curve = (0.02 if irreducible else 0.0) + 40 * BUDGET**-0.2
    hits = 0
    for _ in range(40):
        law = fit_power_law(
            BUDGET, noisy(curve, 0.05, 3, rng), irreducible=irreducible, rng=rng, n_resamples=49, level=0.9
        )
        hits += law.exponent.low <= 0.2 <= law.exponent.high
    assert abs(hits / 40 - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 40)


def test_break_is_found_with_its_interval():
    rng = np.random.default_rng(7)
    curve = 5 * BUDGET**-0.05 * (1 + (BUDGET / 1e11) ** 2) ** (-0.6 / 2)
    found = fit_broken_power_law(BUDGET, noisy(curve, 0.05, 4, rng), rng, n_resamples=199, level=0.99)
    assert found.break_flops.low < 1e11 < found.break_flops.high
    assert found.break_flops.high / found.break_flops.low < 10
    assert found.exponent.low < 0.05 < found.exponent.high
    assert found.change.low < 0.6 < found.change.high
    assert "-> 0.6" in repr(found)


# The deviation


def test_lack_of_fit_against_two_anovas():
    """By the F test of nested linear models: the line, and one mean a budget."""
    rng = np.random.default_rng(8)
    loss = noisy(drop(BUDGET), 0.3, 3, rng)
    loss[3, 2] = np.nan
    there = ~np.isnan(loss)
    x, y = np.log(np.repeat(BUDGET, 3).reshape(-1, 3)[there]), np.log(loss[there])

    def squares(design):
        return float(np.linalg.lstsq(design, y, rcond=None)[1][0])

    line = squares(np.stack([np.ones_like(x), x], axis=1))
    groups = squares((x[:, None] == np.log(BUDGET)).astype(float))
    found = lack_of_fit(BUDGET, loss)
    assert (found.df_fit, found.df_pure) == (9, 32 - 11)
    assert found.statistic == pytest.approx((line - groups) / 9 / (groups / 21), rel=1e-8)
    assert found.p_value == pytest.approx(scipy.stats.f.sf(found.statistic, 9, 21), rel=1e-8)
    assert found.pure_sigma == pytest.approx(np.sqrt(groups / 21), rel=1e-8)


def test_lack_of_fit_has_its_size_and_power():
    rng = np.random.default_rng(9)
    null = [lack_of_fit(BUDGET, noisy(9 * BUDGET**-0.1, 0.1, 3, rng)).p_value for _ in range(400)]
    assert abs(np.mean(np.array(null) < 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 400)
    assert scipy.stats.kstest(null, "uniform").pvalue > 1e-3
    away = [lack_of_fit(BUDGET, noisy(drop(BUDGET), 0.3, 3, rng)).p_value for _ in range(20)]
    assert max(away) < 0.01


def test_unequal_variances():
    """One budget of ten times the spread: the classical p is far too small, the other one nearly right."""
    rng = np.random.default_rng(14)
    sigma = np.where(np.arange(BUDGET.size) == 5, 0.3, 0.03)
    found = [
        lack_of_fit(BUDGET, noisy(9 * BUDGET**-0.1, sigma[:, None], 3, rng), rng=rng, n_resamples=99)
        for _ in range(150)
    ]
    classical, unequal = np.array([(f.p_value, f.p_value_unequal) for f in found]).T
    assert np.mean(classical < 0.05) > 0.15
    assert np.mean(unequal <= 0.05) < 0.15
    away = lack_of_fit(BUDGET, noisy(drop(BUDGET), 0.1, 3, rng), rng=rng, n_resamples=99)
    assert away.p_value_unequal == 0.01
    assert lack_of_fit(BUDGET, noisy(drop(BUDGET), 0.1, 3, rng)).p_value_unequal is None
    assert "unequal variances p=0.01" in repr(away)


def test_p_of_unequal_variances_against_a_plain_simulation():
    """By drawing every seed with its budget's variance and regressing by numpy; one budget has one seed only."""
    rng = np.random.default_rng(15)
    loss = noisy(9 * BUDGET**-0.1, 0.1 * np.linspace(0.5, 2, BUDGET.size)[:, None], 3, rng)
    loss[4, 1:] = np.nan
    found = lack_of_fit(BUDGET, loss, rng=rng, n_resamples=4000)
    y = np.log(loss)
    there = ~np.isnan(y)
    count = there.sum(axis=1)
    squares = np.nansum((y - np.nanmean(y, axis=1, keepdims=True)) ** 2, axis=1)
    variance = np.where(count > 1, squares / np.maximum(count - 1, 1), squares.sum() / 20)
    drawn = np.sqrt(variance)[None, :, None] * rng.standard_normal((4000, BUDGET.size, 3))
    errors = np.where(there, drawn, 0.0)
    mean = errors.sum(axis=2) / count
    pure = np.sum(np.where(there, errors - mean[..., None], 0.0) ** 2, axis=(1, 2))
    design = np.sqrt(count)[:, None] * np.stack([np.ones(BUDGET.size), np.log(BUDGET)], axis=1)
    weighted = np.sqrt(count) * mean
    line = weighted @ np.linalg.pinv(design).T @ design.T
    statistic = np.sum((weighted - line) ** 2, axis=1) / 9 / (pure / 20)
    p = np.mean(statistic >= found.statistic)
    assert 0.05 < p < 0.95
    assert found.p_value_unequal is not None
    assert abs(found.p_value_unequal - p) < 4 * np.sqrt(2 * p * (1 - p) / 4000)


def test_a_floor_is_no_lack_of_fit_of_the_law_with_a_floor():
    rng = np.random.default_rng(10)
    curve = 0.1 + 40 * BUDGET**-0.2
    without, with_floor = [], []
    for _ in range(60):
        loss = noisy(curve, 0.03, 3, rng)
        without.append(lack_of_fit(BUDGET, loss).p_value)
        with_floor.append(lack_of_fit(BUDGET, loss, irreducible=True).p_value)
    assert np.mean(np.array(without) < 0.05) > 0.9
    assert np.mean(np.array(with_floor) < 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 60)


def test_faster_than_the_law_is_seen_below_exact_match():
    """Of the chance of a whole answer, under one in a hundred everywhere: -log falls off its line, or stays on it."""
    rng = np.random.default_rng(1)
    budget = 10.0 ** np.arange(9, 12.1, 0.5)
    surprise = 47 * (budget / 1e9) ** -0.05 / (1 + (budget / 1e11) ** 0.7)
    rate = np.exp(-noisy(surprise, 0.05, 3, rng))
    below = rate.max(axis=1) < 1e-2
    assert below.sum() >= 5
    assert lack_of_fit(budget[below], -np.log(rate[below])).p_value < 1e-3
    steady = np.exp(-noisy(47 * (budget / 1e9) ** -0.1, 0.05, 3, rng))
    assert lack_of_fit(budget, -np.log(steady)).p_value > 0.01
    law = fit_power_law(budget, -np.log(steady))
    assert law.exponent.estimate == pytest.approx(0.1, abs=0.02)


@pytest.mark.slow
def test_comparison_has_its_size():
    """Under a power law p-values are uniform."""
    rng = np.random.default_rng(11)
    budget = BUDGET[:8]
    ps = np.array(
        [compare_laws(budget, noisy(9 * budget**-0.1, 0.1, 2, rng), rng, n_resamples=19).p_value for _ in range(40)]
    )
    for level in (0.05, 0.25, 0.5):
        assert abs(np.mean(ps <= level) - level) < 4 * np.sqrt(level * (1 - level) / 40), level


def test_null_distribution_does_not_depend_on_the_law_nor_on_the_noise():
    """What makes the bootstrap exact without a floor: two other laws give the same distribution of LR."""
    rng = np.random.default_rng(13)
    x, count = np.log(BUDGET), np.full(BUDGET.size, 3)
    drawn = []
    for log_a, slope, sigma in ((3.0, 0.1, 0.01), (-1.0, 0.7, 0.5)):
        y = log_a - slope * x + sigma / np.sqrt(3) * rng.standard_normal((600, x.size))
        rss = [fit(x, y, count, Form(broken, False))[1] for broken in (False, True)]
        drawn.append(np.log(rss[0] / rss[1]))
    assert scipy.stats.ks_2samp(*drawn).pvalue > 1e-3
    # Far from the chi-square of three parameters that a regular test would have.
    assert scipy.stats.kstest(11 * drawn[0], scipy.stats.chi2(3).cdf).pvalue < 1e-3


def test_comparison_has_power_and_needs_no_seeds():
    rng = np.random.default_rng(12)
    found = compare_laws(BUDGET, drop(BUDGET) * np.exp(0.1 * rng.standard_normal(BUDGET.size)), rng, n_resamples=99)
    assert found.p_value == 0.01
    assert found.n == BUDGET.size
    with_seeds = compare_laws(BUDGET, noisy(drop(BUDGET), 0.1, 3, rng), rng, n_resamples=9)
    assert with_seeds.aicc_broken < with_seeds.aicc_plain
    plain, broken = fit_power_law(BUDGET, drop(BUDGET)), fit_broken_power_law(BUDGET, drop(BUDGET), rng, n_resamples=2)
    noiseless = compare_laws(BUDGET, drop(BUDGET), rng, n_resamples=19)
    assert noiseless.statistic == pytest.approx(11 * np.log(plain.rss / broken.rss), rel=1e-6)
    assert (noiseless.aicc_plain, noiseless.aicc_broken) == pytest.approx((plain.aicc, broken.aicc), rel=1e-9)


def test_the_same_generator_gives_the_same_numbers():
    loss = noisy(9 * BUDGET**-0.1, 0.1, 2, np.random.default_rng(0))
    first, second, other = (
        fit_broken_power_law(BUDGET, loss, np.random.default_rng(seed), n_resamples=19) for seed in (1, 1, 2)
    )
    assert first == second
    assert first.exponent.estimate == other.exponent.estimate
    assert first.exponent.low != other.exponent.low


# What is refused


@pytest.mark.parametrize(
    ("budget", "loss", "words"),
    [
        (BUDGET[:3], np.array([1.0, 0.0, 0.5]), r"loss must be positive and finite, got 0.0 at index \(1,\)"),
        (BUDGET[:3], np.array([1.0, np.nan, 0.5]), r"loss must be positive and finite, got nan at index \(1,\)"),
        (np.array([0.0, 1e9, 1e10]), np.ones(3), r"budget must be positive and finite, got 0.0"),
        (np.array([1e9, 1e9, 1e10]), np.ones(3), "each budget must stand once"),
        (BUDGET[:2], np.ones(2), "3 budgets at least, got 2"),
        (BUDGET[:4], np.array([[1.0, 2.0], [1.0, 3.0], [np.nan, np.nan], [np.nan, np.nan]]), "budgets at least, got 2"),
    ],
)
def test_bad_losses(budget, loss, words):
    with pytest.raises(ValueError, match=words):
        fit_power_law(budget, loss)


def test_too_few_points_for_a_law():
    with pytest.raises(ValueError, match=r"a law of 5 parameters needs 5 budgets and more than 5 losses, got 5 and 5"):
        fit_broken_power_law(BUDGET[:5], np.ones(5), np.random.default_rng(0))
    with pytest.raises(ValueError, match="pass rng"):
        fit_power_law(BUDGET, 9 * BUDGET**-0.1, irreducible=True)
    one_seed = (9 * BUDGET**-0.1)[:, None]
    for loss in (one_seed, np.tile(one_seed, 3)):
        with pytest.raises(ValueError, match="seeds that differ"):
            lack_of_fit(BUDGET, loss)
