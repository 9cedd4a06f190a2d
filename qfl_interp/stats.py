"""Intervals and tests for means over examples and seeds: no number in a report stands without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

# Resamples drawn at a time hold at most this many values: 64 MiB in float64.
_BATCH_VALUES = 2**23

Alternative = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True, repr=False)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: The point estimate.
        low: Lower end; may be infinite.
        high: Upper end; may be infinite.
        n: Independent units (examples, seeds) that the interval rests on.
        level: Nominal coverage, in (0, 1).
        method: How the interval was made.
    """

    estimate: float
    low: float
    high: float
    n: int
    level: float
    method: str

    def __repr__(self) -> str:
        spread = f"[{self.low:.4g}, {self.high:.4g}]"
        return f"{self.estimate:.4g} {spread} ({100 * self.level:g} %, n={self.n}, {self.method})"


@dataclass(frozen=True, repr=False)
class TestResult:
    """A test of a null hypothesis.

    Attributes:
        statistic: The statistic's value on the data.
        p_value: In (0, 1]; never 0.
        n: Units that the test rests on: examples, or control trials.
        exact: Whether every arrangement under the null was counted; otherwise `p_value` is a Monte-Carlo one.
        alternative: The side that counts against the null.
    """

    __test__ = False  # not a test class: keeps pytest from collecting it

    statistic: float
    p_value: float
    n: int
    exact: bool
    alternative: Alternative

    def __repr__(self) -> str:
        kind = "exact" if self.exact else "Monte Carlo"
        return f"{self.statistic:.4g} (p={self.p_value:.3g}, {self.alternative}, n={self.n}, {kind})"


