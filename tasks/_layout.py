"""What tasks of every family share: checks of raw rows and prompts, where labels are read, what is scored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int, Integer, Num
from torch import Tensor

from qfl_interp.data.task import Batch, Feature, FeatureKind, Task
from qfl_interp.shapes import Examples, LossMask, Tokens

# In the layout of a prompt: any of the ids that may stand there.
FREE = -1


def check_array(task: Task, examples: np.ndarray) -> None:
    """Raise `ValueError` unless the examples are a 2-D array of integers; which ones is the task's to check."""
    if examples.ndim != 2 or not np.issubdtype(examples.dtype, np.integer):
        raise ValueError(
            f"examples of {task!r} must be a 2-D array of integers, one row an example, got shape {examples.shape} of "
            f"{examples.dtype}. For one example pass example[None]."
        )


def check_rows(task: Task, examples: np.ndarray, width: int, high: int, rule: str) -> None:
    """Raise `ValueError` unless every row is `width` integers of [0, high]; `rule` says in words what a row is."""
    check_array(task, examples)
    least, most = examples.min(initial=0), examples.max(initial=0)
    if examples.shape[1] != width or least < 0 or most > high:
        raise ValueError(
            f"examples of {task!r} must be rows of {rule}, got shape {examples.shape} with values in [{least}, {most}]."
        )


def checked_prompt(
    task: Task, tokens: Tokens, layout: Int[np.ndarray, " prompt"], high: int, rule: str
) -> Int[np.ndarray, "batch prompt"]:
    """The prompts of token rows; what follows them is ignored.

    `layout` is the token at each index of a prompt, `FREE` where it is any of [0, high]; `rule` says it in words.
    A prompt that is laid out otherwise raises `ValueError`.
    """
    ids = tokens[:, : len(layout)].cpu().numpy()
    if ids.shape[1] < len(layout):
        raise ValueError(f"prompts of {task!r} must be {rule}: {len(layout)} tokens, got {ids.shape[1]}.")
    wrong = np.where(layout == FREE, (ids < 0) | (ids > high), ids != layout).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"prompts of {task!r} must be {rule}; row {row} holds the ids {ids[row].tolist()}.")
    return ids


def feature_at(
    name: str,
    kind: FeatureKind,
    reads: Int[np.ndarray, " label"],
    labels: Callable[[Examples], Num[np.ndarray, "batch label *output"]],
    description: str,
    *,
    by_default: bool = True,
) -> Feature:
    """A feature with a label at each of these token indices, the same in every example."""
    n_labels = len(reads)

    def positions(examples: Examples) -> Int[np.ndarray, "batch label"]:
        return np.broadcast_to(reads, (len(examples), n_labels))

    return Feature(name, kind, n_labels, labels, positions, description, by_default)


def scored_between(equals: Int[Tensor, " batch"], last: Int[Tensor, " batch"], n_ctx: int) -> LossMask:
    """True from `=` through `last`, the first end-of-sequence token (or the last answer token where there is none)."""
    index = torch.arange(n_ctx)
    return (index >= equals[:, None]) & (index <= last[:, None])


def scored_from(equals: int, rows: Integer[np.ndarray, "batch pos"]) -> Batch:
    """Rows of token ids that are scored from `=` to their end."""
    scored = torch.arange(rows.shape[1]) >= equals
    return Batch(torch.from_numpy(rows).long(), scored.repeat(len(rows), 1))
