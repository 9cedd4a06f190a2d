"""One row a run of a sweep: what it was, how it ended.

The runs' directories are the truth; the rows are what 20,000 of them are listed by. One process writes rows (the sweep
holds its folder's lock); a killed one loses at most the rows of its last seconds, which are made again from the
directories.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa

from qfl_interp.config import Options
from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError
from qfl_interp.runs.config import METRICS_FILE, RunConfig
from qfl_interp.runs.run import Run
from qfl_interp.sweep.parts import latest, part_paths, part_task, read_part, write_part
from qfl_interp.sweep.plan import PlannedRun
from qfl_interp.sweep.storage import Storage

Record = dict[str, Any]

_SCORES = ("val_loss", "val_exact", "val_loss_answer", "val_exact_answer", "val_pass", "val_pass_answer", "seconds")
_ALWAYS = ("val_loss", "val_loss_answer", "seconds")
# Rows are written at least this often, in seconds, while runs finish.
_FLUSH_SECONDS = 15.0
# Parts written before they are made into one: every reader opens them all.
_MOST_PARTS = 32


def n_parameters(planned: PlannedRun) -> int:
    """Trainable parameters of a run's model."""
    return planned.config.n_parameters


def configuration_digest(config: RunConfig) -> str:
    """Twelve hexadecimal digits equal for runs that differ in their seed alone, and in what follows from it."""
    values = {"task": config.task, "length": config.length, "model": config.model.to_dict()}
    values |= {"task_options": dict(config.task_options)} if config.task_options else {}
    train = {name: value for name, value in config.train.to_dict().items() if name != "seed"}
    return json_digest(values | {"train": train})


def shown_options(options: Options) -> str:
    """What a task was made with beside its length: "k=4 train_fraction=0.3"; empty where nothing was said."""
    return " ".join(f"{name}={value}" for name, value in sorted(options.items()))


def _final_scores(run: Run) -> dict[str, float]:
    """The last row of a finished run's metrics; `QflError` where it is not the final validation."""
    rows = run.read_metrics().rows
    last = rows[-1] if rows else {}
    # Another loss than the cross-entropy has no `pass`, a real-valued task no exact match either.
    scores = {name: last.get(name, None if name in _ALWAYS else math.nan) for name in _SCORES}
    if last.get("step") != run.config.last_step or any(type(value) not in (int, float) for value in scores.values()):
        found = f"step {last.get('step')}" if last else "no row"
        raise QflError(
            f"{run.path / METRICS_FILE} must end with the validation of step {run.config.last_step}, "
            f"got {found}: its end was lost. "
            "Delete the run's directory and call the sweep again."
        )
    return {name: float(value) for name, value in scores.items() if value is not None}


def make_record(
    planned: PlannedRun,
    status: str,
    *,
    device: str,
    attempts: int,
    group_size: int,
    run: Run | None = None,
    error: str = "",
) -> Record:
    """The row of a run.

    `device` is the processor's name, `group_size` the runs that trained as one program, `run` the directory of one that
    finished: its last validation enters the row.
    """
    config = planned.config
    scores: dict[str, float] = dict.fromkeys(_SCORES, math.nan)
    if run is not None:
        scores = _final_scores(run)
    return {
        "task": config.task, "length": config.length, "task_options": shown_options(config.task_options),
        "budget_flops": planned.budget_flops,
        "style": config.model.style, "d_model": config.model.d_model, "n_layers": config.model.n_layers,
        "n_heads": config.model.n_heads, "lr": config.train.lr, "batch_size": config.batch_size,
        "seed": config.train.seed, "schedule": config.train.schedule, "weight_decay": config.train.weight_decay,
        "n_steps": config.n_steps, "flops": planned.flops, "actual_flops": planned.actual_flops,
        "n_parameters": n_parameters(planned), "n_val": config.n_val,
        **scores, "status": status, "error": error, "attempts": attempts, "group_size": group_size,
        "device": device, "configuration": configuration_digest(config), "run_id": planned.run_id, "path": planned.path,
        "finished_at": datetime.now(UTC).isoformat(timespec="microseconds"),
    }  # fmt: skip


class RecordWriter:
    """Collects rows and writes them, some seconds' worth at a time, as Parquet parts of their tasks.

    Args:
        storage: The sweep's folder.
        recorded: Ids of the runs that have a row already.
    """

    def __init__(self, storage: Storage, recorded: Iterable[str] = ()) -> None:
        self.storage = storage
        self._recorded = set(recorded)
        self._pending: list[Record] = []
        self._written = time.monotonic()
        self._n_parts = 0

    @property
    def n_rows(self) -> int:
        """Runs that have a row on disk."""
        return len(self._recorded)

    def append(self, records: list[Record]) -> None:
        """Take rows; write what has been taken if the last time is some seconds ago."""
        self._pending += records
        if time.monotonic() - self._written >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been taken.

        Raises:
            StorageError: The storage is full or cannot be written; the rows are kept for the next call.
        """
        by_task: dict[str, list[Record]] = defaultdict(list)
        for record in self._pending:
            by_task[record["task"]].append(record)
        for task, records in by_task.items():
            write_part(self.storage, task, pd.DataFrame(records))
            self._pending = [record for record in self._pending if record["task"] != task]
            self._recorded.update(record["run_id"] for record in records)
            self._n_parts += 1
        self._written = time.monotonic()
        if self._n_parts >= _MOST_PARTS:
            self.compact()

    def compact(self) -> None:
        """Make one part of each task's many; a kill in between leaves rows twice, which readers see once."""
        parts: dict[str, list[str]] = defaultdict(list)
        for path in part_paths(self.storage):
            parts[part_task(path)].append(path)
        for task, paths in parts.items():
            if len(paths) > 1:
                rows = pa.concat_tables([read_part(self.storage, path).rows for path in paths]).to_pandas()
                write_part(self.storage, task, latest(rows))
                for path in paths:
                    self.storage.remove(path)
        self._n_parts = 0
