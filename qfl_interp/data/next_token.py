"""Labels that the very next token gives away: read where the model must write just them, whatever else it does."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Integer, Num

from qfl_interp.data.task import NO_POSITION, Task
from qfl_interp.seeding import generator

_N_EXAMPLES = 2_000
# Fewer examples a token, and a label could follow it by chance.
_LEAST_A_TOKEN = 8


@functools.lru_cache(maxsize=256)
def next_token_labels(task: Task, feature: str) -> tuple[int, ...]:
    """The labels of a feature that are a function of the token after the one they are read at, where that is scored.

    Found from data: in 2,000 examples of the task no token is followed back to two values of the label. Such a label is
    decodable wherever the model predicts well, and taking it out of the last block costs that token: it is loud by
    construction. Labels that do not vary are none, nor are those with fewer than 8 examples for each token.

    Raises:
        QflError: The task has no such feature.
    """
    of = task.feature(feature)
    examples = task.sample(generator(0, "next_token"), _N_EXAMPLES)
    if task.d_out is not None:
        return ()  # numbers come once
    batch, positions = task.encode(examples), of.positions(examples)
    tokens, scored = batch.tokens.numpy(), batch.loss_mask.numpy()
    labels = np.asarray(of.labels(examples)).reshape(len(examples), of.n_labels, -1)
    found = []
    for label in range(of.n_labels):
        kept = np.flatnonzero(positions[:, label] != NO_POSITION)
        after = positions[kept, label] + 1
        if len(kept) == 0 or after.max() >= tokens.shape[1] or not scored[kept, after].all():
            continue
        if _is_function_of(labels[kept, label], tokens[kept, after]):
            found.append(label)
    return tuple(found)


def _is_function_of(labels: Num[np.ndarray, "example output"], tokens: Integer[np.ndarray, " example"]) -> bool:
    """Whether the label varies and every token has one value of it."""
    n_values, n_tokens = len(np.unique(labels, axis=0)), len(np.unique(tokens))
    if n_values < 2 or len(labels) < _LEAST_A_TOKEN * n_tokens:
        return False
    return len(np.unique(np.column_stack([tokens.astype(labels.dtype), labels]), axis=0)) == n_tokens
