"""PassUntil: its expectation summed exactly, sampling against teacher-forced chances, and what it sees below 0 %."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from qfl_interp.config import ModelConfig
from qfl_interp.data.task import Batch
from qfl_interp.models.build import build_hooked
from qfl_interp.models.metrics import evaluate
from qfl_interp.scaling import lack_of_fit
from qfl_interp.scaling.pass_until import PassUntil, fit_pass_law, pass_until

D_VOCAB, N_CTX = 4, 9


@pytest.fixture(scope="module")
def model():
    return build_hooked(ModelConfig(d_model=16, n_layers=2), d_vocab=D_VOCAB, n_ctx=N_CTX, seed=3)


@pytest.fixture(scope="module")
def batch():
    """Scored spans of two to four tokens, at different places."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, D_VOCAB, (12, N_CTX)))
    first, length = rng.integers(2, 5, 12), rng.integers(2, 5, 12)
    place = np.arange(N_CTX)
    return Batch(tokens, torch.from_numpy((place >= first[:, None]) & (place < (first + length)[:, None])))


def outcomes(p, r, max_tries):
    """Every end of sampling until r passes or max_tries, with its probability."""
    tries = np.arange(r, max_tries + 1)
    done = scipy.stats.nbinom(r, p).pmf(tries - r)
    short = np.arange(r)
    out = scipy.stats.binom(max_tries, p).pmf(short)
    found = PassUntil(
        np.concatenate([np.full(tries.size, r), short]), np.concatenate([tries, np.full(r, max_tries)]), r
    )
    return found, np.concatenate([done, out])


@pytest.mark.parametrize("r", [2, 3, 5])
@pytest.mark.parametrize("p", [0.003, 0.2, 0.9])
def test_estimate_and_its_variance_are_unbiased(p, r):
    """The sums over all outcomes are p and the variance, also where most tries run out."""
    found, chance = outcomes(p, r, 40)
    assert chance.sum() == pytest.approx(1, abs=1e-12)
    assert chance @ found.estimate == pytest.approx(p, rel=1e-9)
    variance = chance @ (found.estimate - p) ** 2
    assert chance @ found.variance == pytest.approx(variance, rel=1e-9)


def test_the_papers_estimate_is_too_high_for_hard_examples():
    """E[r / K] of the paper tends to p r / (r - 1) for rare passes."""
    p, r = 1e-3, 3
    found, chance = outcomes(p, r, 40_000)
    assert chance @ (found.passes / found.tries) == pytest.approx(p * r / (r - 1), rel=0.01)


@pytest.mark.parametrize("given_equals", [False, True])
def test_sampling_agrees_with_the_exact_chance(model, batch, given_equals):
    """Token-by-token samples of the model, against exp(-sum of teacher-forced losses)."""
    with torch.no_grad():
        scores = evaluate(lambda tokens, span, _: model(tokens)[:, span], batch)
    exact = scores.success_answer if given_equals else scores.success
    rng = torch.Generator().manual_seed(0)
    found = pass_until(model, batch, rng, r=20, max_tries=2000, given_equals=given_equals, rows=2048)
    away = (found.estimate - exact) / np.sqrt(np.maximum(found.variance, exact * (1 - exact) / found.tries))
    assert np.all(np.abs(away) < 5)
    assert abs(found.rate - exact.mean()) < 4 * found.standard_error
    assert found.standard_error < 0.1 * exact.mean()
    # The two counts differ by far more than the error.
    other = scores.success if given_equals else scores.success_answer
    assert abs(found.rate - other.mean()) > 5 * found.standard_error
    assert np.all((found.passes == 20) | (found.tries == 2000))


def known(p):
    """Passes with this chance, whatever stands before: two logits for the one scored token of every example."""
    logits = torch.log(torch.tensor([1 - p, p], dtype=torch.float64))
    return lambda tokens: logits.expand(*tokens.shape, 2)


