"""Learning coefficients where they are known: from a closed form, from quadrature, and in the limit."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from qfl_interp.curvature import CurvatureConfig, SgldConfig, estimate_learning_coefficient

N = 1000
N_BETA = N / math.log(N)
CHAINS = SgldConfig(step_size=1e-3, localization=1.0, n_chains=4, n_draws=1500, n_burn_in=250, batch_size=N)


def sampled(potential, start, config=CHAINS, n=N):
    """The estimate on a loss that is the same for every example."""
    return estimate_learning_coefficient(
        lambda w, rows: potential(w), torch.tensor(start, dtype=torch.float64), n, config
    )


def standard_error(found, correlation):
    """Of the mean of all draws: their spread over the root of how many are independent."""
    draws = found.losses[:, CHAINS.n_burn_in :]
    return N_BETA * float(draws.std()) / math.sqrt(draws.numel() / correlation)


@pytest.mark.slow
def test_a_regular_minimum_has_half_its_parameters():
    """Each coordinate of `h w^2 / 2` has the Langevin chain's own variance: an autoregression in closed form."""
    h = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    found = sampled(lambda w: (h * w**2).sum() / 2, [0.0] * 6)
    a = N_BETA * h.numpy() + CHAINS.localization
    variance = 1 / (a * (1 - CHAINS.step_size * a / 4))
    expected = (N_BETA * h.numpy() * variance / 2).sum()
    # The slowest coordinate forgets in 2 / (eps a) steps.
    error = standard_error(found, 4 / (CHAINS.step_size * a.min()))
    assert error < 0.2
    assert abs(found.estimate - expected) < 4 * error
    assert expected == pytest.approx(3.0, rel=0.15)
    assert found.n_finite == 4
    assert found.start_loss == 0
    assert abs(found.drift) < 8 * error
    np.testing.assert_allclose(found.by_chain.mean(), found.estimate)
    np.testing.assert_allclose(found.by_chain.std(), found.std)


def quadrature(power, localization, n_beta=N_BETA):
    """`n beta E[K]` of `K = w1^2 w2^power` under the localised posterior: over w1 in closed form, over w2 on a grid.

    Given w2, w1 is normal with precision `2 n beta w2^power + localization`.
    """
    w = np.geomspace(1e-9, 10 / math.sqrt(localization), 20_001)
    precision = 2 * n_beta * w**power + localization
    density = np.exp(-localization * w**2 / 2) / np.sqrt(precision)
    return float(np.trapezoid(n_beta * w**power / precision * density, w) / np.trapezoid(density, w))


@pytest.mark.slow
def test_a_singular_minimum_has_less():
    """`w1^2 w2^2` in two parameters: 1/2 in the limit instead of the regular 1; at this n what quadrature gives."""
    config = dataclasses.replace(CHAINS, step_size=3e-3, localization=10.0, n_draws=2000, n_burn_in=250)
    found = sampled(lambda w: w[0] ** 2 * w[1] ** 2, [0.0, 0.0], config)
    expected = quadrature(2, config.localization)
    assert found.estimate == pytest.approx(expected, abs=4 * max(found.std / 2, 0.01))
    assert found.std / 2 < 0.05
    regular = sampled(lambda w: (w**2).sum() / 2, [0.0, 0.0], config)
    assert regular.estimate > 2 * found.estimate


def test_quadrature_goes_to_the_analytic_coefficients():
    """1/2 for `w1^2 w2^2` (from below, by the logarithm of its multiplicity), 1/4 for `w1^2 w2^4`."""
    twos = [quadrature(2, 1.0, 10.0**e) for e in (2, 4, 6)]
    assert twos == sorted(twos)
    assert twos[-1] == pytest.approx(0.5, abs=0.07)
    fours = [quadrature(4, 1.0, 10.0**e) for e in (2, 4, 6)]
    assert fours[-1] == pytest.approx(0.25, abs=0.03)


