"""How far work is, on standard error, so that standard output stays clean for `--json`: a bar, or lines off a terminal.

A bar is one line at any width: what it is, how far, the fields of its task's `detail`, and the time that is left. Where
the line is too short, the later fields go. Off a terminal (a log file, a batch job) a line is printed at the start, at
most one a minute, and one at the end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import Progress, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

# Two blanks part the fields of `detail`, the most telling one first.
FIELDS: Final = "  "
_BAR: Final = (8, 24)
_EVERY_SECONDS: Final = 60.0

# Names the file that bars write how far they are into, for whoever watches from another process.
PROGRESS_FILE: Final = "QFL_PROGRESS_FILE"
# At most so often.
_SECONDS: Final = 0.2


def progress_bar(*, enabled: bool) -> Progress:
    """How far some steps are, if `enabled`: what is done, its number, the task's field `detail`, the time left."""
    return _shown(lambda task: f"{task.completed:,.0f}/{task.total:,.0f}" if task.total else "", 30.0, enabled)


def weighted_bar(*, enabled: bool) -> Progress:
    """The same over work of unequal pieces: its total is what they cost, and the field `detail` says which are done."""
    # Single runs of a large sweep take minutes: a speed over the last half minute would know nothing.
    return _shown(lambda task: f"{task.percentage:.0f} %", 1800.0, enabled)


def _shown(position: Callable[[Task], str], speed_seconds: float, enabled: bool) -> Progress:
    """A bar, or lines where nobody sees it move; the time left follows the speed of the last so many seconds."""
    console = Console(stderr=True)
    moves = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
    kind = _Bar if moves or not enabled else _Lines
    return kind(position, console=console, disable=not enabled, speed_estimate_period=speed_seconds)


class _Told:
    """A file of how far a bar is, whether it is shown or not: `{"what", "done", "total", "detail"}`."""

    def __init__(self, file: Path) -> None:
        self._file, self._last = file, 0.0

    def tell(self, task: Task) -> None:
        """Write the file, unless that was done just now."""
        if task.finished or not task.completed or time.monotonic() - self._last >= _SECONDS:
            self._last = time.monotonic()
            said = {"what": task.description, "done": task.completed, "total": task.total}
            data = json.dumps(said | {"detail": str(task.fields.get("detail", ""))})
            with contextlib.suppress(OSError):  # what is watched goes on without a watcher
                beside = self._file.with_name(f"{self._file.name}.{os.getpid()}")
                beside.write_text(data)
                os.replace(beside, self._file)


def _told() -> _Told | None:
    """The file that a watcher asked for; of the process that was asked to, not of its workers."""
    file = os.environ.get(PROGRESS_FILE)
    return _Told(Path(file)) if file and multiprocessing.parent_process() is None else None


class _Work(Progress):
    """What both kinds of bars do: they hand on how far each task is.

    Args:
        position: How far a task is, in a few letters.
        **options: Of rich's `Progress`.
    """

    def __init__(self, position: Callable[[Task], str], **options: Any) -> None:
        self._position, self._told = position, _told()
        super().__init__(**options)

    def add_task(self, description: str, *more: Any, **fields: Any) -> TaskID:
        """As rich's, handed on."""
        task_id = super().add_task(description, *more, **fields)
        self.moved(self._tasks[task_id])
        return task_id

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As rich's, handed on."""
        super().update(task_id, **changes)
        self.moved(self._tasks[task_id])

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As rich's, handed on."""
        super().advance(task_id, advance)
        self.moved(self._tasks[task_id])

    def moved(self, task: Task) -> None:
        """Called whenever a task is farther."""
        if self._told:
            self._told.tell(task)


class _Bar(_Work):
    """A live line for each task, never longer than the terminal is wide."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines of the tasks that are visible."""
        for task in self.tasks:
            if task.visible:
                yield self._line(task)

    def _line(self, task: Task) -> Table:
        width, said = self.console.width, f"{task.description} "
        room = width - cell_len(said) - _BAR[0] - 1
        text = _fitting(self._position(task), task, room)
        bar = min(max(width - cell_len(said) - cell_len(text) - 1, _BAR[0]), _BAR[1])
        line = Table.grid()
        line.add_row(
            Text(said, "bold", no_wrap=True, overflow="crop"),
            ProgressBar(task.total, task.completed, width=bar, pulse=not task.started or task.total is None),
            Text(f" {text}", no_wrap=True, overflow="ellipsis"),
        )
        return line


class _Lines(_Work):
    """The same as plain lines: at the start, at most once a minute, and at the end; rich itself prints nothing."""

    def __init__(self, position: Callable[[Task], str], **options: Any) -> None:
        self._said: dict[TaskID, tuple[float, str]] = {}
        super().__init__(position, **options | {"disable": True})

    def moved(self, task: Task) -> None:
        """A line where the last one is a minute old, or nothing was said yet."""
        super().moved(task)
        at, _ = self._said.get(task.id, (-_EVERY_SECONDS, ""))
        if task.visible and self.get_time() - at >= _EVERY_SECONDS:
            self._say(task)

    def stop(self) -> None:
        """The last line of each task, where it says something new."""
        for task in self.tasks:
            if task.visible:
                self._say(task)
        super().stop()

    def _say(self, task: Task) -> None:
        text = " ".join(filter(None, [task.description, _fitting(self._position(task), task, 10_000)]))
        if self._said.get(task.id, (0.0, ""))[1] != text:
            self._said[task.id] = self.get_time(), text
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _fitting(position: str, task: Task, room: int) -> str:
    """Position, fields and time in at most `room` columns; the first field and the time go last."""
    first, *others = str(task.fields.get("detail", "")).split(FIELDS)
    # In the order in which they are shown, with how soon each gets its place.
    parts = [(0, position), (1, first), *enumerate(others, start=3), (2, _time(task))]
    shown: set[int] = set()
    for rank, _ in sorted(parts):
        tried = " ".join(text for at, text in parts if text and at in {*shown, rank})
        if cell_len(tried) > room:
            break
        shown.add(rank)
    return " ".join(text for at, text in parts if text and at in shown)


def _time(task: Task) -> str:
    """What is left, or what it took; empty where that is not known."""
    if task.finished:
        return f"in {_clock(task.finished_time or 0.0)}"
    left = task.time_remaining
    return "" if left is None or not task.completed else f"eta {_clock(left)}"


def _clock(seconds: float) -> str:
    """Seconds as "0:45" or "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