@pytest.mark.parametrize("rows", [3, 64, 5000])
def test_tries_stop_at_the_last_needed_pass(rows):
    """However many run side by side: K is as when they run one by one."""
    n, p, r = 500, 0.2, 2
    batch = Batch(torch.ones(n, 2, dtype=torch.int64), torch.tensor([[False, True]]).repeat(n, 1))
    found = pass_until(known(p), batch, torch.Generator().manual_seed(1), r=r, max_tries=8, rows=rows)
    expected, chance = outcomes(p, r, 8)
    counts = [
        np.sum((found.passes == s) & (found.tries == k)) for s, k in zip(expected.passes, expected.tries, strict=True)
    ]
    assert sum(counts) == n
    assert scipy.stats.chisquare(counts, n * chance).pvalue > 1e-4
    assert abs(found.rate - p) < 4 * found.standard_error


def test_certain_and_impossible():
    batch = Batch(torch.ones(3, 2, dtype=torch.int64), torch.tensor([[False, True]]).repeat(3, 1))
    sure = pass_until(known(1.0), batch, torch.Generator().manual_seed(0), r=2, max_tries=50)
    assert (sure.rate, sure.standard_error, sure.tries.tolist()) == (1.0, 0.0, [2, 2, 2])
    never = pass_until(known(0.0), batch, torch.Generator().manual_seed(0), r=2, max_tries=50)
    assert (never.rate, never.tries.tolist(), never.passes.tolist()) == (0.0, [50] * 3, [0] * 3)
    assert "3 ran out" in repr(never)


def test_same_generator_same_tries(model, batch):
    first, second, other = (
        pass_until(model, batch, torch.Generator().manual_seed(seed), r=2, max_tries=200) for seed in (1, 1, 2)
    )
    assert first.tries.tolist() == second.tries.tolist() != other.tries.tolist()


def test_improvement_below_the_floor_of_exact_match():
    """Greedy exact match is 0 of 1000 at every budget; PU follows its law over 20 orders of magnitude.

    Answers of 19 tokens whose losses fall as a power of compute, per example from half to twice the mean; greedy
    decoding is never right, because in each example the most likely token is wrong once.
    """
    rng = np.random.default_rng(0)
    budget = 10.0 ** np.arange(9, 12.1, 0.5)
    spread = rng.uniform(0.9, 1.1, 1000)
    mean_loss = 2.5 * (budget / 1e9) ** -0.12
    rate = np.array([np.exp(-19 * loss * spread).mean() for loss in mean_loss])
    assert rate[0] < 1e-18
    assert np.all(np.diff(np.log(rate)) > 0)
    law = fit_pass_law(budget, rate)
    assert law.law.exponent.estimate == pytest.approx(0.12, abs=0.01)
    # Fitted to the first five budgets, all below one in a thousand, it predicts the last.
    early = fit_pass_law(budget[:5], rate[:5])
    assert rate[4] < 1e-3
    assert np.log(early.predict(budget[-1:])[0]) == pytest.approx(np.log(rate[-1]), rel=0.1)
    assert "C^-0.1" in repr(law)


def test_faster_than_the_law_is_seen():
    """Accelerated emergence: -log PU falls off its line, long before an answer is right one time in a hundred."""
    rng = np.random.default_rng(1)
    budget = 10.0 ** np.arange(9, 12.1, 0.5)
    surprise = 47 * (budget / 1e9) ** -0.05 / (1 + (budget / 1e11) ** 0.7)
    rate = np.exp(-surprise[:, None] * np.exp(0.05 * rng.standard_normal((budget.size, 3))))
    below = rate.max(axis=1) < 1e-2
    assert below.sum() >= 5
    assert lack_of_fit(budget[below], -np.log(rate[below])).p_value < 1e-3
    steady = np.exp(-47 * (budget[:, None] / 1e9) ** -0.1 * np.exp(0.05 * rng.standard_normal((budget.size, 3))))
    assert lack_of_fit(budget, -np.log(steady)).p_value > 0.01


def test_bad_input(model, batch):
    rng = torch.Generator().manual_seed(0)
    for bad in ({"r": 1}, {"r": 5, "max_tries": 4}, {"rows": 0}):
        with pytest.raises(ValueError, match="r must be at least 2"):
            pass_until(model, batch, rng, **bad)
    for rate in ([0.1, 0.0, 0.3], [0.1, 0.2, 1.0]):
        with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\)"):
            fit_pass_law(np.array([1e9, 1e10, 1e11]), np.array(rate))
