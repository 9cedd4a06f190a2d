"""The one process that writes a run directory while it trains: lock, metrics, checkpoints, resume points."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qfl_interp.data.identity import task_identity
from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.claimed import ClaimedFolder
from qfl_interp.runs.config import CONFIG_FILE, METRICS_FILE, TASK_FILE, RunConfig
from qfl_interp.runs.provenance import session_record
from qfl_interp.runs.run import CHECKPOINTS, PROVENANCE_FILE, Run, read_metrics, require_task

_RESUME = "resume"


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
        texts = {TASK_FILE: json.dumps(task_identity(task), indent=1).encode(), CONFIG_FILE: config.to_json()}
        super().__init__(path, texts, CHECKPOINTS, _RESUME)
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
        ckpt.write_atomic(self.path / PROVENANCE_FILE, json.dumps(records, indent=1).encode())

    def resume_point(self) -> tuple[ckpt.Checkpoint | None, list[str]]:
        """The latest whole state to continue from, None to start anew; and why later ones were passed over."""
        folders = [p for f in (_RESUME, CHECKPOINTS) for p in (self.path / f).glob("step_*")]
        refused = []
        for folder in sorted(folders, key=lambda p: p.name, reverse=True):
            try:
                if ckpt.OPTIMIZER in ckpt.read_manifest(folder)["files"]:
                    state = ckpt.load_checkpoint(folder, config_digest=self.config.digest, with_optimizer=True)
                    return state, refused
            except QflError as error:
                refused.append(str(error))
        return None, refused

    def truncate_metrics(self, last_step: int) -> float:
        """Drop rows after `last_step`, which will be logged again; returns the seconds trained until then."""
        rows = [row for row in read_metrics(self.path / METRICS_FILE) if row["step"] <= last_step]
        ckpt.write_atomic(self.path / METRICS_FILE, _lines(rows))
        return float(rows[-1]["seconds"]) if rows else 0.0

    def append_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows and hand them to the operating system, so that a killed process loses at most a part line.

        Raises:
            QflError: The disk is full.
        """
        try:
            with open(self.path / METRICS_FILE, "ab") as file:
                file.write(_lines(rows))
        except OSError as error:
            raise ckpt.storage_error(error, self.path / METRICS_FILE) from error

    def save(self, checkpoint: ckpt.Checkpoint, *, keep_optimizer: bool) -> None:
        """Write a checkpoint; a resume point beside it where one is due and the checkpoint is none itself.

        With `keep_optimizer` the optimiser's state stays in the checkpoint, which makes it a resume point.
        """
        kept = checkpoint if keep_optimizer else checkpoint._replace(optimizer=None)
        ckpt.save_checkpoint(self.path / CHECKPOINTS, kept)
        due = time.monotonic() - self._last_resume_point >= self._resume_seconds
        if due and not keep_optimizer and checkpoint.step < self.config.last_step:
            self.save_resume_point(checkpoint)

    def save_resume_point(self, checkpoint: ckpt.Checkpoint) -> None:
        """Write a state to continue from and delete the ones before it."""
        written = ckpt.save_checkpoint(self.path / _RESUME, checkpoint)
        for older in (self.path / _RESUME).glob("step_*"):
            if older != written:
                shutil.rmtree(older)
        self._last_resume_point = time.monotonic()

    def finish(self) -> None:
        """Delete the resume points: the run is complete."""
        shutil.rmtree(self.path / _RESUME, ignore_errors=True)


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Every value that differs, as "name is A there and B here"."""
    listed = []
    for key in found:
        a, b = found[key], wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            listed += _differences(a, b, f"{prefix}{key}.")
        elif a != b and key != "run_id":
            listed.append(f"{prefix}{key} is {a!r} there and {b!r} here")
    return listed
