"""Quiet, loud or not learned: when a feature becomes decodable relative to the loss's transition.

The lead is log10(FLOPs at the transition's start) minus log10(FLOPs at the feature's onset), in decades of
compute: positive if the feature came first. `onset` and `transition` define the two times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from qfl_interp.emergence.aggregation import geometric_mean
from qfl_interp.emergence.onset import RATIO, Onset, after_step_0, find_onset, fraction_at, onsets_log10
from qfl_interp.emergence.transition import Transition
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.stats import Interval, t_interval

# Values drawn at a time while bootstrapping: 64 MiB in float64.
_BATCH_VALUES = 2**23

Kind = Literal["quiet", "loud", "not learned", "no transition"]
Phase = Literal["before", "within", "after"]


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether a feature is quiet.

    Attributes:
        kind: "quiet": learned before the transition's start; "loud": within or after it; "not learned";
            "no transition": learned, but the loss has none.
        phase: Where the onset lies relative to the transition; None if one of them is missing.
        lead: log10(transition start / onset) in decades of compute, positive = before; NaN if one is missing.
        lead_low: Its lower bound, from the checkpoints and validations on either side and the interval given.
        lead_high: Its upper bound; infinite if the first checkpoint is past the onset.
        certain: Whether the whole range [lead_low, lead_high] has the verdict's side of 0. Always true of the
            other two kinds, which hang on no lead.
        reason: The verdict in one sentence.
    """

    kind: Kind
    phase: Phase | None
    lead: float
    lead_low: float
    lead_high: float
    certain: bool
    reason: str

    def __repr__(self) -> str:
        if math.isnan(self.lead):
            return f"Verdict({self.kind}: {self.reason})"
        doubt = "" if self.certain else ", uncertain"
        span = f"[{self.lead_low:+.3f}, {self.lead_high:+.3f}]"
        return f"Verdict({self.kind}, lead {self.lead:+.3f} {span} decades{doubt})"


class LeadBootstrap(NamedTuple):
    """What resampling the probe's test examples does to a feature's timing.

    Attributes:
        lead: The lead; -inf in resamples in which the feature is not learned.
        fraction_at_start: The metric at the transition's start as a fraction of the baseline.
        learned_share: Share of the resamples in which the feature is learned.
    """

    lead: Interval
    fraction_at_start: Interval
    learned_share: float


def classify(onset: Onset, transition: Transition, interval: Interval | None = None) -> Verdict:
    """Quiet, loud or not learned, with the lead and its bounds.

    The bounds always include what sampling in time leaves open: the onset lies between two checkpoints, the
    start between two validations. The start itself is the last validation on the plateau, its earliest
    possible time, so the lead errs against "quiet".

    Args:
        onset: The feature's.
        transition: The loss curve's.
        interval: An interval for the lead over examples or seeds, which widens the bounds.
    """
    nan = math.nan
    if not onset.learned:
        reason = f"the metric ends at {onset.final_fraction:.3g} x its baseline, above the threshold"
        return Verdict("not learned", None, nan, nan, nan, True, reason)
    if not transition.found:
        return Verdict("no transition", None, nan, nan, nan, True, transition.reason)
    lead = math.log10(transition.start_flops / onset.onset_flops)
    low = math.log10(transition.start_bracket.low / onset.bracket.high)
    high = math.log10(transition.start_bracket.high / onset.bracket.low) if onset.bracket.low else math.inf
    if interval is not None:
        low, high = min(low, interval.low), max(high, interval.high)
    quiet = lead > 0
    phase: Phase = "before" if quiet else "within" if onset.onset_flops <= transition.end_flops else "after"
    certain = low > 0 if quiet else high <= 0
    reason = f"learned {abs(lead):.3f} decades {'before' if quiet else 'after'} the transition starts"
    if not certain:
        reason += f"; the range [{low:+.3f}, {high:+.3f}] leaves the other verdict open"
    return Verdict("quiet" if quiet else "loud", phase, lead, low, high, certain, reason)


