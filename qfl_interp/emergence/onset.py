"""When a feature becomes decodable.

A feature is learned if its test metric (log loss or mean squared error of one group of labels) goes below
`ratio` = 0.5 times the untrained model's value and stays below it to the last checkpoint. Its onset is the
crossing, interpolated linearly in log10 FLOPs between the checkpoints on either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from qfl_interp.emergence.transition import Bracket

# A learned feature's metric is below this fraction of the untrained model's.
RATIO = 0.5


@dataclass(frozen=True, repr=False)
class Onset:
    """When a feature's metric fell below the threshold for good.

    Attributes:
        learned: Whether it did.
        onset_flops: Training FLOPs at the crossing, interpolated; NaN if not learned. The first checkpoint's
            if that is below already.
        bracket: The checkpoints on either side; `low` is 0 if the first is below already, both NaN if not
            learned.
        final_fraction: The metric at the last checkpoint as a fraction of the baseline.
    """

    learned: bool
    onset_flops: float
    bracket: Bracket
    final_fraction: float

    def __repr__(self) -> str:
        end = f"final {self.final_fraction:.3g} x baseline"
        if not self.learned:
            return f"Onset(not learned, {end})"
        between = f"between {self.bracket.low:.3g} and {self.bracket.high:.3g}"
        return f"Onset({self.onset_flops:.3g} FLOPs, {between}, {end})"


def find_onset(
    flops: Shaped[np.ndarray, " step"],
    metric: Shaped[np.ndarray, " _"],
    baseline: float,
    ratio: float = RATIO,
) -> Onset:
    """When a feature's metric goes below `ratio` times its baseline and stays there.

    Args:
        flops: Training FLOPs of each checkpoint, increasing; a leading 0 (step 0) is left out.
        metric: Test log loss or mean squared error, at least 0.
        baseline: The untrained model's metric, above 0.
        ratio: In (0, 1); lower asks for more. 0.5 is this library's choice: the paper sets its marks by hand.

    Raises:
        ValueError: The arrays differ in length, hold fewer than 2 checkpoints with FLOPs above 0 or a value
            that is not finite, the FLOPs do not increase, or baseline or ratio is out of range.
    """
    x, values = after_step_0(flops, metric)
    threshold = _threshold(baseline, ratio)
    kept = np.asarray(flops, dtype=np.float64)[-x.size :]
    below = values < threshold
    final = float(values[-1] / baseline)
    onset = float(onsets_log10(x, values[None], np.array([threshold]))[0])
    if math.isinf(onset):
        return Onset(False, math.nan, Bracket(math.nan, math.nan), final)
    index = values.size - int(np.argmax(~below[::-1])) if not below.all() else 0
    bracket = Bracket(float(kept[index - 1]) if index else 0.0, float(kept[index]))
    return Onset(True, float(10**onset), bracket, final)


def fraction_at(
    flops: Shaped[np.ndarray, " step"], metric: Shaped[np.ndarray, " _"], baseline: float, at_flops: float
) -> float:
    """A metric as a fraction of its baseline at `at_flops`, linear in log10 FLOPs between checkpoints.

    At the transition's start it shows a decline on the plateau that falls short of the threshold.

    Raises:
        ValueError: As in `find_onset`, or `at_flops` lies outside the checkpoints after step 0.
    """
    x, values = after_step_0(flops, metric)
    share = values / (_threshold(baseline, RATIO) / RATIO)
    at = math.log10(at_flops) if at_flops > 0 else -math.inf
    if not x[0] <= at <= x[-1]:
        raise ValueError(
            f"at_flops must lie within the checkpoints after step 0, {10 ** x[0]:.3g} to {10 ** x[-1]:.3g}, "
            f"got {at_flops:.3g}. Save checkpoints on both sides of it."
        )
    return float(np.interp(at, x, share))


def after_step_0(
    flops: Shaped[np.ndarray, " step"], metric: Shaped[np.ndarray, " _"]
) -> tuple[Float[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """log10 FLOPs and metric of the checkpoints after step 0."""
    compute, values = np.asarray(flops, dtype=np.float64), np.asarray(metric, dtype=np.float64)
    if compute.size != values.size:
        raise ValueError(f"flops and metric must have one value a checkpoint, got {compute.size}, {values.size}.")
    bad = np.flatnonzero(~(np.isfinite(compute) & np.isfinite(values)) | (values < 0))
    if bad.size:
        raise ValueError(
            f"flops and metric must be finite and at least 0, got {compute[bad[0]]} and {values[bad[0]]} "
            f"at index {bad[0]}. Leave out checkpoints whose probe could not be fitted."
        )
    if compute.size and (compute[0] < 0 or np.any(np.diff(compute) <= 0)):
        raise ValueError("flops must be at least 0 and increase from each checkpoint to the next. Sort by step.")
    kept = compute > 0
    if kept.sum() < 2:
        raise ValueError(
            f"an onset needs at least 2 checkpoints with flops > 0, got {kept.sum()}. Choose more steps, or save more."
        )
    return np.log10(compute[kept]), values[kept]


def _threshold(baseline: float, ratio: float) -> float:
    """`ratio` times the baseline, both checked."""
    if not (math.isfinite(baseline) and baseline > 0):
        raise ValueError(f"baseline must be finite and above 0, got {baseline}. Pass the untrained model's metric.")
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must lie in (0, 1), got {ratio}. 0.5 asks for half the untrained metric.")
    return ratio * baseline


def onsets_log10(
    x: Float[np.ndarray, " step"],
    curves: Float[np.ndarray, "curve step"],
    thresholds: Float[np.ndarray, " curve"],
) -> Float[np.ndarray, " curve"]:
    """log10 FLOPs of each curve's last downward crossing, linear in x; inf if it ends above its threshold."""
    above = curves >= thresholds[:, None]
    index = np.where(above.any(axis=1), x.size - np.argmax(above[:, ::-1], axis=1), 0)
    learned = index < x.size
    after = np.minimum(index, x.size - 1)
    before = np.maximum(after - 1, 0)
    row = np.arange(len(curves))
    upper, lower = curves[row, before], curves[row, after]
    crossed = learned & (index > 0)
    gap = np.where(crossed, upper - lower, 1.0)
    weight = np.where(crossed, (upper - thresholds) / gap, 1.0)
    return np.where(learned, x[before] + weight * (x[after] - x[before]), np.inf)
