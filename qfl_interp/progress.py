"""How far work is, on standard error, so that standard output stays clean for `--json`: a bar, or lines off a terminal.

A bar is one line at any width: what it is, how far, the fields of its task's `detail`, and the time that is left. Where
the line is too short, the later fields go. Off a terminal (a log file, a batch job) a line is printed at the start, at
most one a minute, and one at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


class _Bar(Progress):
    """A live line for each task, never longer than the terminal is wide.

    Args:
        position: How far a task is, in a few letters.
        **options: Of rich's `Progress`.
    """

    def __init__(self, position: Callable[[Task], str], **options: Any) -> None:
        self._position = position
        super().__init__(**options)

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


class _Lines(Progress):
    """The same as plain lines: at the start, at most once a minute, and at the end.

    Args:
        position: How far a task is, in a few letters.
        disable: Whatever is given, nothing moves.
        **options: Of rich's `Progress`.
    """

    def __init__(self, position: Callable[[Task], str], *, disable: bool = False, **options: Any) -> None:
        self._position = position
        self._said: dict[TaskID, tuple[float, str]] = {}
        super().__init__(disable=True, **options)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As rich's, and a line where the last one is a minute old or nothing was said yet."""
        super().update(task_id, **changes)
        self._may_say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As rich's, likewise."""
        super().advance(task_id, advance)
        self._may_say(task_id)

    def add_task(self, description: str, *more: Any, **fields: Any) -> TaskID:
        """As rich's, with the first line."""
        task_id = super().add_task(description, *more, **fields)
        self._may_say(task_id)
        return task_id

    def stop(self) -> None:
        """The last line of each task, where it says something new."""
        for task in self.tasks:
            if task.visible:
                self._say(task)
        super().stop()

    def _may_say(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        at, _ = self._said.get(task_id, (-_EVERY_SECONDS, ""))
        if task.visible and self.get_time() - at >= _EVERY_SECONDS:
            self._say(task)

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
