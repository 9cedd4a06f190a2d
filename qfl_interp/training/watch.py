"""Lenses that look at checkpoints as training writes them, without changing the run's bits."""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from qfl_interp.data.task import Task
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.plugins import LENSES, entry_points, load_entry_point, warn
from qfl_interp.runs.config import RunConfig
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Steps, listed_steps
from qfl_interp.tables import distinct, records, select

# A lens by name, with the arguments of its function beside run and steps.
Watched = Mapping[str, Mapping[str, Any]]
# Headline numbers of one lens and step at most: mirrors are for curves, the table has everything.
_MOST_NUMBERS = 64


class LensWatch:
    """Computes lens tables at some of a run's checkpoints as they appear.

    What a lens raises is said once on standard error, and training goes on: its table can be computed later.

    Args:
        path: The run directory.
        run: Its configuration.
        task: Its task.
        lenses: Names, and arguments of their functions.
        at: Which of the run's checkpoints, as in a lens' `steps`.
        device: Where they compute.
        apart: In a second process, so that training does not wait; the last ones are waited for at the end.

    Raises:
        QflError: A lens is unknown, or does not take an argument.
    """

    def __init__(
        self,
        path: Path,
        run: RunConfig,
        task: Task,
        lenses: Watched,
        at: Steps,
        *,
        device: str | torch.device = "cpu",
        apart: bool = False,
    ) -> None:
        known = {name.replace("-", "_"): name for name in entry_points(LENSES)}
        for name, arguments in lenses.items():
            if name not in known:
                raise unknown_name("lens", name, known)
            function = _function(known[name])
            try:
                inspect.signature(function).bind(None, steps=[0], progress=False, **arguments)
            except TypeError as error:
                raise QflError(f"lens {name!r} cannot be called so: {error}.") from error
        self._calls = [(known[name], dict(arguments)) for name, arguments in lenses.items()]
        saved = run.steps_to_save
        self.steps = set(listed_steps(at, saved))
        wrong = sorted(self.steps - set(saved))
        if wrong:
            raise QflError(f"lenses can look at checkpoints alone, got step {wrong[0]}; the run keeps {saved}.")
        self._path, self._run, self._task, self._device = path, run, task, str(device)
        self._apart, self._pool = apart, None
        self._running: list[tuple[int, str, Future[dict[str, float]]]] = []

    def saved(self, step: int) -> dict[int, dict[str, float]]:
        """Look at a checkpoint that was just written; returns the headline numbers that are there by now, by step."""
        if step in self.steps:
            for name, arguments in self._calls:
                self._start(step, name, arguments)
        return self._collect([one for one in self._running if one[2].done()])

    def finish(self) -> dict[int, dict[str, float]]:
        """Wait for what is still computed; returns its headline numbers."""
        found = self._collect(list(self._running))
        if self._pool is not None:
            self._pool.shutdown()
        return found

    def _start(self, step: int, name: str, arguments: Mapping[str, Any]) -> None:
        """Compute one table part, here or in the second process."""
        work = (self._path, self._run, self._task, name, dict(arguments), step, self._device)
        if self._apart:
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, torch.set_num_threads, (1,))
            self._running.append((step, name, self._pool.submit(_look, *work)))
            return
        future: Future[dict[str, float]] = Future()
        try:
            future.set_result(_look(*work))
        except Exception as error:  # a lens' fault must not end a training
            future.set_exception(error)
        self._running.append((step, name, future))

    def _collect(self, done: Sequence[tuple[int, str, Future[dict[str, float]]]]) -> dict[int, dict[str, float]]:
        """The numbers of finished work; a fault is said once."""
        found: dict[int, dict[str, float]] = {}
        for one in done:
            step, name, future = one
            self._running.remove(one)
            try:
                found.setdefault(step, {}).update(future.result())
            except Exception as error:
                warn(f"lens {name!r} at step {step} failed while training: {type(error).__name__}: {error}")
        return found


def _function(name: str) -> Callable[..., Any]:
    """The function of a lens: of its name, in its module."""
    load_entry_point(LENSES, name)
    module = importlib.import_module(entry_points(LENSES)[name].module)
    return getattr(module, name.replace("-", "_"))


def _look(
    path: Path, config: RunConfig, task: Task, name: str, arguments: Mapping[str, Any], step: int, device: str
) -> dict[str, float]:
    """Compute a lens at one checkpoint; its headline numbers."""
    threads = torch.get_num_threads()
    try:
        result = _function(name)(Run(path, config, task), steps=[step], device=device, progress=False, **arguments)
    finally:
        torch.set_num_threads(threads)
    summary = getattr(result, "summary", None)
    return headline(name, summary, step) if isinstance(summary, pd.DataFrame) else {}


def headline(lens: str, summary: pd.DataFrame, step: int) -> dict[str, float]:
    """The numbers of a lens' short table at a step: "probe/carry/trained/test_loss", texts of a row before its columns.

    Integers tell rows apart too ("layer 1"); what is not finite is left out, and of many numbers the first are kept.
    """
    rows = select(summary, step=step) if "step" in summary else summary
    keys = [name for name in rows if name != "step" and not pd.api.types.is_float_dtype(rows[name])]
    counted = [n for n in keys if pd.api.types.is_numeric_dtype(rows[n]) and len(distinct(rows, str(n))) == 1]
    keys = [name for name in keys if name not in counted]
    found: dict[str, float] = {}
    for row in records(rows):
        parts = [str(row[k]) if isinstance(row[k], str) else f"{k} {row[k]}" for k in keys]
        for name in rows:
            if name not in keys and name != "step" and pd.notna(row[name]) and len(found) < _MOST_NUMBERS:
                found["/".join([lens, *parts, str(name)])] = float(row[name])
    return found
