"""Which steps of a run get a checkpoint; imports NumPy only when asked, so that listing many runs is quick."""

from __future__ import annotations


def checkpoint_steps(n_steps: int, n_checkpoints: int) -> list[int]:
    """About `n_checkpoints` steps in [0, n_steps], sorted: half log-spaced, half evenly spaced, both ends included.

    Early steps where the two grids or rounding coincide are kept once, so the list may be a little shorter.
    """
    import numpy as np

    n_checkpoints = min(n_checkpoints, 2 * n_steps + 2)  # as many evenly spaced ones are every step
    n_log = n_checkpoints // 2
    logs = np.geomspace(1, n_steps, max(n_log, 1))
    evenly = np.linspace(0, n_steps, max(n_checkpoints - n_log, 2))
    return sorted({0, n_steps, *(round(float(s)) for s in (*logs, *evenly))})
