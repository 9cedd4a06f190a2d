"""Every analysis on one model in memory: `probe(model, task=task)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from qfl_interp.runs.suite import Suite


def takes_models(analysis: Callable[..., Any]) -> Callable[..., Any]:
    """The analysis, which takes a model and a task in place of a series of checkpoints.

    The model is looked at as the one step of `Suite.from_models`, in a temporary folder. Whatever else the analysis
    takes is given by name. A function that takes models already is returned as it is.
    """
    if getattr(analysis, "takes_models", False):
        return analysis

    @functools.wraps(analysis)
    def called(*arguments: Any, **options: Any) -> Any:
        if not arguments or not isinstance(arguments[0], nn.Module):
            return analysis(*arguments, **options)
        model, *others = arguments
        if "task" not in options:
            name = analysis.__name__
            raise TypeError(
                f"{name}(model) needs the task to look at it on: {name}(model, task=task). A task is a registered one "
                "(qfl_interp.load_task), a dataset of yours (qfl_interp.FixedTask), or a class (docs/new_task.md)."
            )
        task = options.pop("task")
        suite = Suite.from_models({0: model}, task, name=type(model).__name__)
        return analysis(suite, *others, **options)

    called.takes_models = True  # type: ignore[attr-defined]  # so that it is wrapped once
    return called
