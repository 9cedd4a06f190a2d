"""What a worker process of a sweep does: train one run, or several as one program, and say how each ended."""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from qfl_interp.errors import QflError, StorageError
from qfl_interp.runs.checkpoint import write_atomic
from qfl_interp.runs.config import METRICS_FILE
from qfl_interp.runs.folder_lock import is_held
from qfl_interp.runs.metrics import all_lines
from qfl_interp.runs.provenance import device_name
from qfl_interp.runs.run import CHECKPOINTS, FINAL_ALONE, Run
from qfl_interp.runs.scratch import scratch_folder
from qfl_interp.sweep.definition import Keep
from qfl_interp.sweep.plan import PlannedRun, task_at
from qfl_interp.sweep.records import Record, make_record
from qfl_interp.sweep.storage import Storage
from qfl_interp.training.session import DivergedError
from qfl_interp.training.stacked import train_stacked
from qfl_interp.training.train import train_planned

Status = Literal["finished", "diverged", "failed"]
# Longer than a worker whose driver was killed takes to save where it is.
_OTHERS_SECONDS = 30.0


class Job(NamedTuple):
    """What one worker is handed at a time.

    One run, or several of one shape that train as one program; the first attempt is 1.
    """

    runs: tuple[PlannedRun, ...]
    attempt: int = 1


class JobSettings(NamedTuple):
    """What is the same for every job of a sweep.

    Attributes:
        folder: The sweep's folder: a local path or an fsspec URL.
        device: Where to train.
        threads: torch threads of a worker; 0 leaves them alone.
        keep: What stays of a finished run.
        gpu_share: Part of a GPU that a job may fill.
        scratch: Where runs train while `folder` is not local; a temporary folder by default.
    """

    folder: str
    device: str = "cpu"
    threads: int = 1
    keep: Keep = "final"
    gpu_share: float = 1.0
    scratch: str | None = None


def run_job(job: Job, settings: JobSettings) -> list[Record]:
    """Train the runs of a job, each from where it stands; one row a run, whatever happened to it.

    A run that is complete already is not trained again.

    Raises:
        StorageError: The storage is full or cannot be written: no other run could end better.
        KeyboardInterrupt: Ctrl-C; every run has a resume point.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    storage = Storage(settings.folder)
    with contextlib.ExitStack() as stack:
        scratch = Path(settings.scratch or stack.enter_context(scratch_folder("qfl-sweep-")))
        folders = [stack.enter_context(storage.mirrored(run.path, scratch)) for run in job.runs]
        _wait_for_others(folders)
        records = []
        errors = _train(job.runs, folders, settings)
        if any(error is not None and not isinstance(error, DivergedError) for error in errors):
            storage.require_writable()  # where nothing can be written, no run is at fault
        for run, folder, error in zip(job.runs, folders, errors, strict=True):
            records.append(_record(job, run, folder, error, settings))
        return records


def _wait_for_others(folders: list[Path]) -> None:
    """Give the workers of a sweep that was killed the time they take to stop."""
    deadline = time.monotonic() + _OTHERS_SECONDS
    while time.monotonic() < deadline and any(is_held(folder) for folder in folders):
        time.sleep(0.5)


def _train(runs: tuple[PlannedRun, ...], folders: list[Path], settings: JobSettings) -> list[BaseException | None]:
    """Train; what went wrong with each run, None where nothing did."""
    device = settings.device
    first = runs[0].config
    try:
        task = task_at(first.task, first.length, first.task_options)
        if len(runs) == 1:
            train_planned(task, first, folders[0], device=device)
            return [None]
        members = [(run.config, folder) for run, folder in zip(runs, folders, strict=True)]
        return [*train_stacked(task, members, device=device, memory_share=settings.gpu_share)]
    except (StorageError, KeyboardInterrupt):
        raise
    except Exception as error:  # one bad run never stops a sweep
        return [error] * len(runs)


def _record(job: Job, planned: PlannedRun, folder: Path, error: BaseException | None, settings: JobSettings) -> Record:
    """The row of a run that has been trained, tidied up where it finished."""
    same: dict[str, Any] = {
        "device": device_name(settings.device), "attempts": job.attempt, "group_size": len(job.runs)
    }  # fmt: skip
    if error is None:
        run = Run(folder, planned.config)
        try:
            record = make_record(planned, "finished", run=run, **same)
        except QflError as found:
            error = found
        else:
            if settings.keep == "final":
                keep_final(run)
            return record
    status: Status = "diverged" if isinstance(error, DivergedError) else "failed"
    return make_record(planned, status, error=_sentence(error), **same)


def _sentence(error: BaseException) -> str:
    """The error as a row says it: type, message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def keep_final(run: Run) -> None:
    """Of a finished run keep the final weights and the rows of its validations; a file says that it was so."""
    write_atomic(run.path / CHECKPOINTS / FINAL_ALONE, b"")
    for step in run.steps[:-1]:
        shutil.rmtree(run.path / CHECKPOINTS / f"step_{step:08d}")
    rows = [row for row in run.read_metrics().rows if "val_loss" in row]
    write_atomic(run.path / METRICS_FILE, all_lines(rows, run.config.digest)[0])
