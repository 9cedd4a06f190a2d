"""Progress bars on standard error, so that standard output stays clean for `--json`."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(*, enabled: bool) -> Progress:
    """A live bar: description, position, the task's field `detail`, elapsed and remaining time.

    Args:
        enabled: Draw it; otherwise nothing is printed.
    """
    columns = [
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True), disable=not enabled)


def weighted_bar(*, enabled: bool) -> Progress:
    """A live bar over work of unequal pieces: its total is what they cost, and the field `detail` says which are done.

    Args:
        enabled: Draw it; otherwise nothing is printed.
    """
    columns = [
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    ]
    # Single runs of a large sweep take minutes: a speed over the last half minute would know nothing.
    return Progress(*columns, console=Console(stderr=True), disable=not enabled, speed_estimate_period=1800)
