"""Hands the runs of a sweep to a pool, tries failed ones again, keeps the rows: the one place that decides."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qfl_interp.errors import StorageError
from qfl_interp.sealed import sealed_json
from qfl_interp.sweep.jobs import Job
from qfl_interp.sweep.plan import PlannedRun
from qfl_interp.sweep.pool import Outcome, Pool
from qfl_interp.sweep.records import Record, RecordWriter, make_record
from qfl_interp.sweep.state import STATE_FILE
from qfl_interp.sweep.storage import Storage

# What is running is written at least this often, in seconds, for `qfl sweep status`.
STATE_SECONDS = 5.0


@dataclass
class Tally:
    """How far a sweep is.

    A diverged run is a result; a failed one was given up after its last attempt. `retried` counts attempts after a
    first one, `running` names runs, `share` is the part of the work that is done, by what each run costs, and `started`
    a time of the monotonic clock.
    """

    total: int
    finished: int = 0
    diverged: int = 0
    failed: int = 0
    retried: int = 0
    running: list[str] = field(default_factory=list)
    share: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to go at the speed so far; None while nothing is done."""
        return (time.monotonic() - self.started) * (1 / self.share - 1) if self.share else None

    @property
    def done(self) -> int:
        """Runs with a row."""
        return self.finished + self.diverged + self.failed

    def __str__(self) -> str:
        parts = [f"{self.done}/{self.total} runs", f"{len(self.running)} running"]
        parts += [f"{n} {word}" for word, n in (("diverged", self.diverged), ("failed", self.failed)) if n]
        parts += [f"{self.retried} tried again"] if self.retried else []
        return ", ".join(parts)


def make_jobs(
    runs: Sequence[PlannedRun], key: Callable[[PlannedRun], Hashable], size: Callable[[PlannedRun], int], n_slots: int
) -> list[Job]:
    """Runs with equal keys together, up to `size` of them a job, in the order of each job's first run.

    Where there are few, they are spread over all slots rather than stacked on one.

    `size` is the most members of one program, for a run's shape, and `n_slots` how many jobs run at a time.
    """
    alike: dict[Hashable, list[PlannedRun]] = {}
    for run in runs:
        alike.setdefault(key(run), []).append(run)
    jobs = []
    for members in alike.values():
        most = max(1, min(size(members[0]), -(-len(members) // n_slots)))
        jobs += [Job(tuple(members[start : start + most])) for start in range(0, len(members), most)]
    order = {run.run_id: number for number, run in enumerate(runs)}
    return sorted(jobs, key=lambda job: order[job.runs[0].run_id])


def run_jobs(
    jobs: Sequence[Job],
    pool: Pool,
    storage: Storage,
    *,
    device: str,
    max_attempts: int,
    cost: Callable[[PlannedRun], float],
    show: Callable[[Tally, list[Record]], None],
    recorded: Iterable[str] = (),
) -> Tally:
    """Train all jobs; every run gets a row.

    A run that failed, or whose worker died, is tried again on its own until it has been tried `max_attempts` times.

    The caller holds the folder's lock. `device` is for the rows of runs whose worker died, `cost` in any unit for the
    estimate of the time to go; `show` is called after every change with the tally and the new rows. `recorded` are the
    runs that have a row already.

    Raises:
        StorageError: The storage is full or cannot be written; all that finished has a row.
        KeyboardInterrupt: Ctrl-C; likewise.
    """
    waiting, tally = deque(jobs), Tally(sum(len(job.runs) for job in jobs))
    flying: dict[tuple[str, ...], Job] = {}
    costs = {run.run_id: cost(run) for job in jobs for run in job.runs}
    all_costs = sum(costs.values())
    writer, state_at = RecordWriter(storage, recorded), 0.0
    try:
        while waiting or flying:
            while waiting and len(flying) < pool.n_slots:
                job = waiting.popleft()
                pool.submit(job)
                flying[_name(job)] = job
            outcomes = pool.wait(1.0)
            rows = []
            for outcome in outcomes:
                del flying[_name(outcome.job)]
                if outcome.storage_error:
                    raise StorageError(f"the sweep stopped: {outcome.error}")
                final, again = _settle(outcome, max_attempts, device)
                rows += final
                waiting.extendleft(again)
                tally.retried += len(again)
            tally.running = [run.run_id for job in flying.values() for run in job.runs]
            for row in rows:
                setattr(tally, row["status"], getattr(tally, row["status"]) + 1)
                tally.share += costs[row["run_id"]] / all_costs
            writer.append(rows)
            if rows or time.monotonic() - state_at >= STATE_SECONDS:
                _write_state(storage, tally, pool, writer.n_rows)
                state_at = time.monotonic()
                show(tally, rows)
    finally:
        writer.flush()
        tally.running = []
        _write_state(storage, tally, pool, writer.n_rows)
    writer.compact()
    return tally


def _name(job: Job) -> tuple[str, ...]:
    return tuple(run.run_id for run in job.runs)


def _settle(outcome: Outcome, max_attempts: int, device: str) -> tuple[list[Record], list[Job]]:
    """The rows that are final, and the jobs to try again."""
    job, records = outcome.job, outcome.records
    if records is None:
        size = len(job.runs)
        records = [
            make_record(run, "failed", device=device, attempts=job.attempt, group_size=size, error=outcome.error)
            for run in job.runs
        ]
    final, again = [], []
    for run, record in zip(job.runs, records, strict=True):
        if record["status"] == "failed" and job.attempt < max_attempts:
            again.append(Job((run,), job.attempt + 1))
        else:
            final.append(record)
    return final, again


def _write_state(storage: Storage, tally: Tally, pool: Pool, n_rows: int) -> None:
    """What another process reads about a sweep that is running."""
    state: dict[str, Any] = {
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        "where": pool.where,
        "total": tally.total,
        "done": tally.done,
        "diverged": tally.diverged,
        "failed": tally.failed,
        "running": tally.running,
        "eta_seconds": tally.eta_seconds,
        "rows": n_rows,
    }
    storage.write_bytes(STATE_FILE, sealed_json(state))
