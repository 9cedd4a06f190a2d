"""Fresh examples of every task at its default length, on one core; and how long the first batch takes to compile."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch

import qfl_interp as qfl
from benchmarks._measuring import Seconds, in_process, timed
from qfl_interp.data.examples import ExampleStream
from qfl_interp.data.registry import task_names
from qfl_interp.seeding import generator

CPU_ONLY = True
TITLE = "Sampler (every task at its default length, one core)"

# Examples a second on one core; tasks of other families have no target.
_BITS, _SEQUENCES, _GRAPHS = 1e6, 3e5, 5e4
TARGETS = {
    "addition": _BITS,
    "multiplication": _BITS,
    "majority_of_majorities": _BITS,
    "activity_selection": _SEQUENCES,
    "maximum_subarray": _SEQUENCES,
    "breadth_first_search": _GRAPHS,
    "depth_first_search": _GRAPHS,
    "min_spanning_tree": _GRAPHS,
    "shortest_path": _GRAPHS,
    "topological_sort": _GRAPHS,
}
# Every task is timed at the first size; one of each family at all of them.
SIZES = (1024, 64, 8192)
AT_EVERY_SIZE = ("addition", "maximum_subarray", "breadth_first_search")
# Seconds that one round of a case takes about.
_ROUND = 0.1


class Case(NamedTuple):
    """What is timed."""

    task: str
    work: str
    batch: int


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Examples a second, the best of several interleaved rounds; then seconds of each task's first batch.

    "sample + encode" is the task alone; "training stream" adds the split by hash, as training draws; "with labels" adds
    to sample + encode the labels and positions of the features that analyses look at by default, "with all labels"
    those of every feature, where a task has more; all without the time to compile. "first batch" does
    all of these once, in a process of its own that finds no compiled code on disk; imports are not counted.

    Args:
        quick: Two rounds instead of seven, and first batches of three tasks only.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = _rates(rounds=2 if quick else 7)
    finally:
        torch.set_num_threads(threads)
    return rows + [_first_batch_row(name) for name in (AT_EVERY_SIZE if quick else task_names())]


def _rates(rounds: int) -> list[dict[str, Any]]:
    """One row for each task, kind of work and batch size."""
    cases = {
        Case(name, kind, size): make(task, size)
        for name in task_names()
        for task in [qfl.load_task(name)]
        for size in (SIZES if name in AT_EVERY_SIZE else SIZES[:1])
        for kind, make in _work(task).items()
    }
    n_batches = {case: _batches_a_round(work) for case, work in cases.items()}
    best = dict.fromkeys(cases, Seconds(math.inf, math.inf))
    for _ in range(rounds):
        for case, work in cases.items():
            taken, _ = timed(lambda work=work, n=n_batches[case]: [work(step) for step in range(n)])
            best[case] = min(best[case], taken)
    return [_rate_row(case, n_batches[case] * case.batch, taken) for case, taken in best.items()]


def _batches_a_round(work: Callable[[int], object]) -> int:
    """How many batches take about one round; what there is to compile is compiled here."""
    work(0)
    return max(1, round(_ROUND / timed(lambda: work(1))[0].wall))


def _rate_row(case: Case, n: int, taken: Seconds) -> dict[str, Any]:
    """The rate of `n` examples, with its target where the task has one."""
    rate = n / taken.wall
    row = {
        "name": f"{case.task}, {case.work}, batch {case.batch}",
        "value": rate,
        "unit": "examples/s",
        "a_cpu_s": n / taken.cpu,
        **case._asdict(),
    }
    target = TARGETS.get(case.task)
    return row if target is None else {**row, "target": target, "met": rate > target}


def _encode(task: qfl.Task, size: int) -> Callable[[int], object]:
    return lambda step: task.encode(task.sample(generator(0, "benchmark", step), size))


def _label(task: qfl.Task, size: int, every: bool) -> Callable[[int], object]:
    """One batch with the labels and positions of the default features, or of every one."""
    features = [feature for feature in task.features.values() if every or feature.by_default]

    def work(step: int) -> object:
        examples = task.sample(generator(0, "benchmark", step), size)
        found = [(feature.labels(examples), feature.positions(examples)) for feature in features]
        return task.encode(examples), found

    return work


def _work(task: qfl.Task) -> dict[str, Callable[[qfl.Task, int], Callable[[int], object]]]:
    kinds = {
        "sample + encode": _encode,
        "training stream": lambda task, size: ExampleStream(task, seed=0, batch_size=size).batch,
        "with labels": partial(_label, every=False),
    }
    if not all(feature.by_default for feature in task.features.values()):
        kinds["with all labels"] = partial(_label, every=True)
    return kinds


def _first_batch_row(name: str) -> dict[str, Any]:
    """Seconds of a task's first batch in a fresh process that finds nothing compiled."""
    with tempfile.TemporaryDirectory() as cache:
        own = {"NUMBA_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        with mock.patch.dict(os.environ, own):  # what a process started now finds
            seconds = in_process(_seconds_of_first_batch, name)
    return {"name": f"{name}, first batch", "value": seconds, "unit": "s", "task": name, "work": "first batch"}


def _seconds_of_first_batch(name: str) -> float:
    """Everything that is timed above, once, of a task that is loaded but not yet used."""
    task = qfl.load_task(name)
    start = time.perf_counter()
    for make in _work(task).values():
        make(task, SIZES[0])(0)
    return time.perf_counter() - start
