"""Workers on this machine: processes, pinned to cores where they fill it, replaced when they die."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from qfl_interp.errors import QflError, StorageError
from qfl_interp.processes import end_with_parent
from qfl_interp.sweep.jobs import Job, JobSettings, run_job
from qfl_interp.sweep.pool import Outcome, Pool

if TYPE_CHECKING:
    from qfl_interp.data.task import Task

# How long a worker that was told to stop may take to save where it is.
_STOP_SECONDS = 20.0


def usable_cores() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def worker_cores(cores: Sequence[int], number: int, n_slots: int, threads: int) -> list[int]:
    """The cores that one of `n_slots` workers of so many threads runs on: its own where they fill `cores`, else any."""
    if n_slots * threads < len(cores):
        return list(cores)
    return [cores[(number * threads + i) % len(cores)] for i in range(threads)]


@dataclass
class _Worker:
    """A process and what it is doing."""

    process: Any
    pipe: Connection
    number: int
    job: Job | None = None
    # Ended once, by `close` or by death.
    ended: bool = field(default=False)


class LocalPool(Pool):
    """Processes on this machine, each on cores of its own where they fill it.

    They are `n_slots`: by default one for every `settings.threads` cores, or one for each GPU. Where they leave cores
    idle none is pinned: two sweeps at once would pin to the same cores, and share them while others idle.

    Raises:
        QflError: More processes than cores.
    """

    def __init__(self, settings: JobSettings, n_slots: int | None = None) -> None:
        cores = usable_cores()
        threads = max(settings.threads, 1)
        if settings.device.startswith("cuda"):
            import torch

            self._devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
            if settings.device != "cuda":
                self._devices = [settings.device]
            default = len(self._devices)
        else:
            self._devices = [settings.device]
            default = max(len(cores) // threads, 1)
        self.n_slots = default if n_slots is None else n_slots
        if not 1 <= self.n_slots <= max(len(cores), default):
            raise QflError(
                f"workers must be between 1 and the {len(cores)} cores of this machine, got {self.n_slots}. "
                "More would take turns and finish no sooner."
            )
        self._settings, self._cores, self._threads = settings, cores, threads
        self._workers: list[_Worker] = []
        self.notes: Sequence[str] = ()
        per_worker = f"{threads} thread" + ("s" if threads > 1 else "")
        self.where = f"{self.n_slots} process{'es' if self.n_slots > 1 else ''} on this machine, {per_worker} each"

    def submit(self, job: Job) -> None:
        """Hand a job to a free worker, started if there is none.

        Raises:
            RuntimeError: All workers are busy.
        """
        free = next((w for w in self._workers if w.job is None and not w.ended), None)
        if free is None:
            taken = {w.number for w in self._workers if not w.ended}
            numbers = [n for n in range(self.n_slots) if n not in taken]
            if not numbers:
                raise RuntimeError(f"all {self.n_slots} workers are busy; wait for one before submitting.")
            free = self._start(numbers[0])
        free.job = job
        try:
            free.pipe.send(job)
        except OSError:  # it died while idle: `wait` reports the job as lost
            pass

    def _start(self, number: int) -> _Worker:
        """A new worker process on the cores of its number."""
        mine = worker_cores(self._cores, number, self.n_slots, self._threads)
        settings = self._settings._replace(device=self._devices[number % len(self._devices)])
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        from qfl_interp.data.registry import registered_here

        given = (theirs, settings, mine, registered_here())
        process = context.Process(target=_work, args=given, name=f"qfl-sweep-{number}", daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, number)
        self._workers.append(worker)
        return worker

    def wait(self, timeout: float) -> list[Outcome]:
        """Jobs that ended within `timeout` seconds; a worker that died counts, and is replaced at the next `submit`."""
        live = [w for w in self._workers if not w.ended]
        ready = multiprocessing.connection.wait(
            [w.pipe for w in live] + [w.process.sentinel for w in live], timeout=timeout
        )
        outcomes = []
        for worker in live:
            if worker.pipe in ready or worker.process.sentinel in ready:
                outcome = self._outcome(worker)
                if outcome is not None:
                    outcomes.append(outcome)
        self._workers = [w for w in self._workers if not w.ended]
        return outcomes

    def _outcome(self, worker: _Worker) -> Outcome | None:
        """What a worker that became readable, or died, has to say."""
        job = worker.job
        try:
            if worker.pipe.poll():
                worker.job = None
                found = worker.pipe.recv()
                assert job is not None
                return Outcome(job, *found)
        except (EOFError, OSError):
            pass
        worker.process.join()
        worker.ended = True
        worker.pipe.close()
        if job is None:
            return None
        code = worker.process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
        return Outcome(job, None, f"its worker process died ({how}); the system may have run out of memory")

    def close(self) -> None:
        """Stop the workers: each saves where it is, or is killed after some seconds."""
        live = [w for w in self._workers if not w.ended]
        for worker in live:
            if worker.process.is_alive():
                if worker.job is None:
                    worker.process.terminate()
                else:
                    os.kill(worker.process.pid, signal.SIGINT)
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in live:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
            worker.ended = True
        self._workers = []


def _work(pipe: Connection, settings: JobSettings, cores: list[int], tasks: Sequence[type[Task]]) -> None:
    """The life of a worker: one job after the other until it is told to stop."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C in the terminal reaches the driver, which then stops its workers
    # A driver in the background of a shell ignores it, and so would its workers.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    end_with_parent(save_seconds=_STOP_SECONDS)
    from qfl_interp.data.registry import register_tasks

    register_tasks(tasks)
    try:
        while True:
            job = pipe.recv()
            pipe.send(attempt(job, settings))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def attempt(job: Job, settings: JobSettings) -> tuple[Any, ...]:
    """The fields of the job's `Outcome` after the job itself."""
    try:
        return (run_job(job, settings),)
    except StorageError as error:
        return None, str(error), True
    except Exception as error:  # whatever it is, the sweep goes on
        return None, f"{type(error).__name__}: {error}"
