"""When curves turn sharply, and whether the exact loss shows anything at that time.

A curve's break is the step of its largest second difference over a span of steps (Eq. 9-10). A cluster of tokens has a
hidden breakthrough if its tokens break, on average, after the exact loss has become flat for good; more generally, if
they break within any flat stretch, such as the plateau before a transition.

References:
    arXiv 2506.15872, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Integer

from qfl_interp.emergence.transition import MIN_PLATEAU_DECADES

BreakRule = Literal["paper", "down", "absolute"]
# The exact loss is flat where it ranges over at most this share of its range in the whole run.
FLAT_SHARE = 0.05
# It has come down where it is at most this share of its largest value.
LEARNED_SHARE = 0.05


class Acceleration(NamedTuple):
    """Second differences of curves.

    `values` is `[f(t + span) - f(t)] - [f(t) - f(t - span)]` of each curve, at the steps where both ends exist.
    """

    steps: Int[np.ndarray, " inner"]
    values: Float[np.ndarray, "*curve inner"]


def acceleration(values: Float[np.ndarray, "*curve time"], steps: Sequence[int], span: int) -> Acceleration:
    """The second difference of curves over `span` steps at every checkpoint that lies that far from both ends.

    Between checkpoints a curve is taken as linear, so that they need not be evenly spaced; where their gaps are wider
    than the span, this is the change of the slope from one gap to the next, times the span. The paper's D is 100 of
    10,000 steps.

    Raises:
        ValueError: Steps and values differ in length, steps do not increase, or no checkpoint lies within.

    References:
        arXiv 2506.15872, Eq. 9.
    """
    times = np.asarray(steps, dtype=np.int64)
    if len(times) != values.shape[-1] or np.any(np.diff(times) <= 0):
        raise ValueError(
            f"steps must increase and be one for each of the {values.shape[-1]} times, got {times.tolist()}."
        )
    fits = 0 < span < 2**62
    inner = times[(times - span >= times[0]) & (times + span <= times[-1])] if fits else times[:0]
    if inner.size == 0:
        raise ValueError(
            f"span must be positive and leave a checkpoint that far from both ends, got {span} with steps "
            f"{times[0]}..{times[-1]}. Choose a smaller span or more checkpoints."
        )
    here, after, before = (_at(values, times, inner + shift) for shift in (0, span, -span))
    return Acceleration(inner, (after - here) - (here - before))


def break_step(
    values: Float[np.ndarray, "*curve time"], steps: Sequence[int], span: int, *, rule: BreakRule = "paper"
) -> Int[np.ndarray, "*curve"]:
    """The step at which each curve turns most sharply; of equal ones the first.

    A turn is measured over `span` steps. Rule "paper" is the largest second difference, as Eq. 10 is written; of a
    falling loss that is where its fall *ends*. "down" is the smallest, where its fall begins, "absolute" the largest in
    size.

    Raises:
        ValueError: As for `acceleration`.

    References:
        arXiv 2506.15872, Eq. 10.
    """
    inner, turns = acceleration(values, steps, span)
    score = {"paper": turns, "down": -turns, "absolute": np.abs(turns)}[rule]
    return np.asarray(inner[score.argmax(axis=-1)])


def _at(
    values: Float[np.ndarray, "*curve time"], times: Int[np.ndarray, " time"], wanted: Int[np.ndarray, " inner"]
) -> Float[np.ndarray, "*curve inner"]:
    """The curves at other steps within their range, linear between checkpoints."""
    right = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    weight = (wanted - times[right - 1]) / (times[right] - times[right - 1])
    return values[..., right - 1] * (1 - weight) + values[..., right] * weight


class Stretch(NamedTuple):
    """A part of the run, from one checkpoint to another, both included."""

    first_step: int
    last_step: int


def flat(losses: Float[np.ndarray, " time"], steps: Sequence[int]) -> list[Stretch]:
    """The stretches of a run over which a loss is flat, in order.

    Flat is a stretch of at least `MIN_PLATEAU_DECADES` = 0.25 decades of compute (a factor of 1.8 in steps, as the
    transition's plateau) over which the loss ranges by at most `FLAT_SHARE` of its range in the whole run. Overlapping
    ones are joined, so that a slowly drifting plateau is one stretch. Step 0 has no logarithm and is left out.
    """
    kept = np.asarray(steps) > 0
    times, values = np.asarray(steps)[kept], losses[kept]
    tolerance = FLAT_SHARE * _range(losses)
    joined: list[Stretch] = []
    for start in range(len(times)):
        lows, highs = np.minimum.accumulate(values[start:]), np.maximum.accumulate(values[start:])
        stop = start + int(np.sum(highs - lows <= tolerance)) - 1
        if np.log10(times[stop] / times[start]) < MIN_PLATEAU_DECADES:
            continue
        first, last = int(times[start]), int(times[stop])
        if joined and first <= joined[-1].last_step:
            joined[-1] = Stretch(joined[-1].first_step, max(last, joined[-1].last_step))
        else:
            joined.append(Stretch(first, last))
    return joined


def plateau_after(losses: Float[np.ndarray, " time"], steps: Sequence[int]) -> int:
    """The paper's tau, measured: the first checkpoint from which on the loss stays flat to the end of the run.

    From there on it ranges by at most `FLAT_SHARE` of its range in the whole run. A run that ends within its fall has
    its tau close to the end, and no room for anything hidden.
    """
    backwards = losses[::-1]
    ranges = np.maximum.accumulate(backwards) - np.minimum.accumulate(backwards)
    n_flat = int(np.sum(ranges <= FLAT_SHARE * _range(losses)))
    return int(steps[len(losses) - n_flat])


def learned_step(losses: Float[np.ndarray, " time"], steps: Sequence[int]) -> int | None:
    """The first checkpoint from which on a loss stays below `LEARNED_SHARE` of its largest; None where it never does.

    A stretch that is flat from there on is no plateau: nothing is left to learn.
    """
    above = np.flatnonzero(losses > LEARNED_SHARE * losses.max())
    after = 0 if above.size == 0 else int(above[-1]) + 1
    return None if after == len(losses) else int(steps[after])


def cluster_breakthroughs(
    curves: Float[np.ndarray, "token time"],
    labels: Integer[np.ndarray, " token"],
    steps: Sequence[int],
    *,
    span: int,
    tau: int,
    stretches: Sequence[Stretch],
    learned: int | None = None,
    rule: BreakRule = "paper",
) -> pd.DataFrame:
    """When the tokens of each cluster break and whether that is hidden, one row a cluster.

    Args:
        curves: One trajectory a token.
        labels: Cluster of each token; negative ones are left out.
        steps: The step of each time.
        span: Over how many steps a turn is measured.
        tau: The step after which the exact loss stays flat: given, as the paper's 1,000, or of `plateau_after`.
        stretches: Where the exact loss is flat, of `flat`.
        learned: From which step on nothing is left to learn, of `learned_step`; None: there is always something.
        rule: Which turn counts, as for `break_step`.

    Returns:
        Columns `cluster`; `break_step`, `break_q25`, `break_q75`, mean and quartiles of the tokens' own breaks;
        `tau_step`; `hidden`, whether the mean lies after tau (the paper's verdict); `in_flat_share`, the share of the
        tokens whose break, with `span` steps to both sides, lies within one flat stretch; `in_flat`, whether more
        than half of them do (a mean could fall between two groups); `learned_share`, the share of the tokens whose
        break lies where nothing is left to learn: flat there is no plateau; `curve_break_step`, the break of the
        cluster's mean curve; `jump_share`, the share of the tokens that break within `span` steps of it: near 1 the
        single tokens jump, near 0 only their mean bends.
    """
    rows = []
    for cluster in np.unique(labels[labels >= 0]):
        inside = curves[labels == cluster]
        breaks = break_step(inside, steps, span, rule=rule)
        together = int(break_step(inside.mean(axis=0), steps, span, rule=rule))
        quiet = np.zeros(len(breaks), dtype=bool)
        for first, last in stretches:
            quiet |= (breaks - span >= first) & (breaks + span <= last)
        rows.append(
            {
                "cluster": int(cluster),
                "break_step": float(breaks.mean()),
                "break_q25": float(np.quantile(breaks, 0.25)),
                "break_q75": float(np.quantile(breaks, 0.75)),
                "tau_step": tau,
                "hidden": bool(breaks.mean() > tau),
                "in_flat_share": float(quiet.mean()),
                "in_flat": bool(quiet.mean() > 0.5),
                "learned_share": 0.0 if learned is None else float(np.mean(breaks >= learned)),
                "curve_break_step": together,
                "jump_share": float(np.mean(np.abs(breaks - together) <= span)),
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = [
    "cluster",
    "break_step",
    "break_q25",
    "break_q75",
    "tau_step",
    "hidden",
    "in_flat_share",
    "in_flat",
    "learned_share",
    "curve_break_step",
    "jump_share",
]


def _range(losses: Float[np.ndarray, " time"]) -> float:
    """Largest minus smallest."""
    return float(losses.max() - losses.min())
