"""Progress bars on standard error, so that standard output stays clean for `--json`."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Names the file that bars write how far they are into, for whoever watches from another process.
PROGRESS_FILE: Final = "QFL_PROGRESS_FILE"
# At most so often.
_SECONDS: Final = 0.2


class _Told(Progress):
    """A bar, shown or not, that keeps a file of how far it is: `{"what", "done", "total", "detail"}`."""

    def __init__(self, *columns: ProgressColumn, file: Path, **how: Any) -> None:
        super().__init__(*columns, **how)
        self._file, self._last = file, 0.0

    def add_task(self, description: str, **fields: Any) -> TaskID:
        """As of every bar."""
        task_id = super().add_task(description, **fields)
        self._tell(task_id)
        return task_id

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """As of every bar."""
        super().update(task_id, **fields)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        """Write the file, unless that was done just now."""
        task = self.tasks[task_id]
        if task.finished or not task.completed or time.monotonic() - self._last >= _SECONDS:
            self._last = time.monotonic()
            said = {"what": task.description, "done": task.completed, "total": task.total}
            data = json.dumps(said | {"detail": str(task.fields.get("detail", ""))})
            with contextlib.suppress(OSError):  # what is watched goes on without a watcher
                beside = self._file.with_name(f"{self._file.name}.{os.getpid()}")
                beside.write_text(data)
                os.replace(beside, self._file)


def progress_bar(*, enabled: bool) -> Progress:
    """A live bar, if `enabled`: description, position, the task's field `detail`, elapsed and remaining time."""
    return _bar(MofNCompleteColumn(), enabled=enabled)


def weighted_bar(*, enabled: bool) -> Progress:
    """The same over work of unequal pieces: its total is what they cost, and the field `detail` says which are done."""
    # Single runs of a large sweep take minutes: a speed over the last half minute would know nothing.
    return _bar(TaskProgressColumn(), enabled=enabled, speed_seconds=1800)


def _bar(position: ProgressColumn, *, enabled: bool, speed_seconds: float = 30.0) -> Progress:
    """A bar with this column for how far it is; the remaining time follows the speed of the last so many seconds."""
    columns = [
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        position,
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    ]
    how: dict[str, Any] = {"console": Console(stderr=True), "disable": not enabled}
    how["speed_estimate_period"] = speed_seconds
    file = os.environ.get(PROGRESS_FILE)
    if file and multiprocessing.parent_process() is None:  # of the process that was asked to, not of its workers
        return _Told(*columns, file=Path(file), **how)
    return Progress(*columns, **how)
