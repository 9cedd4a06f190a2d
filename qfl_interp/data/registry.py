"""Task name to task, through the entry-point group "qfl_interp.tasks".

A package outside this one adds a task with two lines of its own pyproject.toml:

    [project.entry-points."qfl_interp.tasks"]
    my_task = "my_package.my_module:MyTask"
"""

from __future__ import annotations

import inspect
from typing import Any

from qfl_interp.data.task import Task
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.plugins import TASKS, entry_points, load_entry_point


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


def load_task(name: str, length: int | None = None, **options: Any) -> Task:
    """The registered task of this name at this length.

    Args:
        name: As listed by `task_names()`.
        length: The task's length; its meaning is the task's (bits of an operand, nodes of a graph); the
            paper's by default.
        options: What else the task is made with, as its class declares it (`Task.own_options`; `qfl tasks NAME` lists
            them), and the task's own name for its length: `load_task("modular_addition", p=113, train_fraction=0.3)`.

    Raises:
        QflError: Unknown name, of a task or of an option; the nearest ones are suggested.
        ValueError: The task has no such length, or an option is out of its range.

    Example:
        >>> load_task("sparse_parity", length=8, k=4).relevant
        (2, 3, 5, 7)
    """
    made = task_class(name)
    if options and not _takes_options(made):
        raise QflError(
            f"task {name!r} takes no options, got {', '.join(options)}: __init__ of {made.__qualname__} must pass "
            "**options on to Task.__init__."
        )
    return made(length, **options)


def _takes_options(made: type[Task]) -> bool:
    """Whether a class can be made with options; one with an `__init__` of its own may not."""
    kinds = {parameter.kind for parameter in inspect.signature(made).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds
