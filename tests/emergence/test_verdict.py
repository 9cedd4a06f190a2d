"""Onsets, verdicts and lead intervals on planted curves."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from qfl_interp.emergence.onset import find_onset, fraction_at
from qfl_interp.emergence.transition import find_transition
from qfl_interp.emergence.verdict import classify, lead_interval_bootstrap, lead_interval_seeds
from qfl_interp.stats import Interval

FLOPS = 10.0 ** np.arange(9, 15)


def transition(steps=(1e11, 1e12)):
    """A loss that leaves its plateau between the two numbers of FLOPs."""
    flops = np.sort(np.concatenate([np.geomspace(1e9, steps[0], 20), np.geomspace(steps[1], 1e15, 20)]))
    return find_transition(flops, np.where(flops <= steps[0], 0.65, 0.001), chance_loss=0.65)


def test_onset_is_the_interpolated_crossing():
    got = find_onset(FLOPS, np.array([0.8, 0.6, 0.2, 0.1, 0.1, 0.1]), baseline=0.8)
    # 0.6 -> 0.2 crosses 0.4 half way between 1e10 and 1e11.
    assert got.learned
    assert got.onset_flops == pytest.approx(10**10.5)
    assert got.bracket == (1e10, 1e11)
    assert got.final_fraction == pytest.approx(0.125)


def test_crossing_has_to_last():
    metric = np.array([0.8, 0.3, 0.8, 0.2, 0.1, 0.1])
    got = find_onset(FLOPS, metric, 0.8)
    assert got.bracket == (1e11, 1e12)
    metric[-1] = 0.41
    got = find_onset(FLOPS, metric, 0.8)
    assert not got.learned
    assert math.isnan(got.onset_flops)


def test_prototype_s_first_operand_is_not_learned_by_half_but_is_by_a_looser_ratio():
    flops, metric = np.array([0.0, 90, 130, 140]), np.array([0.53, 0.44, 0.42, 0.39])
    assert not find_onset(flops, metric, 0.53).learned
    assert find_onset(flops, metric, 0.53, ratio=0.8).bracket == (90, 130)
    at = fraction_at(flops, metric, 0.53, 130.0)
    assert at == pytest.approx(0.42 / 0.53)


def test_threshold_itself_is_not_below():
    got = find_onset(FLOPS, np.full(6, 0.4), 0.8)
    assert not got.learned


def test_first_checkpoint_below_leaves_the_onset_open_to_the_left():
    got = find_onset(np.append(0.0, FLOPS), np.append(0.8, np.full(6, 0.1)), 0.8)
    assert got.onset_flops == pytest.approx(1e9)
    assert got.bracket == (0.0, 1e9)
    verdict = classify(got, transition())
    assert verdict.kind == "quiet"
    assert verdict.lead_high == math.inf


def test_fraction_between_checkpoints():
    got = fraction_at(FLOPS, np.array([0.8, 0.6, 0.2, 0.1, 0.1, 0.1]), 0.8, 10**10.25)
    assert got == pytest.approx(0.5 / 0.8)
    with pytest.raises(ValueError, match="within the checkpoints"):
        fraction_at(FLOPS, np.ones(6), 0.8, 1e8)


@pytest.mark.parametrize(
    ("onset_between", "kind", "phase", "certain"),
    [
        ((1e9, 1e10), "quiet", "before", True),
        ((1e11, 1e12), "loud", "within", False),  # same gap as the transition's start: order unknown
        ((1e12, 1e13), "loud", "after", True),
    ],
    ids=["before", "same-gap", "after"],
)
def test_verdict_follows_the_order(onset_between, kind, phase, certain):
    metric = np.where(FLOPS <= onset_between[0], 0.8, 0.0)
    got = classify(find_onset(FLOPS, metric, 0.8), transition())
    assert (got.kind, got.phase, got.certain) == (kind, phase, certain)
    onset = math.log10(onset_between[0]) + 0.5
    assert got.lead == pytest.approx(11 - onset)
    assert got.lead_low == pytest.approx(11 - math.log10(onset_between[1]))
    assert got.lead_high == pytest.approx(12 - math.log10(onset_between[0]))
    assert ("uncertain" in repr(got)) is not certain


def test_wide_interval_makes_the_verdict_uncertain():
    onset = find_onset(FLOPS, np.array([0.8, 0, 0, 0, 0, 0.0]), 0.8)
    assert classify(onset, transition(), Interval(1.5, 0.5, 2.0, 5, 0.95, "t")).certain
    got = classify(onset, transition(), Interval(1.5, -0.2, 2.0, 5, 0.95, "t"))
    assert (got.kind, got.certain, got.lead_low) == ("quiet", False, -0.2)


def test_no_transition_and_not_learned():
    flat = find_transition(FLOPS, np.full(6, 0.65), chance_loss=0.65)
    learned = find_onset(FLOPS, np.array([0.8, 0, 0, 0, 0, 0.0]), 0.8)
    never = find_onset(FLOPS, np.full(6, 0.8), 0.8)
    assert classify(learned, flat).kind == "no transition"
    assert "plateau" in classify(learned, flat).reason
    assert classify(never, transition()).kind == "not learned"
    assert math.isnan(classify(never, transition()).lead)


def planted(rng, n_examples, n_labels=2):
    """Exponential losses whose expected metric falls linearly in log10 FLOPs and crosses 0.4 at 10**10.5."""
    x = np.linspace(9, 13, 17)
    mean = np.clip(0.8 - 0.4 * (x - 9.5), 0.02, 0.8)
    return 10**x, mean[:, None, None] * rng.exponential(size=(n_labels, n_examples))


def test_bootstrap_agrees_with_a_loop_over_resamples():
    rng = np.random.default_rng(0)
    flops, losses = planted(rng, 50)
    base = rng.exponential(0.8, size=(2, 50))
    got = lead_interval_bootstrap(flops, losses, base, transition(), np.random.default_rng(1), n_resamples=4000)
    leads, shares = [], []
    for _ in range(400):
        pick = rng.integers(50, size=50)
        curve = scipy.stats.gmean(losses[:, :, pick].mean(-1), axis=1)
        untrained = float(scipy.stats.gmean(base[:, pick].mean(-1)))
        onset = find_onset(flops, curve, untrained)
        leads.append(11 - math.log10(onset.onset_flops) if onset.learned else -math.inf)
        shares.append(fraction_at(flops, curve, untrained, 1e11))
    # A quantile of 400 draws is off by about 0.13 standard deviations of the lead.
    assert (got.lead.low, got.lead.high) == pytest.approx(np.quantile(leads, [0.025, 0.975]), abs=0.5 * np.std(leads))
    spread = 0.5 * np.std(shares)
    expected = np.quantile(shares, [0.025, 0.975])
    assert (got.fraction_at_start.low, got.fraction_at_start.high) == pytest.approx(expected, abs=spread)
    assert got.learned_share == 1
    whole = find_onset(flops, scipy.stats.gmean(losses.mean(-1), axis=1), float(scipy.stats.gmean(base.mean(-1))))
    assert got.lead.estimate == pytest.approx(11 - math.log10(whole.onset_flops))


@pytest.mark.slow
def test_bootstrap_interval_covers_the_planted_lead():
    runs, hits = 100, 0
    rng = np.random.default_rng(2)
    for _ in range(runs):
        flops, losses = planted(rng, 100)
        got = lead_interval_bootstrap(flops, losses, 0.8, transition(), rng, n_resamples=300).lead
        hits += got.low <= 0.5 <= got.high
    assert abs(hits / runs - 0.95) < 4 * math.sqrt(0.95 * 0.05 / runs)


def test_bootstrap_counts_resamples_in_which_the_feature_is_not_learned():
    flops = 10.0 ** np.arange(9, 15)
    losses = np.full((6, 1, 40), 0.8)
    losses[3:, 0, :20] = 0.0  # ends at 0.4 in expectation: the threshold
    got = lead_interval_bootstrap(flops, losses, 0.8, transition(), np.random.default_rng(0), n_resamples=2000)
    # P(Binomial(40, 1/2) >= 21 zeros) = 0.437.
    assert got.learned_share == pytest.approx(scipy.stats.binom.sf(20, 40, 0.5), abs=0.045)
    assert got.lead.estimate == got.lead.low == -math.inf


def test_bootstrap_leaves_step_0_out_and_follows_its_generator():
    flops, losses = planted(np.random.default_rng(3), 30)
    more = np.concatenate([np.full((1, 2, 30), 9.0), losses])
    a = lead_interval_bootstrap(flops, losses, 0.8, transition(), np.random.default_rng(4), n_resamples=50)
    b = lead_interval_bootstrap(
        np.append(0.0, flops), more, 0.8, transition(), np.random.default_rng(4), n_resamples=50
    )
    c = lead_interval_bootstrap(flops, losses, 0.8, transition(), np.random.default_rng(5), n_resamples=50)
    assert a == b
    assert a != c


def test_seeds_give_a_t_interval_and_one_seed_gives_none():
    got = lead_interval_seeds(np.array([0.2, 0.3, 0.1]))
    assert got is not None
    expected = scipy.stats.ttest_1samp([0.2, 0.3, 0.1], 0).confidence_interval()
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    assert got.n == 3
    assert lead_interval_seeds(np.array([0.2])) is None
    with pytest.raises(ValueError, match="finite"):
        lead_interval_seeds(np.array([0.2, -math.inf]))


def test_results_are_frozen_and_short():
    onset = find_onset(FLOPS, np.array([0.8, 0, 0, 0, 0, 0.0]), 0.8)
    verdict = classify(onset, transition())
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.kind = "loud"
    assert all(len(repr(value)) < 120 for value in (onset, verdict, transition()))


@pytest.mark.parametrize(
    ("flops", "metric", "baseline", "ratio", "message"),
    [
        ([1.0, 2, 3], [0.5, np.nan, 0.1], 0.8, 0.5, "nan at index 1"),
        ([1.0, 2, 3], [0.5, -1, 0.1], 0.8, 0.5, "-1.0 at index 1"),
        ([0.0, 1], [0.5, 0.1], 0.8, 0.5, "at least 2 checkpoints"),
        ([], [], 0.8, 0.5, "got 0"),
        ([2.0, 1], [0.5, 0.1], 0.8, 0.5, "increase"),
        ([1.0, 2, 3], [0.5, 0.1], 0.8, 0.5, "got 3, 2"),
        ([1.0, 2], [0.5, 0.1], 0.0, 0.5, "baseline"),
        ([1.0, 2], [0.5, 0.1], 0.8, 1.0, "ratio"),
    ],
    ids=["nan", "negative", "one", "empty", "order", "lengths", "baseline", "ratio"],
)
def test_bad_curves_are_refused(flops, metric, baseline, ratio, message):
    with pytest.raises(ValueError, match=message):
        find_onset(np.array(flops), np.array(metric), baseline, ratio)


@pytest.mark.parametrize("shape", [(6, 0, 5), (6, 2, 1)], ids=["no-label", "one-example"])
def test_bootstrap_refuses_too_little(shape):
    with pytest.raises(ValueError, match="a label and 2 examples"):
        lead_interval_bootstrap(FLOPS, np.ones(shape), 0.8, transition(), np.random.default_rng(0))


def test_bootstrap_needs_a_transition():
    flat = find_transition(FLOPS, np.full(6, 0.65), chance_loss=0.65)
    with pytest.raises(ValueError, match="needs a transition"):
        lead_interval_bootstrap(FLOPS, np.ones((6, 1, 5)), 0.8, flat, np.random.default_rng(0))


def test_bootstrap_leaves_out_examples_that_have_no_such_label():
    """A label that half of the examples have counts as if the others were not there."""
    flops, losses = planted(np.random.default_rng(5), 400)
    half = losses.copy()
    half[:, 0, ::2] = np.nan
    got = lead_interval_bootstrap(flops, half, 0.8, transition(), np.random.default_rng(1), n_resamples=2000)
    curve = scipy.stats.gmean(np.stack([losses[:, 0, 1::2].mean(-1), losses[:, 1].mean(-1)]), axis=0)
    onset = find_onset(flops, curve, 0.8)
    assert got.lead.estimate == pytest.approx(11 - math.log10(onset.onset_flops), rel=1e-12)
    # The means of both labels are independent: variances of log means add, over 200 and 400 examples.
    whole = lead_interval_bootstrap(flops, losses, 0.8, transition(), np.random.default_rng(1), n_resamples=2000)
    width, narrower = (i.lead.high - i.lead.low for i in (got, whole))
    assert 1.05 < width / narrower < 1.45, "sqrt((1/200 + 1/400) / (2/400)) = 1.22"
    missing = half.copy()
    missing[3, 1, 5] = np.nan
    with pytest.raises(ValueError, match=r"missing \(NaN\) for the same examples at every step"):
        lead_interval_bootstrap(flops, missing, 0.8, transition(), np.random.default_rng(0))
    half[:, 0, 1:] = np.nan
    half[:, 0, 0] = 0.5
    with pytest.raises(ValueError, match="every resample must hold each label, and 1 of 400 examples"):
        lead_interval_bootstrap(flops, half, 0.8, transition(), np.random.default_rng(0), n_resamples=50)
