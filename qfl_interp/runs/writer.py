"""The one process that writes a run directory while it trains: lock, metrics, checkpoints, resume points."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qfl_interp.data.identity import identity_json
from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.claimed import ClaimedFolder
from qfl_interp.runs.config import CONFIG_FILE, METRICS_FILE, TASK_FILE, RunConfig
from qfl_interp.runs.metrics import all_lines, metric_lines, read_metrics
from qfl_interp.runs.provenance import session_record, sessions_json
from qfl_interp.runs.run import CHECKPOINTS, PROVENANCE_FILE, RESUME, Run, require_task


class RunWriter(ClaimedFolder):
    """Exclusive write access to one run directory; use as a context manager.

    Args:
        path: The run directory; made if it is not there.
        config: What names the run.
        task: What is learned; `task.json` keeps its identity.
        resume: Continue a run that is there. Otherwise an existing one is an error.
        resume_seconds: A resume point is written at the first checkpoint this many seconds after the last one.

    Raises:
        QflError: The directory holds a run and `resume` is False, or a run with another configuration or task, or
            something else; or another process is training into it.
    """

    def __init__(
        self, path: Path, config: RunConfig, task: Task, *, resume: bool, resume_seconds: float = 30.0
    ) -> None:
        texts = {TASK_FILE: identity_json(task), CONFIG_FILE: config.to_json()}
        super().__init__(path, texts, CHECKPOINTS, RESUME)
        self._state = ""
        self._task = task
        self.config = config
        self._resume = resume
        self._resume_seconds = resume_seconds
        self._last_resume_point = time.monotonic()

    def _check(self) -> None:
        """Raise `QflError` unless the run that is there may be continued, and is this one."""
        if not self._resume:
            raise QflError(
                f"{self.path} already holds a run. Resume it (resume=True; qfl train --resume) or train into another "
                "directory; nothing was changed."
            )
        found = RunConfig.read(self.path)
        if found != self.config:
            differences = _differences(json.loads(found.to_json()), json.loads(self.config.to_json()))
            raise QflError(
                f"{self.path} holds a run with another configuration: {'; '.join(differences)}. "
                "Resume with the same settings, or train into another directory; nothing was changed."
            )

        require_task(self.path, self._task)

    def record_session(self, device: str | torch.device) -> None:
        """Append this process to the run's provenance."""
        records = [*Run(self.path, self.config).provenance, session_record(device)]
        ckpt.write_atomic(self.path / PROVENANCE_FILE, sessions_json(records, self.config.digest))

    def resume_point(self) -> tuple[ckpt.Checkpoint | None, list[str]]:
        """The latest whole state to continue from, None to start anew; and why later ones were passed over.

        Raises:
            QflError: There is a checkpoint of another run, or the metrics are damaged; nothing was changed.
        """
        rows = read_metrics(self.path / METRICS_FILE, self.config.digest).rows
        _require_gapless(self.path / METRICS_FILE, rows)
        logged = rows[-1]["step"] if rows else self.config.first_step - 1
        folders = [p for f in (RESUME, CHECKPOINTS) for p in (self.path / f).glob("step_*")]
        refused = []
        for folder in sorted(folders, key=lambda p: p.name, reverse=True):
            try:
                manifest = ckpt.read_manifest(folder)
            except QflError as error:
                refused.append(str(error))
                continue
            if manifest["config_digest"] != self.config.digest:
                raise QflError(
                    f"{folder} is of another run (configuration {manifest['config_digest']}, not "
                    f"{self.config.digest}): was {CONFIG_FILE} replaced? Restore it, or move the "
                    "checkpoint away; nothing was changed."
                )
            if manifest["step"] > logged:
                refused.append(f"{folder}: the metrics end at step {logged}, before it.")
                continue
            try:
                if ckpt.OPTIMIZER in manifest["files"]:
                    state = ckpt.load_checkpoint(folder, config_digest=self.config.digest, with_optimizer=True)
                    return state, refused
            except QflError as error:
                refused.append(str(error))
        return None, refused

    def truncate_metrics(self, last_step: int) -> float:
        """Drop rows after `last_step`, which will be logged again; returns the seconds trained until then."""
        found = read_metrics(self.path / METRICS_FILE, self.config.digest)
        rows = [row for row in found.rows if row["step"] <= last_step]
        lines, self._state = all_lines(rows, self.config.digest)
        ckpt.write_atomic(self.path / METRICS_FILE, lines)
        return float(rows[-1]["seconds"]) if rows else 0.0

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints after a step, latest first: what they led to is trained again, otherwise."""
        self.require_lock()
        for later in reversed([saved for saved in Run(self.path, self.config).steps if saved > step]):
            shutil.rmtree(self.path / CHECKPOINTS / ckpt.step_name(later))

    def append_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows and hand them to the operating system, so that a killed process loses at most a part line.

        Raises:
            QflError: The disk is full.
        """
        self.require_lock()
        try:
            with open(self.path / METRICS_FILE, "ab") as file:
                lines, self._state = metric_lines(rows, self._state)
                file.write(lines)
        except OSError as error:
            raise ckpt.storage_error(error, self.path / METRICS_FILE) from error

    def save(self, checkpoint: ckpt.Checkpoint, *, keep_optimizer: bool) -> None:
        """Write a checkpoint; a resume point beside it where one is due and the checkpoint is none itself.

        With `keep_optimizer` the optimiser's state stays in the checkpoint, which makes it a resume point.
        """
        self.require_lock()
        self._sync_metrics()
        kept = checkpoint if keep_optimizer else checkpoint._replace(optimizer=None)
        ckpt.save_checkpoint(self.path / CHECKPOINTS, kept)
        due = time.monotonic() - self._last_resume_point >= self._resume_seconds
        if due and not keep_optimizer and checkpoint.step < self.config.last_step:
            self.save_resume_point(checkpoint)

    def save_resume_point(self, checkpoint: ckpt.Checkpoint) -> None:
        """Write a state to continue from and delete the ones before it."""
        self.require_lock()
        self._sync_metrics()
        written = ckpt.save_checkpoint(self.path / RESUME, checkpoint)
        for older in (self.path / RESUME).glob("step_*"):
            if older != written:
                shutil.rmtree(older)
        self._last_resume_point = time.monotonic()

    def _sync_metrics(self) -> None:
        """Have the disk hold all rows before a checkpoint that follows them."""
        try:
            with open(self.path / METRICS_FILE, "ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise ckpt.storage_error(error, self.path / METRICS_FILE) from error

    def finish(self) -> None:
        """Delete the resume points: the run is complete."""
        shutil.rmtree(self.path / RESUME, ignore_errors=True)


def _require_gapless(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Raise `QflError` where a step is missing between the first row and the last, as a power cut could leave it."""
    for before, after in itertools.pairwise(row["step"] for row in rows):
        if after != before + 1:
            raise QflError(
                f"{path} must have a row for every step, but {after} follows {before}. Restore it, or delete it and "
                "the folder checkpoints to train the run again; nothing was changed."
            )


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Every value that differs, as "name is A there and B here"."""
    listed = []
    for key in found | wanted:
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            listed += _differences(a, b, f"{prefix}{key}.")
        elif a != b and key != "run_id":
            listed.append(f"{prefix}{key} is {a!r} there and {b!r} here")
    return listed
