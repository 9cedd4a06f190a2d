"""Options of the kind NAME=VALUE: of tasks, optimisers and schedules."""

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


def named_values(given: Sequence[str] | None, flag: str = "--task-option") -> dict[str, bool | int | float | str]:
    """What was given by a flag, by name: true and false, numbers, and texts where a value is neither.

    Raises:
        ValueError: One is no NAME=VALUE, or a name is given twice.
    """
    found: dict[str, bool | int | float | str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise ValueError(f"{flag} must be NAME=VALUE, got {text[:80]!r}. Try {flag} k=4.")
        if name in found:
            raise ValueError(f"{flag} must name an option once, got {name[:80]!r} twice. Leave one out.")
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
