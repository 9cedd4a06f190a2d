"""`--task-option NAME=VALUE`, wherever a command makes a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

TaskOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--task-option",
        metavar="NAME=VALUE",
        help="Something else the task is made with, as k=4; `qfl tasks NAME` lists them. May be repeated.",
        show_default=False,
    ),
]


def task_options(given: Sequence[str] | None) -> dict[str, bool | int | float | str]:
    """The options by name: true and false, numbers, and texts where a value is neither.

    Raises:
        ValueError: One is no NAME=VALUE, or a name is given twice.
    """
    found: dict[str, bool | int | float | str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise ValueError(f"--task-option must be NAME=VALUE, got {text[:80]!r}. Try --task-option k=4.")
        if name in found:
            raise ValueError(f"--task-option must name an option once, got {name[:80]!r} twice. Leave one out.")
        found[name] = _value(value)
    return found


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
