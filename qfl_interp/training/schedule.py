"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from qfl_interp.config import TrainConfig

# The warm-up starts at this fraction of the peak.
_WARMUP_START = 0.01


def learning_rate(config: TrainConfig, *, step: int, n_steps: int) -> float:
    """The learning rate of update `step` (0 is the first) out of `n_steps`.

    With peak `lr`, floor `m = min_lr_fraction`, `w = int(warmup_fraction n_steps)` and k = step:

    - warm-up, k < w: `lr (0.01 + 0.99 k / w)`;
    - "cosine", k >= w: `lr (m + (1 - m)/2 (1 + cos(pi (k - w)/(n_steps - w))))`;
    - "wsd" (warm-up, stable, decay): `lr` until the last `int(decay_fraction n_steps)` updates, then linearly
      towards `lr m`, which would be reached one update after the last.

    References:
        arXiv 2505.03997 (cosine); arXiv 2404.06395 (warm-up, stable, decay).
    """
    if not 0 <= step < n_steps:
        raise ValueError(f"step must lie in [0, {n_steps}), got {step}. Update 0 is the first.")
    warmup = int(config.warmup_fraction * n_steps)
    floor = config.min_lr_fraction
    if step < warmup:
        return config.lr * (_WARMUP_START + (1 - _WARMUP_START) * step / warmup)
    if config.schedule == "cosine":
        progress = (step - warmup) / (n_steps - warmup)
        return config.lr * (floor + (1 - floor) / 2 * (1 + math.cos(math.pi * progress)))
    decay = int(config.decay_fraction * n_steps)
    if step < n_steps - decay:
        return config.lr
    return config.lr * (1 - (1 - floor) * (step - (n_steps - decay)) / decay)
