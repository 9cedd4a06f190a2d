"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from qfl_interp.config import TrainConfig
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
    - "wsd_s": the updates after the warm-up are `n_decays` equal stages, each stable and then decaying like "wsd" over
      its last `decay_fraction`; after a decay the rate is `lr` again at once, and training goes on from the decayed
      weights.

    References:
        arXiv 2505.03997 (cosine); arXiv 2404.06395 (warm-up, stable, decay); arXiv 2410.05192 (WSD-S, whose decays
        have another shape); arXiv 2407.06183 (CDAT).
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
        return lr * _decayed(config, step, n_steps, int(config.decay_fraction * n_steps))
    if config.schedule == "wsd_s":
        n_decays = setting_values(config.schedule_options, SCHEDULES["wsd_s"])["n_decays"]
        ends = [warmup + (n_steps - warmup) * (i + 1) // n_decays for i in range(n_decays)]
        stage = next(i for i, end in enumerate(ends) if step < end)
        start = ends[stage - 1] if stage else warmup
        return lr * _decayed(config, step, ends[stage], int(config.decay_fraction * (ends[stage] - start)))
    return lr


def scheduled_rate(run: RunConfig, step: int, *, peak: float | None = None) -> float:
    """The learning rate of a run's update after a step, counted as its checkpoints are."""
    start, n_steps = (run.first_step, run.n_steps)
    if run.fork is not None:
        start, n_steps = run.fork.clock_start, run.fork.clock_steps
    return learning_rate(run.train, step=step - start, n_steps=n_steps, peak=peak)


def _decayed(config: TrainConfig, step: int, end: int, decay: int) -> float:
    """1 until `decay` updates before `end`, then linearly towards the floor."""
    if step < end - decay:
        return 1.0
    return 1 - (1 - config.min_lr_fraction) * (step - (end - decay)) / decay