def bootstrap_mean(
    values: Shaped[np.ndarray, " example"],
    rng: np.random.Generator,
    n_resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """The mean over examples with its percentile bootstrap interval.

    For the mean of a difference, pass the paired differences: examples are then resampled as pairs.

    Args:
        values: One number (or bool) an example; at least 2.
        rng: The only source of randomness.
        n_resamples: Bootstrap resamples; the paper's ablations use 10,000.
        level: Nominal coverage.

    Raises:
        ValueError: Fewer than 2 values, or one that is not finite.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    import scipy.stats  # half a second, and most readers of tables need none of it

    data = _finite(values, "values", at_least=2)
    found = scipy.stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=n_resamples,
        batch=max(1, _BATCH_VALUES // data.size),
        confidence_level=level,
        method="percentile",
        rng=rng,
    ).confidence_interval
    return Interval(float(data.mean()), float(found.low), float(found.high), data.size, level, "percentile bootstrap")


def paired_sign_flip(
    treated: Shaped[np.ndarray, " example"],
    control: Shaped[np.ndarray, " paired"],
    rng: np.random.Generator,
    *,
    alternative: Alternative = "two-sided",
    n_resamples: int = 10_000,
) -> TestResult:
    """Permutation test that the paired differences `treated - control` are symmetric about 0.

    Under the null each difference's sign is arbitrary. All `2**m` sign patterns of the m differences that are
    not 0 are counted if there are at most `n_resamples` of them; otherwise `n_resamples` random ones, with
    p = (1 + hits) / (1 + n_resamples). Two-sided p is twice the smaller one-sided one, at most 1.

    Args:
        treated: One value an example (correctness or loss under the feature's ablation).
        control: The same examples under the control (the mean over random ablations).
        rng: Used by the Monte-Carlo case only.
        alternative: "greater" if the treatment is expected to raise the value.
        n_resamples: Sign patterns drawn, and the largest number counted exactly.

    Returns:
        The mean difference and its p-value; p is 1 if no difference is other than 0.

    Raises:
        ValueError: The lengths differ, there is no example, or a value is not finite.

    References:
        Phipson and Smyth (2010), for the +1 of the Monte-Carlo case.
    """
    first, second = _finite(treated, "treated"), _finite(control, "control")
    if first.size != second.size:
        raise ValueError(
            f"treated and control must hold the same examples, got {first.size} and {second.size} values. "
            "Pass one value an example, in the same order."
        )
    difference = first - second
    # A difference of 0 is the same under both signs: leaving it out changes no p-value and makes more
    # cases exact.
    moved = difference[difference != 0]
    exact = 2**moved.size <= n_resamples  # Python integers: no overflow
    flips = _all_flips(moved.size) if exact else _random_flips(moved.size, n_resamples, rng)
    n_patterns, as_high, as_low = 0, 0, 0
    # Sums in another order differ in the last bits; without the slack the observed pattern might not match
    # itself.
    slack = 1e-12 * np.abs(moved).sum()
    for flip in flips:
        sums = moved.sum() - 2 * (flip @ moved)
        n_patterns += flip.shape[0]
        as_high += int(np.sum(sums >= moved.sum() - slack))
        as_low += int(np.sum(sums <= moved.sum() + slack))
    extra = 0 if exact else 1  # the observed pattern is one of all; it has to be added to random ones
    greater, less = ((extra + hits) / (extra + n_patterns) for hits in (as_high, as_low))
    p_value = {"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}[alternative]
    return TestResult(float(difference.mean()), p_value, difference.size, exact, alternative)


def _all_flips(n: int) -> Iterator[Float[np.ndarray, "pattern n"]]:
    """Every pattern of n flips (1 = the sign is turned), in one block."""
    yield (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.float64)


def _random_flips(n: int, n_patterns: int, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "pattern n"]]:
    """Independent fair patterns of n flips, in blocks of bounded size."""
    n_bytes = -(-n // 8)
    for start in range(0, n_patterns, step := max(1, _BATCH_VALUES // n)):
        size = (min(step, n_patterns - start), n_bytes)
        packed = rng.integers(256, size=size, dtype=np.uint8)
        yield np.unpackbits(packed, axis=1, count=n).astype(np.float64)


def rank_p_value(
    observed: float,
    controls: Shaped[np.ndarray, " trial"],
    alternative: Literal["greater", "less"] = "greater",
) -> TestResult:
    """One value against control trials: p = (1 + #{control at least as extreme}) / (trials + 1).

    With K trials p cannot fall below 1 / (K + 1): 19 trials are the fewest that can reach 0.05.

    Args:
        observed: The value in question.
        controls: The same quantity under the control, one value a trial.
        alternative: "greater" counts controls >= observed, "less" controls <= observed.

    Raises:
        ValueError: No control, or a value that is not finite.
    """
    data = _finite(controls, "controls")
    value = float(_finite(np.atleast_1d(observed), "observed")[0])
    hits = int(np.sum(data >= value) if alternative == "greater" else np.sum(data <= value))
    return TestResult(value, (1 + hits) / (data.size + 1), data.size, True, alternative)


def holm(p_values: Shaped[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Holm's adjusted p-values: rejecting those <= a bounds the chance of any false rejection by a.

    The i-th smallest (from 0) of m becomes the running maximum of (m - i) p, at most 1; the order is kept.

    Raises:
        ValueError: No p-value, or one outside [0, 1].

    References:
        Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    data = _finite(p_values, "p_values")
    if data.min() < 0 or data.max() > 1:
        raise ValueError(f"p_values must lie in [0, 1], got {data.min():g} to {data.max():g}. Pass raw p-values.")
    order = np.argsort(data, kind="stable")
    factors = np.arange(data.size, 0, -1)
    adjusted = np.empty_like(data)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * data[order]), 1.0)
    return adjusted


def t_interval(values: Shaped[np.ndarray, " unit"], level: float = 0.95) -> Interval:
    """Student's t interval for the mean over independent units, such as seeds.

    Raises:
        ValueError: Fewer than 2 values (one value has no spread), or one that is not finite.
    """
    import scipy.stats  # as in `bootstrap_mean`

    data = _finite(values, "values", at_least=2)
    mean = float(data.mean())
    half = float(scipy.stats.t.ppf((1 + level) / 2, data.size - 1) * scipy.stats.sem(data))
    return Interval(mean, mean - half, mean + half, data.size, level, "Student t")


def _finite(values: Shaped[np.ndarray, " unit"], name: str, at_least: int = 1) -> Float[np.ndarray, " unit"]:
    """The values as float64, checked."""
    data = np.asarray(values, dtype=np.float64)
    if data.size < at_least:
        raise ValueError(f"{name} must hold at least {at_least} values, got {data.size}. Pass more examples.")
    bad = np.flatnonzero(~np.isfinite(data))
    if bad.size:
        raise ValueError(
            f"{name} must be finite, got {data[bad[0]]} at index {bad[0]} ({bad.size} in all). "
            "Drop or explain these values before averaging."
        )
    return data
