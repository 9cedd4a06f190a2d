"""From a sweep's definition to its runs: steps and sizes of each, and what is left out, before anything is trained."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from qfl_interp.config import Options
from qfl_interp.data.registry import load_task
from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.runs.config import RunConfig
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.training.train import mean_real_tokens, plan_run


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep, named by the hash of its configuration."""

    config: RunConfig

    @property
    def run_id(self) -> str:
        """The run's name: task, length and a hash of its configuration."""
        return self.config.run_id

    @property
    def path(self) -> str:
        """Its directory, relative to the sweep's folder."""
        return f"runs/{self.config.task}/{self.run_id}"

    @property
    def budget_flops(self) -> float:
        """Its nominal budget, the grid's."""
        assert self.config.train.budget_flops is not None
        return self.config.train.budget_flops

    @property
    def flops(self) -> float:
        """Nominal FLOPs it trains for: whole updates, so not quite the budget."""
        return self.config.n_steps * self.config.flops_per_step

    @property
    def actual_flops(self) -> float:
        """FLOPs of its matrix products, padding and real widths included."""
        return self.config.n_steps * self.config.actual_flops_per_step


class SweepPlan(NamedTuple):
    """The runs of a sweep.

    Each once, cheapest first; and how many points are left out, by reason.
    """

    runs: tuple[PlannedRun, ...]
    left_out: dict[str, int]


@functools.lru_cache(maxsize=64)
def task_at(name: str, length: int | None, options: Options) -> Task:
    """A registered task, made once."""
    return load_task(name, length, **options)


@functools.lru_cache(maxsize=4096)
def _real_tokens(task: Task, seed: int) -> float:
    return mean_real_tokens(task, seed)


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Steps and sizes of every run of a sweep.

    Raises:
        QflError: Unknown task, a length the task does not have, a task too small to hold anything out, or no run left.
    """
    runs: dict[str, PlannedRun] = {}
    left_out: Counter[str] = Counter()
    for point in config.points():
        try:
            task = task_at(point.task, point.length, point.task_options)
        except (ValueError, QflError) as error:
            raise QflError(f"sweep {config.name!r}: {error}") from error
        run = plan_run(
            task, point.model, point.train, n_ctx_real=_real_tokens(task, point.train.seed), allow_overshoot=True
        )
        if run.n_steps < config.min_steps:
            left_out[f"fewer than {config.min_steps} updates"] += 1
        elif run.n_steps > config.max_steps:
            left_out[f"more than {config.max_steps:,} updates"] += 1
        elif run.run_id in runs:
            left_out["in an earlier grid already"] += 1
        else:
            runs[run.run_id] = PlannedRun(run)
    if not runs:
        reasons = ", ".join(f"{n} with {reason}" for reason, n in left_out.items())
        raise QflError(
            f"sweep {config.name!r} has no run: of {sum(left_out.values())} points, {reasons}. "
            "Change the budgets, or min_steps and max_steps."
        )
    return SweepPlan(tuple(sorted(runs.values(), key=lambda run: run.actual_flops)), dict(left_out))
