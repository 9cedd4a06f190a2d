"""What a sweep will cost on this machine: seconds and bytes of each run, from a few short measured ones."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from qfl_interp.runs.scratch import scratch_folder
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.plan import PlannedRun, task_at
from qfl_interp.training.train import train_planned

# Sizes that are measured, from the cheapest update to the dearest.
_N_SIZES = 4
# Updates that would take longer than about this many FLOPs are not measured but extrapolated.
_MOST_FLOPS = 1e11
# A measurement goes on for at least this many seconds.
_LEAST_SECONDS = 0.5
# Examples of a measurement's two validations, at most: what a thousand take follows from the updates.
_MOST_VALIDATED = 64
# Bytes of a row of metrics, and of what else a run keeps beside its weights.
_ROW_BYTES, _FIXED_BYTES = 230, 4_000


class CostModel(NamedTuple):
    """Measured cost of an update, by its size, and of what comes with every run.

    `flops` are the actual FLOPs of the updates measured, ascending, and `seconds` what each took; `fixed` are the
    seconds a run takes beside its updates and validations.
    """

    flops: Float[np.ndarray, " size"]
    seconds: Float[np.ndarray, " size"]
    fixed: float

    def update_seconds(self, flops: float) -> float:
        """Seconds of an update: log-log interpolation; beyond the largest measured, at its FLOPs a second."""
        largest = float(self.flops[-1])
        if flops > largest:
            return float(self.seconds[-1]) * flops / largest
        return float(np.exp(np.interp(np.log(flops), np.log(self.flops), np.log(self.seconds))))

    def run_seconds(self, run: PlannedRun) -> float:
        """Seconds of a run trained alone: its updates, its validations (a third of an update an example), the rest."""
        config = run.config
        update = self.update_seconds(run.actual_flops / config.n_steps)
        validation = update / 3 * config.n_val / config.batch_size
        return self.fixed + config.n_steps * update + config.n_validations * validation


def calibrate(runs: Sequence[PlannedRun], *, device: str = "cpu", threads: int = 1) -> CostModel:
    """Measure updates of a few of the sizes among `runs`, some seconds in all; nothing is kept."""
    by_size: dict[float, PlannedRun] = {}
    for run in runs:
        by_size.setdefault(run.actual_flops / run.config.n_steps, run)
    sizes = sorted(by_size)
    affordable = [size for size in sizes if size <= _MOST_FLOPS] or sizes[:1]
    picked = sorted({affordable[round(at)] for at in np.linspace(0, len(affordable) - 1, _N_SIZES)})
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        _seconds(by_size[picked[0]], 1, device)  # compiled samplers and libraries load at the first use
        measured = [_update_seconds(by_size[size], device) for size in picked]
    finally:
        torch.set_num_threads(before)
    seconds = [update for update, _ in measured]
    return CostModel(np.array(picked), np.array(seconds), float(np.median([fixed for _, fixed in measured])))


def _update_seconds(run: PlannedRun, device: str) -> tuple[float, float]:
    """Seconds of an update, and of a run beside its updates and two validations."""
    one, n = _seconds(run, 1, device), 4
    while True:
        many = _seconds(run, n, device)
        if many >= _LEAST_SECONDS + one or n >= 512:
            break
        n *= 4
    update = max((many - one) / (n - 1), 1e-6)
    validations = 2 * update / 3 * _n_validated(run) / run.config.batch_size
    return update, max(one - update - validations, 0.0)


def _seconds(run: PlannedRun, n_steps: int, device: str) -> float:
    """Seconds that so many updates of a run take in a directory that is thrown away."""
    config = run.config
    train = dataclasses.replace(config.train, budget_flops=None, n_steps=n_steps, eval_fraction=1.0)
    train = dataclasses.replace(train, n_val=_n_validated(run))
    short = dataclasses.replace(config, train=train, last_step=n_steps)
    task = task_at(config.task, config.length, config.task_options)
    with scratch_folder("qfl-calibration-") as folder:
        start = time.perf_counter()
        train_planned(task, short, folder / "run", device=device)
        return time.perf_counter() - start


def _n_validated(run: PlannedRun) -> int:
    """Examples of a validation while the run is measured."""
    return min(run.config.n_val, _MOST_VALIDATED)


def run_bytes(run: PlannedRun, n_parameters: int, config: SweepConfig) -> int:
    """Bytes a finished run keeps on disk: float32 weights of its checkpoints, rows of metrics, the rest."""
    train = run.config.train
    weights = 4 * n_parameters
    if config.keep == "final":
        return weights + _ROW_BYTES * (run.config.n_validations + 1) + _FIXED_BYTES
    moments = 3 if train.save_optimizer else 1
    n_checkpoints = len(run.config.steps_to_save)
    return n_checkpoints * moments * weights + _ROW_BYTES * (run.config.n_steps + 1) + _FIXED_BYTES
