"""Fresh training examples on one core: sampling and encoding 16-bit addition, and its features' labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import qfl_interp as qfl
from qfl_interp.data import ExampleStream
from qfl_interp.seeding import generator

TITLE = "Sampler (addition-16, one core)"

# Examples each timed round makes, at every batch size.
_ROUND = 65_536


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Examples a second, the best of several interleaved rounds.

    "sample + encode" is the task alone; "training stream" adds the split by hash, as training draws;
    "labels" adds both features' labels and positions to sample + encode.

    Args:
        quick: Two rounds instead of seven.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _rows(rounds=2 if quick else 7)
    finally:
        torch.set_num_threads(threads)


def _rows(rounds: int) -> list[dict[str, Any]]:
    """One row for each kind of work and batch size."""
    task = qfl.load_task("addition", 16)
    cases = {
        (name, size): make(task, size)
        for size in (64, 1024, 8192)
        for name, make in (("sample + encode", _encode), ("training stream", _stream), ("labels", _label))
    }
    best = dict.fromkeys(cases, 0.0)
    for _ in range(rounds):
        for case, work in cases.items():
            repeats = _ROUND // case[1]
            start = time.perf_counter()
            for step in range(repeats):
                work(step)
            best[case] = max(best[case], repeats * case[1] / (time.perf_counter() - start))
    return [
        {
            "name": f"{name}, batch {size}",
            "value": rate,
            "unit": "examples/s",
            "target": 1e6,
            "met": rate > 1e6,
        }
        for (name, size), rate in best.items()
    ]


def _encode(task: qfl.Task, size: int) -> Callable[[int], object]:
    """One batch of the task's own."""
    return lambda step: task.encode(task.sample(generator(0, "benchmark", step), size))


def _stream(task: qfl.Task, size: int) -> Callable[[int], object]:
    """One batch as training gets it."""
    return ExampleStream(task, seed=0, batch_size=size).batch


def _label(task: qfl.Task, size: int) -> Callable[[int], object]:
    """One batch with every feature's labels and positions."""

    def work(step: int) -> object:
        examples = task.sample(generator(0, "benchmark", step), size)
        found = [(feature.labels(examples), feature.positions(examples)) for feature in task.features.values()]
        return task.encode(examples), found

    return work


if __name__ == "__main__":
    for row in run():
        print(row)
