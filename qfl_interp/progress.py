"""Progress bars on standard error, so that standard output stays clean for `--json`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def progress_bar(*, enabled: bool, detail: bool = True) -> Progress:
    """A live bar: description, position, detail text, elapsed and remaining time.

    Args:
        enabled: Draw it; otherwise nothing is printed.
        detail: Room for a text beside the bar, the task's field `detail`.
    """
    columns = [
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *([TextColumn("{task.fields[detail]}")] if detail else []),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True), disable=not enabled)


def track(items: Iterable[T], description: str, *, enabled: bool = True) -> Iterator[T]:
    """The items, with a bar while they are worked on."""
    with progress_bar(enabled=enabled, detail=False) as bar:
        task = bar.add_task(description, total=len(items) if isinstance(items, Sized) else None)
        for item in items:
            yield item
            bar.advance(task)