def lead_interval_bootstrap(
    flops: Shaped[np.ndarray, " step"],
    losses: Float[np.ndarray, "step label example"],
    baseline: float | Float[np.ndarray, "label example"],
    transition: Transition,
    rng: np.random.Generator,
    *,
    ratio: float = RATIO,
    n_resamples: int = 10_000,
) -> LeadBootstrap:
    """95 % percentile bootstrap of a feature's lead over the probe's test examples.

    Each resample draws examples with replacement, the same ones for every checkpoint and label; the metric is
    the geometric mean over labels of the mean loss. The transition is held fixed, and so is the fitted probe:
    the interval is for the test examples, not for other runs.

    Args:
        flops: Training FLOPs of each checkpoint, increasing; a leading 0 (step 0) is left out.
        losses: Each example's loss under the probe of the label's selected layer, for the labels of one
            group; NaN, at every step, where an example has no such label.
        baseline: The untrained model's metric, or its losses on the same examples, then resampled too.
        transition: With `found` true; its start must lie within the checkpoints.
        rng: The only source of randomness.
        ratio: As in `find_onset`.
        n_resamples: Bootstrap resamples.

    Raises:
        ValueError: No transition, no label, fewer than 2 examples, no resample, a loss that is negative or not finite,
            or as in `find_onset` and `fraction_at`.
        QflError: So many resamples do not fit into memory.
    """
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}. The paper uses 10,000.")
    require_memory(32 * n_resamples, available_bytes(), f"leads of {n_resamples:,} resamples", "Take fewer.")
    if not transition.found:
        raise ValueError(f"a lead needs a transition, and there is none: {transition.reason}.")
    data, base = np.asarray(losses, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    absent = np.isnan(data)
    if (
        (data.shape[1] == 0 or data.shape[2] < 2 or np.isinf(data).any() or np.nanmin(data) < 0)
        or (absent != absent[:1]).any()
        or absent[0].all(axis=-1).any()
    ):
        raise ValueError(
            "losses must be finite, at least 0, missing (NaN) for the same examples at every step and hold a label "
            f"and 2 examples or more, got shape {data.shape}. Pass the fitted labels of one group."
        )
    n_examples = data.shape[2]
    curve = geometric_mean(np.nanmean(data, axis=-1))
    untrained = float(base if base.ndim == 0 else geometric_mean(base.mean(axis=-1)))
    onset = find_onset(flops, curve, untrained, ratio)
    share = fraction_at(flops, curve, untrained, transition.start_flops)
    x, _ = after_step_0(flops, curve)
    start = math.log10(transition.start_flops)
    leads, shares = [], []
    for curves, bases in _resampled(data[len(data) - x.size :], base, rng, n_resamples):
        leads.append(start - onsets_log10(x, curves, ratio * bases))
        shares.append(np.array([np.interp(start, x, row) for row in curves]) / bases)

    def interval(estimate: float, parts: list[np.ndarray]) -> Interval:
        # Inverted CDF: an order statistic, never inf - inf.
        ends = np.quantile(np.concatenate(parts), [0.025, 0.975], method="inverted_cdf")
        return Interval(estimate, float(ends[0]), float(ends[1]), n_examples, 0.95, "percentile bootstrap")

    lead = start - math.log10(onset.onset_flops) if onset.learned else -math.inf
    learned_share = float(np.isfinite(np.concatenate(leads)).mean())
    return LeadBootstrap(interval(lead, leads), interval(share, shares), learned_share)


def _resampled(
    losses: Float[np.ndarray, "step label example"],
    baseline: Float[np.ndarray, "*label_example"],
    rng: np.random.Generator,
    n_resamples: int,
) -> Iterator[tuple[Float[np.ndarray, "resample step"], Float[np.ndarray, " resample"]]]:
    """Metric curves and baselines under resampled examples, in blocks of bounded size."""
    n_steps, n_labels, n_examples = losses.shape
    rows = losses.reshape(-1, n_examples)
    if baseline.ndim:
        rows = np.concatenate([rows, baseline])
    present = ~np.isnan(losses[0])
    rows = np.nan_to_num(rows)
    step = max(1, _BATCH_VALUES // max(n_examples, len(rows)))
    for first in range(0, n_resamples, step):
        n_drawn = min(step, n_resamples - first)
        counts = rng.multinomial(n_examples, np.full(n_examples, 1 / n_examples), n_drawn).astype(np.float64)
        sums = counts @ rows.T
        of_steps = sums[:, : n_steps * n_labels].reshape(-1, n_steps, n_labels)
        n_present = counts @ present.T
        if n_present.min() == 0:
            raise ValueError(
                f"every resample must hold each label, and {int(present.sum(axis=-1).min())} of {n_examples} examples "
                "have one of them. Score the probes on more examples."
            )
        curves = geometric_mean(of_steps / n_present[:, None])
        yield (
            curves,
            geometric_mean(sums[:, n_steps * n_labels :] / n_examples) if baseline.ndim else np.full(n_drawn, baseline),
        )


def lead_interval_seeds(leads: Shaped[np.ndarray, " seed"]) -> Interval | None:
    """Student's 95 % interval for the mean lead over runs that differ in their seed; None for a single run.

    Raises:
        ValueError: No lead, or one that is not finite: report runs in which the feature was not learned
            apart.
    """
    return None if np.size(leads) == 1 else t_interval(leads)
