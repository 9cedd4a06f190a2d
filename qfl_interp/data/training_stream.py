"""The batches that training takes: fresh examples, or draws from the fixed training set of a task with few problems.

Whatever the draw, the position in the data is the step: nothing is stored to resume, and any batch can be made again.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from qfl_interp.config import TrainConfig
from qfl_interp.data.examples import ExampleStream, in_split, require_room
from qfl_interp.data.task import Batch, Task
from qfl_interp.errors import QflError
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples


class BatchSizes(NamedTuple):
    """Examples of an update, and problems of the fixed training set; None where every step draws fresh ones."""

    batch_size: int
    n_train: int | None


@functools.lru_cache(maxsize=4)
def training_problems(task: Task) -> Examples:
    """Every problem of the training split, in the order of `Task.problems`; kept, and never to be written to.

    Raises:
        QflError: The task does not list its problems, or none of them is for training.
    """
    problems = task.problems()
    if problems is None:
        raise QflError(
            f"batch_size 'all' and a draw but 'fresh' need a task that lists its problems, got {task!r}: there are too "
            "many, or they are not equally likely. Use a smaller length, or draw='fresh' with a number as batch_size."
        )
    found = problems[in_split(task, problems, "train")]
    if len(found) == 0:
        raise QflError(f"the train split of {task!r} holds no problem. Use a larger train_fraction or length.")
    found.setflags(write=False)
    return found


def batch_sizes(task: Task, config: TrainConfig) -> BatchSizes:
    """The numbers behind a configuration's `batch_size` and `draw`.

    Raises:
        QflError: As `training_problems`; or the batch is larger than the fixed training set.
    """
    if config.batch_size != "all" and config.draw == "fresh":
        return BatchSizes(config.batch_size, None)
    n = len(training_problems(task))
    size = n if config.batch_size == "all" else config.batch_size
    if size > n:
        raise QflError(
            f"batch_size must be at most the {n:,} training problems of {task!r} with draw {config.draw!r}, got "
            f"{size:,}. Take fewer, or batch_size 'all'."
        )
    return BatchSizes(size, n)


class TrainingSetStream:
    """Batches from the fixed training set, encoded once and kept.

    With n problems, B of them a step:

    - all n at every step, in their order, where B = n, but in epochs;
    - "batch": the first B of a permutation drawn from (seed, step): without replacement within the step;
    - "epoch": problems B step .. B (step + 1) - 1 of an endless row of permutations, that of epoch e drawn from
      (seed, e): each problem once an epoch. A batch may hold the end of one epoch and the beginning of the next.

    Args:
        task: Lists its problems.
        config: Seed, batch size and draw.

    Raises:
        QflError: As `batch_sizes`, or the set does not fit into memory.
    """

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self.batch_size, n_train = batch_sizes(task, config)
        self.task, self.seed, self.draw = task, config.seed, config.draw
        self.problems = training_problems(task)
        assert n_train == len(self.problems)
        require_room(task, len(self.problems), "training problems", "Take a smaller train_fraction or length.")
        self._permutation = functools.lru_cache(maxsize=2)(self._permutation_of)

    def examples(self, step: int) -> Examples:
        """The raw examples of one step, the same at every call."""
        rows = self._rows(step)
        return self.problems if rows is None else self.problems[rows]

    def batch(self, step: int) -> Batch:
        """The encoded examples of one step."""
        rows = self._rows(step)
        return self._encoded if rows is None else self._encoded.rows(torch.from_numpy(rows))

    @functools.cached_property
    def _encoded(self) -> Batch:
        return self.task.encode(self.problems)

    def _rows(self, step: int) -> Int64[np.ndarray, " example"] | None:
        """Which problems a step takes; None: all, in their order."""
        n, size = len(self.problems), self.batch_size
        if self.draw == "epoch":
            first = step * size
            epochs = range(first // n, (first + size - 1) // n + 1)
            row = np.concatenate([self._permutation(epoch) for epoch in epochs])
            return row[first - epochs[0] * n :][:size]
        if size == n:
            return None
        # The stream of the edge-of-stability networks, whose runs keep their bits.
        return generator(self.seed, "homogeneous/batches", step).permutation(n)[:size]

    def _permutation_of(self, epoch: int) -> Int64[np.ndarray, " row"]:
        """The order of the problems in an epoch."""
        return generator(self.seed, "data/epochs", epoch).permutation(len(self.problems))


# What training reads: `batch_size`, and of any step `examples` and `batch`.
TrainingStream = ExampleStream | TrainingSetStream


def make_stream(task: Task, config: TrainConfig) -> TrainingStream:
    """The training batches of a task under a configuration; any of them can be made again, in any order.

    Raises:
        QflError: The configuration needs a fixed training set and the task lists no problems, the batch is larger than
            the set, or a batch or the set does not fit into memory.

    Example:
        >>> from qfl_interp.data.registry import load_task
        >>> task = load_task("modular_addition", p=7, train_fraction=0.5)
        >>> make_stream(task, TrainConfig(n_steps=10, batch_size="all")).batch_size
        18
    """
    size, n_train = batch_sizes(task, config)
    return ExampleStream(task, config.seed, size) if n_train is None else TrainingSetStream(task, config)
