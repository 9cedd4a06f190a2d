"""Progress bars on standard error, so that standard output stays clean for `--json`."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


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
    return Progress(*columns, console=Console(stderr=True), disable=not enabled, speed_estimate_period=speed_seconds)
