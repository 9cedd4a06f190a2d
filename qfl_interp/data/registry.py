"""Task name to task, through the entry-point group "qfl_interp.tasks", or registered in this process.

A package outside this one adds a task with two lines of its own pyproject.toml:

    [project.entry-points."qfl_interp.tasks"]
    my_task = "my_package.my_module:MyTask"

`register_task` does the same for as long as a process runs, and for the processes that it starts to work for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

from qfl_interp.data.task import Task
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.plugins import TASKS, entry_points, load_entry_point

TaskT = TypeVar("TaskT", bound=Task)

_REGISTERED: dict[str, type[Task]] = {}


def register_task(task: type[TaskT]) -> type[TaskT]:
    """Make a task of one's own known by its name: to `load_task`, `Run.open`, sweeps; in this process.

    Processes that this one starts on this machine to work for it learn of it, where they can import its class. For the
    command line, for Ray and for good, name it in the entry points of a package (docs/new_task.md).

    Args:
        task: The class, with a `name` that no installed task has. Registered again (a notebook's cell that runs again),
            the last one counts.

    Returns:
        The class, so that it serves as a decorator.

    Raises:
        TypeError: It is no subclass of `Task`.
        QflError: It has no name, or another class has it.
    """
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"a task to register must be a subclass of qfl_interp.Task, got {task!r}. Give the class.")
    name = getattr(task, "name", None)
    if not isinstance(name, str) or not name:
        raise QflError(f"{task.__qualname__} must have a name to be registered: set `name` in the class.")
    if name in entry_points(TASKS):
        other = entry_points(TASKS)[name].value
    else:
        other = _place(_REGISTERED.get(name, task))
    if other != _place(task):
        raise QflError(f"task name {name!r} of {_place(task)} is taken by {other}. Give the class another `name`.")
    _REGISTERED[name] = task
    return task


def registered_here() -> tuple[type[Task], ...]:
    """The classes that were registered in this process, for processes that it starts."""
    return tuple(_REGISTERED.values())


def register_tasks(tasks: Iterable[type[Task]]) -> None:
    """Register the tasks of the process that started this one."""
    for task in tasks:
        register_task(task)


def is_installed(task: Task) -> bool:
    """Whether a task is the one that an entry point names, so that its name says what it is."""
    return task.name in entry_points(TASKS) and type(task) is task_class(task.name)


def _place(task: type[Task]) -> str:
    """A class as entry points name it; in a worker, one of the script as in the process that the script is."""
    return f"{task.__module__}:{task.__qualname__}".replace("__mp_main__:", "__main__:")


def task_names() -> list[str]:
    """Every registered task, sorted."""
    return sorted({*entry_points(TASKS), *_REGISTERED})


def task_class(name: str) -> type[Task]:
    """The class behind a registered task.

    Raises:
        QflError: No task has this name (the nearest ones are suggested), or it cannot be loaded.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in entry_points(TASKS):
        raise unknown_name("task", name, task_names())
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
