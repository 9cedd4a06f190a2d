"""Entry points: how tasks, lenses and analyses, ours and others', are found without the core naming one."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import TypeVar

from qfl_interp.errors import QflError

LoadedT = TypeVar("LoadedT")

TASKS = "qfl_interp.tasks"
LENSES = "qfl_interp.lenses"
ANALYSES = "qfl_interp.analyses"
SWEEP_ANALYSES = "qfl_interp.sweep_analyses"
COMMANDS = "qfl_interp.commands"


def is_own(point: EntryPoint) -> bool:
    """Whether an entry point is one of this package's."""
    return point.module.split(".")[0] == "qfl_interp"


@functools.cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group by name; of one name ours first."""
    # The backport importlib_metadata, which Dash imports, gives its own class from then on.
    found = [EntryPoint(p.name, p.value, p.group) for p in importlib.metadata.entry_points(group=group)]
    return tuple(sorted(found, key=lambda p: (p.name, not is_own(p), p.value)))


@functools.cache
def entry_points(group: str) -> Mapping[str, EntryPoint]:
    """The installed entry points of one group by name, nothing imported yet; of one name the first, ours before all."""
    found: dict[str, EntryPoint] = {}
    for point in _installed(group):
        found.setdefault(point.name, point)
    return MappingProxyType(found)


def load_entry_point(group: str, name: str, load: Callable[[EntryPoint], LoadedT] = EntryPoint.load) -> LoadedT:
    """What an entry point of one of the groups above names; by default `load` imports its module.

    Raises:
        QflError: It cannot be loaded, whatever its module raised, even SystemExit.
    """
    point = entry_points(group)[name]
    try:
        return load(point)
    except (Exception, SystemExit) as error:
        said = isinstance(error, (ImportError, AttributeError, QflError))
        why = str(error) if said else f"{type(error).__name__}: {error}"
        message = f"entry point {name!r} of {group} ({point.value}) cannot be loaded: {why}"
        raise QflError(" ".join(message.split()).rstrip(".") + ".") from error


def load_all(
    group: str, load: Callable[[EntryPoint], LoadedT] = EntryPoint.load
) -> tuple[dict[str, LoadedT], list[str]]:
    """Every entry point of a group, as far as they can be loaded: one that cannot must not take the others away.

    Returns:
        What was loaded by name, in the names' order, and one line for each that could not be loaded or whose name
        another one has.
    """
    chosen = entry_points(group)
    faults = [
        f"entry point {point.name!r} of {group} ({point.value}) is left out: {chosen[point.name].value} has this name."
        for point in _installed(group)
        if point.value != chosen[point.name].value
    ]
    loaded = {}
    for name in chosen:
        try:
            loaded[name] = load_entry_point(group, name, load)
        except QflError as error:
            faults.append(str(error))
    return loaded, faults


@functools.cache
def warn(line: str) -> None:
    """Write a line on standard error, each one once in a process: the command line and a page meet the same faults."""
    print(f"warning: {line}", file=sys.stderr)
