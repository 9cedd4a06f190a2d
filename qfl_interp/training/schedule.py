"""The learning rate as a function of the step."""

from __future__ import annotations

import itertools
import math

from qfl_interp.config import TrainConfig
from qfl_interp.errors import QflError
from qfl_interp.recipes import SCHEDULES, setting_values
from qfl_interp.runs.config import RunConfig

# The warm-up starts at this fraction of the peak.
_WARMUP_START = 0.01


def learning_rate(config: TrainConfig, *, step: int, n_steps: int, peak: float | None = None) -> float:
    """The learning rate of update `step` (0 is the first) out of `n_steps`.

    With peak `lr` (the configuration's, or `peak`), floor `m = min_lr_fraction`, `w = int(warmup_fraction n_steps)` and
    k = step:

    - warm-up, k < w: `lr (0.01 + 0.99 k / w)`;
    - "cosine", k >= w: `lr (m + (1 - m)/2 (1 + cos(pi (k - w)/(n_steps - w))))`;
    - "linear", k >= w: `lr (1 - (1 - m) (k - w)/(n_steps - w))`;
    - "constant" and "cdat", k >= w: `lr`; "cdat" then measures one of its own at each update;
    - "ramp": `lr min(1, (k + 1) / w)`;
    - "wsd" (warm-up, stable, decay): `lr` until the last `int(decay_fraction n_steps)` updates, then linearly
      towards `lr m`, which would be reached one update after the last;
    - "wsd_s": the updates after the warm-up are `n_decays` equal stages, each stable and then decaying over its last
      `decay_fraction`. With p, the part of the decay that is done, the rate's
      inverse rises linearly: `1 / ((1 - p) / lr + p / (lr m))`, fast at first. After a decay the rate is `lr` again
      at once, and training goes on from the decayed weights.

    References:
        arXiv 2505.03997 (cosine); arXiv 2404.06395 (warm-up, stable, decay); arXiv 2410.05192 (WSD-S; the decay's
        shape as in the authors' training library, Levanter: schedule "inv"); arXiv 2407.06183 (CDAT).
    """
    if not 0 <= step < n_steps:
        raise ValueError(f"step must lie in [0, {n_steps}), got {step}. Update 0 is the first.")
    lr = config.lr if peak is None else peak
    warmup = int(config.warmup_fraction * n_steps)
    floor = config.min_lr_fraction
    if config.schedule == "ramp":
        return lr * min(1.0, (step + 1) / max(1, warmup))
    if step < warmup:
        return lr * (_WARMUP_START + (1 - _WARMUP_START) * step / warmup)
    progress = (step - warmup) / (n_steps - warmup)
    if config.schedule == "cosine":
        return lr * (floor + (1 - floor) / 2 * (1 + math.cos(math.pi * progress)))
    if config.schedule == "linear":
        return lr * (1 - (1 - floor) * progress)
    if config.schedule == "wsd":
        done = _decay_done(step, n_steps, int(config.decay_fraction * n_steps))
        return lr * (1 - (1 - floor) * done)
    if config.schedule == "wsd_s":
        start, end = next((start, end) for start, end in _stages(config, n_steps) if step < end)
        return lr / (1 + (1 / floor - 1) * _decay_done(step, end, int(config.decay_fraction * (end - start))))
    return lr


def _stages(config: TrainConfig, n_steps: int) -> list[tuple[int, int]]:
    """The stages of "wsd_s", each from its first update to the one behind its last."""
    n_decays = setting_values(config.schedule_options, SCHEDULES["wsd_s"])["n_decays"]
    warmup = int(config.warmup_fraction * n_steps)
    ends = [warmup + (n_steps - warmup) * i // n_decays for i in range(n_decays + 1)]
    return list(itertools.pairwise(ends))


def require_decays(config: TrainConfig, n_steps: int) -> None:
    """Raise `QflError` where a decay of "wsd_s" would be over before it lowers a rate: one is of 2 updates at least."""
    if config.schedule != "wsd_s" or config.decay_fraction == 0:
        return
    shortest = min(end - start for start, end in _stages(config, n_steps))
    if int(config.decay_fraction * shortest) < 2:
        raise QflError(
            f"decays of schedule 'wsd_s' must be 2 updates or more, got {int(config.decay_fraction * shortest)}: "
            f"decay_fraction {config.decay_fraction:g} of a stage of {shortest}. Take more steps, fewer n_decays, or a "
            "larger decay_fraction (0: none)."
        )


def scheduled_rate(run: RunConfig, step: int, *, peak: float | None = None) -> float:
    """The learning rate of a run's update after a step, counted as its checkpoints are."""
    start, n_steps = (run.first_step, run.n_steps)
    if run.fork is not None:
        start, n_steps = run.fork.clock_start, run.fork.clock_steps
    return learning_rate(run.train, step=step - start, n_steps=n_steps, peak=peak)


def _decay_done(step: int, end: int, decay: int) -> float:
    """How much of a decay over the last `decay` updates before `end` is done: 0 until it begins, towards 1."""
    return 0.0 if step < end - decay else (step - (end - decay)) / decay
