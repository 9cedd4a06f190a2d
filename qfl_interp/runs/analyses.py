"""The analyses that entry points register, ours and others', as functions of a run: found by name, imported when used.

They are methods of every `Checkpoints`, `run.probe("carry")`, and functions of the library, `qfl_interp.probe(run)`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any, Final

from qfl_interp.errors import QflError
from qfl_interp.plugins import ANALYSES, LENSES, entry_points, is_own, load_entry_point, warn

# What the first parameter of a function of a run is, in its annotation.
_OF_A_RUN: Final = re.compile(r"\b(Checkpoints|Run)\b")


def analyses() -> dict[str, EntryPoint]:
    """The entry points of lenses and other analyses by the names of their functions; nothing is imported.

    Of one name ours is first, in whatever group: nobody's lens takes the place of what is documented.
    """
    points = [point for group in (LENSES, ANALYSES) for point in entry_points(group).values()]
    found: dict[str, EntryPoint] = {}
    for point in sorted(points, key=lambda point: not is_own(point)):
        found.setdefault(point.name.replace("-", "_"), point)
    return dict(sorted(found.items()))


def analysis(name: str) -> Callable[..., Any]:
    """The function of a run with this name.

    A lens' entry point names the module in which the function of its own name is, any other one a function; where that
    is a command, the function is that of its name in the command's package.

    Raises:
        QflError: It cannot be loaded, or there is a command of this name alone.
    """
    point = analyses()[name]
    of_run = name if point.group == LENSES else point.attr

    def load(_: EntryPoint) -> Any:
        return functools.reduce(getattr, of_run.split("."), importlib.import_module(point.module))

    found = load_entry_point(point.group, point.name, load)
    if not _takes_a_run(found):
        found = getattr(importlib.import_module(point.module.partition(".")[0]), name, None)
    if not inspect.isroutine(found):
        raise QflError(
            f"{point.value} is a command of the command line, and its package has no function {name!r} of a run. "
            f"Call `qfl {point.name}`."
        )
    return found


def loaded_analyses() -> dict[str, Callable[..., Any]]:
    """The functions of all analyses by name; one that cannot be loaded is named on standard error and left out."""
    found = {}
    for name in analyses():
        try:
            found[name] = analysis(name)
        except QflError as error:
            warn(str(error))
    return found


def _takes_a_run(function: Any) -> bool:
    """Whether a function's first parameter is a run, by its annotation."""
    if not inspect.isroutine(function):
        return False
    first = next(iter(inspect.signature(function).parameters.values()), None)
    kind = None if first is None else first.annotation
    return bool(_OF_A_RUN.search(getattr(kind, "__name__", "") if isinstance(kind, type) else str(kind)))
