"""Train what is missing of a sweep, here or on Ray: plan, claim the folder, hand runs to a pool."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from qfl_interp.errors import QflError
from qfl_interp.plugins import TASKS, entry_points
from qfl_interp.progress import weighted_bar
from qfl_interp.runs.provenance import device_name
from qfl_interp.sweep.calibration import CostModel, calibrate, run_bytes
from qfl_interp.sweep.complete import accept_rows
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.folder import DEFINITION, PLAN, definition_json, plan_json, read_definition, recorded
from qfl_interp.sweep.jobs import JobSettings
from qfl_interp.sweep.local_pool import LocalPool, usable_cores
from qfl_interp.sweep.parts import RESULTS
from qfl_interp.sweep.plan import PlannedRun, SweepPlan, plan_sweep
from qfl_interp.sweep.pool import Pool
from qfl_interp.sweep.ray_pool import RayPool
from qfl_interp.sweep.records import Record, n_parameters
from qfl_interp.sweep.scheduler import Tally, make_jobs, run_jobs
from qfl_interp.sweep.sealed import DamagedError
from qfl_interp.sweep.storage import Storage
from qfl_interp.sweep.sweep import Sweep
from qfl_interp.training.stacked import max_members, stack_key

# torch starts as many as it is told.
_MOST_THREADS = 1024
# Rows of these are results: the runs are not trained again.
_SETTLED = ("finished", "diverged")


class Estimate(NamedTuple):
    """What a sweep will take, before anything is trained.

    Attributes:
        plan: Its runs and what is left out.
        done: How many runs have each status already; nothing for those never tried.
        remaining: Runs still to train, cheapest first.
        flops: Nominal FLOPs of the remaining runs.
        hours: Estimated hours, without stacking, on workers like this machine's.
        n_workers: Runs at a time.
        disk_bytes: What the remaining runs will keep on disk.
        free_bytes: What is free there; None for storage that does not say.
        cost: The measurement behind `hours`.
    """

    plan: SweepPlan
    done: dict[str, int]
    remaining: tuple[PlannedRun, ...]
    flops: float
    hours: float
    n_workers: int
    disk_bytes: int
    free_bytes: int | None
    cost: CostModel | None


class Execution(NamedTuple):
    """How a sweep is run.

    Attributes:
        workers: Runs at a time; by default one a core (a GPU), on Ray as many as fit.
        threads: torch threads of each.
        device: Where to train; on Ray "cuda" follows from `gpus_per_run`.
        stack: Most runs of one shape to train as one program; by default 64 on a GPU and 1 on a CPU.
        attempts: How often a run that fails is tried.
        ray: None, or the address of a Ray cluster: "auto", "local" or host:port.
        cpus_per_run: Ray's share of CPUs for a run.
        gpus_per_run: Ray's share of a GPU for a run, 0.25 for four runs on one.
        scratch: Local folder of runs in training while the sweep's folder is a URL.
    """

    workers: int | None = None
    threads: int = 1
    device: str = "cpu"
    stack: int | None = None
    attempts: int = 3
    ray: str | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    scratch: str | None = None

    def check(self) -> None:
        """Raise ValueError for a value out of its range."""
        for name, low in (("threads", 1), ("attempts", 1), ("cpus_per_run", 0), ("gpus_per_run", 0)):
            value = getattr(self, name)
            if not low <= value < math.inf:
                finite = "" if value < low else " and finite"
                raise ValueError(f"{name} must be at least {low}{finite}, got {value}.")
        if self.threads > _MOST_THREADS:
            raise ValueError(f"threads must be at most {_MOST_THREADS:,}, got {self.threads}. Take a core's or a few.")
        for name in ("workers", "stack"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.ray is None and (self.cpus_per_run, self.gpus_per_run) != (1.0, 0.0):
            raise ValueError(
                f"cpus_per_run and gpus_per_run are Ray's, got {self.cpus_per_run:g} and {self.gpus_per_run:g} without "
                "it. Give ray='auto' (qfl sweep --ray auto) too, or leave them out; device='cuda' trains on a GPU here."
            )


def estimate_sweep(config: SweepConfig, out: str, execution: Execution | None = None) -> Estimate:
    """What is done of a sweep, and what the rest will cost on this machine; some seconds of measuring, nothing is kept.

    Raises:
        QflError: The sweep has no run, or `out` holds something else.
    """
    execution = execution or Execution()
    execution.check()
    plan = plan_sweep(config)
    storage = Storage(out)
    done = _done(storage, config, extend=True)
    remaining = tuple(run for run in plan.runs if done.get(run.run_id) not in _SETTLED)
    cost = calibrate(remaining, device=execution.device, threads=execution.threads) if remaining else None
    if execution.ray is not None:
        n_workers = execution.workers or len(usable_cores())
    else:
        n_workers = LocalPool(JobSettings(out, execution.device, execution.threads), execution.workers).n_slots
    seconds = sum(cost.run_seconds(run) for run in remaining) if cost else 0.0
    sizes = {run.config.model: n_parameters(run) for run in remaining}
    return Estimate(
        plan=plan,
        done=dict(Counter(done[run.run_id] for run in plan.runs if run.run_id in done)),
        remaining=remaining,
        flops=sum(run.flops for run in remaining),
        hours=seconds / 3600 / min(n_workers, max(len(remaining), 1)),
        n_workers=n_workers,
        disk_bytes=sum(run_bytes(run, sizes[run.config.model], config) for run in remaining),
        free_bytes=shutil.disk_usage(storage.existing_parent()).free if storage.is_local else None,
        cost=cost,
    )


def run_sweep(
    config: SweepConfig,
    out: str,
    execution: Execution | None = None,
    *,
    extend: bool = False,
    progress: bool = True,
    pool: Callable[[JobSettings], Pool] | None = None,
) -> Sweep:
    """Train every run of a sweep that is not done yet, and return the sweep.

    Finished runs are skipped, interrupted ones go on from their resume points, and runs that failed are tried again.
    One bad run never stops the sweep: it gets a row with its error. A loss that diverges is a result, not a failure.

    Args:
        config: The definition.
        out: The sweep's folder: a local path or an fsspec URL such as s3://bucket/sweep.
        execution: Workers, devices, stacking, Ray.
        extend: Give a sweep of the same name that is there already this new definition; its runs stay. One whose
            `sweep.json` was lost or damaged gets it back so.
        progress: Draw a live bar on standard error.
        pool: Makes another pool than the local or the Ray one.

    Raises:
        QflError: `out` holds something else or another definition; another sweep is running on it; the Ray address
            cannot be reached, or its workers cannot know a task that `register_task` made known in this process alone.
        StorageError: The storage is full or cannot be written; what finished is kept, call again to go on.
    """
    execution = execution or Execution()
    execution.check()
    plan = plan_sweep(config)
    storage = Storage(out)
    # Refused before anything is written: another folder's, and more workers than cores.
    _done(storage, config, extend=extend)
    if execution.ray is not None:
        _require_installed(plan)
    elif pool is None:
        LocalPool(JobSettings(out, execution.device, execution.threads), execution.workers)
    storage.require_writable()
    with storage.lock() as held:
        done = _done(storage, config, extend=extend)
        remaining = [run for run in plan.runs if done.get(run.run_id) not in _SETTLED]

        def claim() -> None:
            storage.write_bytes(PLAN, plan_json(plan.runs))
            storage.write_bytes(DEFINITION, definition_json(config))

        if not remaining:
            claim()
            accept_rows(storage, len(done))
        else:
            device = "cuda" if execution.ray and execution.gpus_per_run else execution.device
            share = min(execution.gpus_per_run, 1.0) if execution.ray and execution.gpus_per_run else 1.0
            settings = JobSettings(out, device, execution.threads, config.keep, share, execution.scratch)
            with (pool or _pool(execution))(settings) as workers:
                claim()
                _train(remaining, workers, storage, held, execution, settings, progress, done)
    return Sweep.open(out)


def _require_installed(plan: SweepPlan) -> None:
    """Raise `QflError` where workers on Ray, which start without this process, would not know a task."""
    if own := sorted({run.config.task for run in plan.runs} - entry_points(TASKS).keys()):
        raise QflError(
            f"workers on Ray know only tasks that an installed package names, and {', '.join(own)} is registered in "
            "this process alone. Name its class in the entry points of a package (docs/new_task.md), or leave Ray out."
        )


def _pool(execution: Execution) -> Callable[[JobSettings], Pool]:
    """Makes the pool that was asked for."""
    if execution.ray is None:
        return lambda settings: LocalPool(settings, execution.workers)
    address = execution.ray
    return lambda settings: RayPool(
        settings, address, cpus_per_run=execution.cpus_per_run, gpus_per_run=execution.gpus_per_run,
        n_slots=execution.workers,
    )  # fmt: skip


def _train(
    runs: list[PlannedRun],
    pool: Pool,
    storage: Storage,
    held: Callable[[], None],
    execution: Execution,
    settings: JobSettings,
    progress: bool,
    recorded: Iterable[str],
) -> None:
    """Train all runs under a live bar."""
    stack = execution.stack or (64 if settings.device.startswith("cuda") else 1)

    def size(run: PlannedRun) -> int:
        config = run.config
        # How many a GPU holds only its own machine can say: its worker cuts a longer list.
        if stack == 1 or settings.device.startswith("cuda"):
            return stack
        return min(stack, max_members(config.model, batch_size=config.batch_size, n_ctx=config.n_ctx))

    jobs = make_jobs(runs, lambda run: stack_key(run.config), size, pool.n_slots)
    with weighted_bar(enabled=progress) as bar:
        for line in (pool.where, *pool.notes):
            bar.console.print(line, markup=False)
        shown = bar.add_task("sweep", total=1.0, detail=str(Tally(len(runs))))

        def show(tally: Tally, rows: list[Record]) -> None:
            held()
            for row in rows:
                if row["status"] != "finished":
                    bar.console.print(f"{row['status']}: {row['run_id']}: {row['error']}", markup=False)
            bar.update(shown, completed=tally.share, detail=str(tally))

        name = settings.device if execution.ray else device_name(settings.device)
        how: dict[str, Any] = {"device": name, "max_attempts": execution.attempts, "cost": _relative_cost}
        run_jobs(jobs, pool, storage, **how, show=show, recorded=recorded)


def _relative_cost(run: PlannedRun) -> float:
    """Rough seconds of a run on a core, for the time to go: what comes with every run, every update, every FLOP."""
    return 0.3 + 5e-3 * run.config.n_steps + run.actual_flops / 3e10


def _done(storage: Storage, config: SweepConfig, *, extend: bool) -> dict[str, str]:
    """Status by run of what the folder holds, if it is this sweep's or empty."""
    if not storage.exists(DEFINITION) and not (extend and storage.exists(RESULTS)):
        others = storage.names()
        if others:
            raise QflError(
                f"{storage.folder} is not empty and is no sweep (it holds {', '.join(others[:3])}). "
                "Choose a new folder."
            )
        return {}
    found = _definition_there(storage, extend=extend)
    if found is not None and found != config and not (extend and found.name == config.name):
        raise QflError(
            f"{storage.folder} holds the sweep {found.name!r} with another definition ({found.digest()} there, "
            f"{config.digest()} here). Give the new definition with extend=True (qfl sweep --extend), which keeps "
            "every run, or choose another folder; nothing was changed."
        )
    return recorded(storage)


def _definition_there(storage: Storage, *, extend: bool) -> SweepConfig | None:
    """The folder's definition; with `extend` None where it was lost, as the new one takes its place."""
    if extend and not storage.exists(DEFINITION):
        return None
    try:
        return read_definition(storage)
    except DamagedError as error:
        if extend:
            return None
        raise QflError(
            f"{error} Restore it, or give the definition anew with extend=True (qfl sweep FILE.toml --extend), which "
            "keeps every run."
        ) from error
