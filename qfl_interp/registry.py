"""Task name to task, through the entry-point group "qfl_interp.tasks"; analyses the same way.

A package outside this one adds a task with three lines of its own pyproject.toml:

    [project.entry-points."qfl_interp.tasks"]
    my_task = "my_package.my_module:MyTask"
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qfl_interp.errors import QflError, unknown_name
from qfl_interp.task import Task

TASKS = "qfl_interp.tasks"
ANALYSES = "qfl_interp.analyses"
# Top-level packages of ours with common names, which a user's own files can shadow.
_OWN_PACKAGES = ("tasks", "analyses")


@functools.cache
def entry_points(group: str) -> Mapping[str, importlib.metadata.EntryPoint]:
    """The installed entry points of one group by name, nothing imported yet."""
    found = importlib.metadata.entry_points(group=group)
    return MappingProxyType({point.name: point for point in sorted(found, key=lambda p: p.name)})


def load_entry_point(group: str, name: str) -> Any:
    """The object an entry point names.

    Raises:
        QflError: Its module cannot be imported; says what shadows it where that is the cause.
    """
    point = entry_points(group)[name]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        package = point.module.split(".")[0]
        if package in _OWN_PACKAGES:
            module = __import__(package)
            where = Path(getattr(module, "__file__", None) or ".").resolve()
            if not getattr(module, "QFL_INTERP_PACKAGE", False):
                raise QflError(
                    f"the package {package!r} of qfl_interp is shadowed by {where}. "
                    "Rename that file or folder, or run from another directory."
                ) from error
        raise QflError(f"entry point {name!r} of {group} ({point.value}) cannot be loaded: {error}.") from error


def task_names() -> list[str]:
    """Every registered task, sorted."""
    return list(entry_points(TASKS))


def task_class(name: str) -> type[Task]:
    """The class behind a registered task.

    Raises:
        QflError: No task has this name (the nearest ones are suggested), or it cannot be loaded.
    """
    if name not in entry_points(TASKS):
        raise unknown_name("task", name, entry_points(TASKS))
    loaded = load_entry_point(TASKS, name)
    if not (isinstance(loaded, type) and issubclass(loaded, Task)):
        raise QflError(f"entry point {name!r} of {TASKS} must name a subclass of qfl_interp.Task, got {loaded!r}.")
    return loaded


def load_task(name: str, length: int) -> Task:
    """The registered task of this name at this length.

    Args:
        name: As listed by `task_names()`.
        length: The task's length; its meaning is the task's (bits of an operand, nodes of a graph).

    Raises:
        QflError: Unknown name; the nearest ones are suggested.
        ValueError: The task has no such length.
    """
    return task_class(name)(length)
