"""What tasks of every family share: the form of raw rows, where labels are read, what of a sequence is scored."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from qfl_interp.data.task import Batch, Task
from qfl_interp.shapes import Examples, LossMask


def check_array(task: Task, examples: np.ndarray) -> None:
    """Raise unless the examples are a 2-D array of integers; what the integers may be is the task's to check.

    Raises:
        ValueError: They are not.
    """
    if examples.ndim != 2 or not np.issubdtype(examples.dtype, np.integer):
        raise ValueError(
            f"examples of {task!r} must be a 2-D array of integers, one row an example, got shape {examples.shape} of "
            f"{examples.dtype}. For one example pass example[None]."
        )


def consecutive(examples: Examples, first: int, n_labels: int) -> Int[np.ndarray, "batch label"]:
    """Consecutive token indices from `first`, the same for every example."""
    return np.broadcast_to(np.arange(first, first + n_labels), (len(examples), n_labels))


def scored_between(equals: Int[Tensor, " batch"], last: Int[Tensor, " batch"], n_ctx: int) -> LossMask:
    """True from `=` through `last`, the first end-of-sequence token (or the last answer token where there is none)."""
    index = torch.arange(n_ctx)
    return (index >= equals[:, None]) & (index <= last[:, None])


def scored_from(equals: int, rows: Integer[np.ndarray, "batch pos"]) -> Batch:
    """Rows of token ids that are scored from `=` to their end."""
    scored = torch.arange(rows.shape[1]) >= equals
    return Batch(torch.from_numpy(rows).long(), scored.repeat(len(rows), 1))
