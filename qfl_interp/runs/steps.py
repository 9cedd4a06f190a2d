"""Which steps of a run get a checkpoint, and which a validation.

Imports NumPy only when asked, so that listing many runs is quick.
"""

from __future__ import annotations

from collections.abc import Sequence

# Validations of a run whose configuration does not say how often.
N_VALIDATIONS = 110


def checkpoint_steps(n_steps: int, n_checkpoints: int, every: int | None = None) -> list[int]:
    """About `n_checkpoints` steps in [0, n_steps], sorted: half log-spaced, half evenly spaced, both ends included.

    Early steps where the two grids or rounding coincide are kept once, so the list may be a little shorter. With
    `every` it is every so many steps instead, and the last.
    """
    if every is not None:
        return sorted({*range(0, n_steps, every), n_steps})
    import numpy as np

    n_checkpoints = min(n_checkpoints, 2 * n_steps + 2)  # as many evenly spaced ones are every step
    n_log = n_checkpoints // 2
    logs = np.geomspace(1, n_steps, max(n_log, 1))
    evenly = np.linspace(0, n_steps, max(n_checkpoints - n_log, 2))
    return sorted({0, n_steps, *(round(float(s)) for s in (*logs, *evenly))})


def evaluation_steps(n_steps: int, eval_fraction: float | None) -> Sequence[int]:
    """The steps in [0, n_steps) after which a validation follows, ascending; one more follows the last step.

    With a fraction f every `max(1, int(f n_steps))` steps. Without one the first steps and then log-spaced ones: the
    finest such grid of at most `N_VALIDATIONS` steps after step 0. A loss curve is read over log compute, where this
    grid is even.
    """
    if eval_fraction is not None:
        return range(0, n_steps, max(1, int(eval_fraction * n_steps)))
    if n_steps <= N_VALIDATIONS:
        return range(n_steps)
    import numpy as np

    def grid(n: int) -> list[int]:
        return np.unique(np.geomspace(1, n_steps, n).round().astype(int)).tolist()

    n = N_VALIDATIONS
    while len(grid(n + 1)) <= N_VALIDATIONS:
        n += 1
    return [0, *grid(n)[:-1]]