@pytest.mark.slow
def test_batches_estimate_the_mean_over_the_sample():
    """Linear regression with noise, in batches of a tenth: still half of the parameters."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((200, 3)))
    y = x.sum(dim=1) + torch.from_numpy(rng.standard_normal(200))
    best = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    config = SgldConfig(step_size=2e-3, localization=0.01, n_chains=4, n_draws=2500, n_burn_in=250, batch_size=20)
    found = estimate_learning_coefficient(lambda w, rows: ((x[rows] @ w - y[rows]) ** 2).mean() / 2, best, 200, config)
    assert found.start_loss == pytest.approx(float(((x @ best - y) ** 2).mean() / 2))
    # Of batch losses: n beta times their spread over the root of all draws. The chains' own, and that of the gradients:
    # they forget in 2 / (eps n beta) = 26 steps, so 0.06 and 4 %.
    spread = 200 / math.log(200) * float(((x @ best - y) ** 2 / 2).std()) / math.sqrt(20 * 10_000)
    assert found.estimate == pytest.approx(1.5, abs=4 * spread + 0.15)


def test_every_batch_is_of_different_examples_and_all_of_them_count():
    seen = []

    def mean_loss(w, rows):
        seen.append(rows.tolist())
        return (w**2).sum()

    config = SgldConfig(n_chains=2, n_draws=3, n_burn_in=2, batch_size=4)
    found = estimate_learning_coefficient(mean_loss, torch.zeros(2), 10, config)
    assert sorted(itertools.chain(*seen[:3])) == list(range(10))  # the start, whole
    assert [len(set(rows)) for rows in seen[3:]] == [4] * 10
    assert len({tuple(sorted(rows)) for rows in seen[3:]}) > 5
    assert found.losses.shape == (2, 5)
    assert (found.losses[:, 0] == 0).all()  # at the start itself
    assert (found.losses[:, 1:] > 0).all()


def test_the_burn_in_does_not_count():
    config = SgldConfig(n_chains=2, n_draws=4, n_burn_in=6, batch_size=5)
    found = estimate_learning_coefficient(lambda w, rows: (w**2).sum(), torch.zeros(2), 5, config)
    late = found.losses[:, 6:]
    np.testing.assert_allclose(found.by_chain, 5 / math.log(5) * late.mean(dim=1))
    np.testing.assert_allclose(found.drift, 5 / math.log(5) * (late[:, 2:].mean() - late[:, :2].mean()))


@pytest.mark.slow
def test_the_pull_back_keeps_chains_near():
    """Without a loss the chain is an autoregression of variance about 1 / localization."""
    config = dataclasses.replace(CHAINS, localization=100.0)
    start = [3.0, -2.0]
    found = sampled(lambda w: ((w - torch.tensor(start, dtype=w.dtype)) ** 2).sum() * 1e-9 / 2, start, config)
    expected = 1e-9 * N_BETA / (100 * (1 - 1e-3 * 100 / 4))
    assert found.estimate == pytest.approx(expected, rel=0.25)


def test_chains_that_leave_for_infinity_are_said():
    config = dataclasses.replace(CHAINS, step_size=1.0, n_draws=600)
    found = sampled(lambda w: (w**2).sum(), [0.0], config)
    assert found.n_finite == 0
    assert math.isnan(found.estimate)
    assert torch.isnan(found.by_chain).all()
    assert torch.isfinite(found.losses[:, 0]).all()


def test_one_seed_one_result():
    config = dataclasses.replace(CHAINS, n_draws=20)
    again, other = (sampled(lambda w: (w**2).sum(), [0.0], c) for c in (config, dataclasses.replace(config, seed=1)))
    found = sampled(lambda w: (w**2).sum(), [0.0], config)
    assert torch.equal(found.losses, again.losses)
    assert not torch.equal(found.losses, other.losses)
    assert len({float(row[-1]) for row in found.losses}) == 4


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="n must be at least 2 examples, got 1"):
        sampled(lambda w: (w**2).sum(), [0.0], n=1)
    with pytest.raises(ValueError, match="loss at the start must be finite"):
        sampled(lambda w: w.sum() / 0, [0.0])
    for field, value in (
        ("step_size", 0.0), ("localization", -1.0), ("n_chains", 1), ("n_draws", 1), ("n_burn_in", -1),
        ("batch_size", 0), ("seed", -1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=field):
            SgldConfig(**{field: value})
    for field, value in (
        ("n_examples", 1), ("n_rank_examples", 1), ("tol", 0.0), ("tol", math.nan), ("max_products", 5), ("seed", -1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=field):
            CurvatureConfig(**{field: value})
