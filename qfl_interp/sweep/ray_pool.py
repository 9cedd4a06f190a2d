"""Workers on Ray: this machine's cores and GPUs, or a cluster's."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qfl_interp.errors import QflError
from qfl_interp.runs.folder_lock import is_held
from qfl_interp.sweep.jobs import Job, JobSettings
from qfl_interp.sweep.local_pool import attempt, usable_cores
from qfl_interp.sweep.pool import Outcome, Pool
from qfl_interp.sweep.ray_cluster import (
    connect,
    first_line,
    head_address,
    import_ray,
    live_nodes,
    require_same_code,
    room,
    totals,
)
from qfl_interp.sweep.storage import Storage

# How long a worker that was told to stop may take to save where it is; then it is killed, and given some seconds to go.
_STOP_SECONDS = 20.0
_KILL_SECONDS = 5.0
# How long a job whose worker is gone is held back while some process still has one of its runs open.
_HELD_SECONDS = 60.0


class _Held(NamedTuple):
    """A job whose worker is gone, until nobody writes into its runs; `until` is a time of the monotonic clock."""

    outcome: Outcome
    until: float


class RayPool(Pool):
    """Ray tasks, each in a worker process that serves one job after the other.

    Ray tries nothing again by itself: a job whose worker died is an outcome, and is handed out only once no process
    has its runs open.

    Args:
        settings: What is the same for every job. Local paths are made absolute; with `gpus_per_run` the device is
            "cuda", of which each worker sees its own share.
        address: "auto" for the cluster that `RAY_ADDRESS` names or that runs on this machine, else a Ray of this
            machine started here; "local" to always start one; or "host:port", "ray://host:port".
        cpus_per_run: CPUs that Ray sets aside for a job.
        gpus_per_run: GPUs likewise; a fraction shares one between jobs.
        n_slots: Jobs at a time; as many as fit by default. More wait in Ray's queue, for clusters that grow on demand.

    Raises:
        ValueError: A share is out of its range.
        QflError: Ray is not installed, `address` cannot be reached, no machine has room for one run, or the workers
            have another version of this package.
    """

    def __init__(
        self,
        settings: JobSettings,
        address: str,
        *,
        cpus_per_run: float = 1.0,
        gpus_per_run: float = 0.0,
        n_slots: int | None = None,
    ) -> None:
        _check_shares(settings, cpus_per_run, gpus_per_run, n_slots)
        self._ray = import_ray()
        self._storage = Storage(settings.folder)
        self._settings = _for_workers(settings, self._storage, gpus_per_run)
        self._flying: dict[Any, Job] = {}
        self._held: list[_Held] = []
        self._connected_here = not self._ray.is_initialized()
        self._stack = contextlib.ExitStack()
        try:
            n_cpus = max(len(usable_cores()), math.ceil((n_slots or 1) * cpus_per_run))
            started = connect(self._ray, address, self._stack, n_cpus)
            nodes = live_nodes(self._ray)
            fitting = room(nodes, cpus_per_run, gpus_per_run)
            if not started:
                require_same_code(self._ray, fitting)
            self.n_slots = sum(fitting.values()) if n_slots is None else n_slots
            place = "a Ray started here" if started else f"Ray at {head_address(self._ray)}"
            self.where = f"{place}: {totals(nodes)}, {self.n_slots} at a time"
            self.notes: Sequence[str] = ()
            if len(nodes) > 1 and self._storage.is_local:
                self.notes = (
                    f"{self._settings.folder} must be the same folder on all {len(nodes)} machines of the cluster, for "
                    "example on NFS; or use an s3:// folder.",
                )
            self._work = self._ray.remote(attempt).options(
                num_cpus=cpus_per_run, num_gpus=gpus_per_run, max_retries=0, retry_exceptions=False
            )
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> None:
        """Hand over a job; those beyond `n_slots` wait for a free worker."""
        self._flying[self._work.remote(job, self._settings)] = job

    def wait(self, timeout: float) -> list[Outcome]:
        """Jobs that ended within `timeout` seconds, perhaps none; a worker's death ends its job."""
        deadline = time.monotonic() + timeout
        while True:
            outcomes = self._free()
            left = 0.0 if outcomes else max(0.0, deadline - time.monotonic())
            outcomes += self._ended(min(left, 0.2) if self._held else left)
            if outcomes or time.monotonic() >= deadline or not (self._flying or self._held):
                return outcomes

    def _ended(self, timeout: float) -> list[Outcome]:
        """Jobs that returned; those whose worker died are held back first."""
        if not self._flying:
            time.sleep(timeout if self._held else 0.0)
            return []
        refs = list(self._flying)
        if not self._ray.wait(refs, num_returns=1, timeout=timeout)[0]:
            return []
        outcomes = []
        for ref in self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
            job = self._flying.pop(ref)
            try:
                outcomes.append(Outcome(job, *self._ray.get(ref)))
            except self._ray.exceptions.RayError as error:
                reason = f"its worker died ({type(error).__name__}): {first_line(error)}"
                self._held.append(_Held(Outcome(job, None, reason), time.monotonic() + _HELD_SECONDS))
        return outcomes + self._free()

    def _free(self) -> list[Outcome]:
        """Held jobs that may be tried again: the system has taken the dead worker's locks away."""
        waiting = [h for h in self._held if time.monotonic() < h.until and self._is_open(h.outcome.job)]
        free = [held.outcome for held in self._held if held not in waiting]
        self._held = waiting
        return free

    def _is_open(self, job: Job) -> bool:
        """Whether some process writes into a run of the job; other machines' copies of remote runs are not seen."""
        return self._storage.is_local and any(is_held(self._storage.local_path / run.path) for run in job.runs)

    def close(self) -> None:
        """End all jobs: each saves where it is, or is killed after some seconds; then what was started here."""
        try:
            if self._flying:
                self._stop_running()
        finally:
            self._flying, self._held = {}, []
            if self._connected_here and self._ray.is_initialized():
                self._ray.shutdown()
            self._connected_here = False
            self._stack.close()

    def _stop_running(self) -> None:
        """Interrupt every job as Ctrl-C would, and kill what does not end."""
        for force, seconds in ((False, _STOP_SECONDS), (True, _KILL_SECONDS)):
            for ref in self._flying:
                with contextlib.suppress(self._ray.exceptions.RayError, ValueError, ConnectionError):
                    self._ray.cancel(ref, force=force)
            _, left = self._ray.wait(list(self._flying), num_returns=len(self._flying), timeout=seconds)
            self._flying = {ref: self._flying[ref] for ref in left}
            if not left:
                return


def _check_shares(settings: JobSettings, cpus: float, gpus: float, n_slots: int | None) -> None:
    """Refuse shares that Ray would refuse, or wait for without end."""
    if cpus < 0 or gpus < 0 or not cpus + gpus > 0:
        raise ValueError(f"cpus_per_run and gpus_per_run must not be negative, nor both 0, got {cpus} and {gpus}.")
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"gpus_per_run must be a fraction up to 1 or a whole number, got {gpus}.")
    if n_slots is not None and n_slots < 1:
        raise ValueError(f"n_slots must be at least 1, got {n_slots}.")
    if settings.device.startswith("cuda") and not gpus:
        raise QflError(
            f"on Ray, device {settings.device!r} needs a share of a GPU for each run, got gpus_per_run 0. "
            "Give one (gpus_per_run=0.25 trains four runs on a GPU)."
        )


def _for_workers(settings: JobSettings, storage: Storage, gpus: float) -> JobSettings:
    """Settings that mean the same in a process elsewhere."""
    folder = str(storage.local_path) if storage.is_local else settings.folder
    scratch = None if settings.scratch is None else str(Path(settings.scratch).absolute())
    return settings._replace(folder=folder, scratch=scratch, device="cuda" if gpus else settings.device)
