"""The loss of the best constant guess for each answer token, measured on data."""

from __future__ import annotations

import numpy as np

from qfl_interp.data.task import Task
from qfl_interp.seeding import generator

# Measured on this many examples, the entropy of k equally likely tokens comes out too low by (k - 1) / (2 n): 4e-4 nats
# for the 26 letters of a graph.
N_EXAMPLES = 32_768
# Examples encoded at a time.
_CHUNK = 4_096


def measured_base_rate(task: Task, n: int = N_EXAMPLES) -> float:
    """Cross-entropy of the best constant guess for the j-th token after `=`, for every j, over the answer alone.

    With n_jv examples whose j-th answer token is v and n_j = sum_v n_jv, the mean over all answer tokens of
    `-ln(n_jv / n_j)`, in nats. The examples are the same at every call.

    Args:
        task: What is guessed.
        n: Examples it is measured on.
    """
    examples = task.sample(generator(0, f"base_rate/{task.name}"), n)
    counts = np.zeros((task.n_ctx, task.d_vocab))
    for start in range(0, n, _CHUNK):
        batch = task.encode(examples[start : start + _CHUNK])
        answer = batch.answer_mask.numpy()
        place = answer.cumsum(axis=1)
        np.add.at(counts, (place[answer], batch.tokens.numpy()[answer]), 1)
    per_place = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        nats = np.nansum(counts * (np.log(per_place)[:, None] - np.log(counts)))
    return float(nats / per_place.sum())
