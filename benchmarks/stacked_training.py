"""Models an hour: runs of one shape trained as stacks, against the same runs alone.

Both ways use the same processes of one thread each, one a core (one in all on a GPU), which are started and warmed
beforehand: alone, each process trains one run after the other; stacked, each trains its half of the members with
`train_stacked`. A model's time holds all that a run needs: data, updates, validation, checkpoints. Both sides train
the same number of updates. Rounds are interleaved; rates are medians. CPU seconds, which other programs on the machine
disturb less, are given beside.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qfl_interp.config import ModelConfig, TrainConfig
from qfl_interp.data.registry import load_task
from qfl_interp.runs.config import RunConfig
from qfl_interp.training.stacked import train_stacked
from qfl_interp.training.train import plan_run, train_planned

TITLE = "Stacked training (addition-16, 4 layers, 4 heads) against runs alone"

MEMBERS = (1, 4, 16, 64)
# Updates by width and batch, so that every cell takes a similar time on a CPU.
N_STEPS = {(16, 8): 160, (16, 64): 40, (64, 8): 80, (64, 64): 16}
N_STEPS_GPU = 200


class _Shape(NamedTuple):
    """What a run is, and where it trains."""

    d_model: int
    batch: int
    n_steps: int
    device: str


class _Times(NamedTuple):
    """Seconds of a round, and processor seconds of all its processes."""

    wall: float
    cpu: float


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of models an hour, stacked, each beside the same runs alone.

    Args:
        quick: One width, few members, one round.
        device: Where to train; on a GPU more updates, in one round.
    """
    gpu = device != "cpu"
    n_workers = 1 if gpu else max(1, min(2, os.cpu_count() or 1))
    context = multiprocessing.get_context("spawn")
    workers = [ProcessPoolExecutor(1, context) for _ in range(n_workers)]
    cells = [(16, 8)] if quick else list(N_STEPS)
    members = MEMBERS[:2] if quick else MEMBERS
    try:
        for started in [worker.submit(_warm_up, device) for worker in workers]:
            started.result()
        rows = []
        for d_model, batch in cells:
            n_steps = N_STEPS_GPU if gpu else N_STEPS[d_model, batch]
            shape = _Shape(d_model, batch, 20 if quick else n_steps, device)
            rows += _cell(workers, shape, members, n_rounds=1 if quick or gpu else 3)
    finally:
        for worker in workers:
            worker.shutdown()
    return rows


def _cell(
    workers: list[ProcessPoolExecutor],
    shape: _Shape,
    members: tuple[int, ...],
    n_rounds: int,
) -> list[dict[str, Any]]:
    alone: dict[int, list[_Times]] = {n: [] for n in {1, len(workers)}}
    stacked: dict[int, list[_Times]] = {n: [] for n in members}
    for index in range(n_rounds):
        for n_members in members:
            # A model alone takes as long whatever their number; the largest stack takes longest, and once is enough.
            n_processes = min(n_members, len(workers))
            if n_members <= 4:
                alone[n_processes].append(_together(workers, _train_alone, shape, n_processes))
            if index == 0 or n_members < MEMBERS[-1]:
                stacked[n_members].append(_together(workers, _train_stacked, shape, n_members))
    rows = []
    for n_members in members:
        n_processes = min(n_members, len(workers))
        solo, ours = _medians(alone[n_processes], n_processes), _medians(stacked[n_members], n_members)
        rows.append(
            {
                "name": f"d_model {shape.d_model}, batch {shape.batch}, {n_members} members",
                "value": 3600 / ours.wall,
                "unit": "models/hour",
                "alone": 3600 / solo.wall,
                "times_more": solo.wall / ours.wall,
                "times_less_cpu": solo.cpu / ours.cpu,
                "n_updates": shape.n_steps,
                "processes": n_processes,
            }
        )
    return rows


def _medians(rounds: list[_Times], n_models: int) -> _Times:
    return _Times(*(statistics.median(times) / n_models for times in zip(*rounds, strict=True)))


def _together(
    workers: list[ProcessPoolExecutor],
    do: Callable[[_Shape, list[int]], float],
    shape: _Shape,
    n_models: int,
) -> _Times:
    """Train models 0 to n - 1, dealt out to the workers."""
    seeds = [list(range(first, n_models, len(workers))) for first in range(len(workers))]
    start = time.perf_counter()
    futures = [worker.submit(do, shape, own) for worker, own in zip(workers, seeds, strict=True) if own]
    cpu = sum(future.result() for future in futures)
    return _Times(time.perf_counter() - start, cpu)


def _warm_up(device: str) -> None:
    """One thread; imports, compiled loops and the device's own start."""
    torch.set_num_threads(1)
    for train in (_train_alone, _train_stacked):
        train(_Shape(16, 8, 2, device), [0])


def _plans(shape: _Shape, seeds: list[int]) -> list[RunConfig]:
    """Runs of one shape that differ in seed and learning rate."""
    task = load_task("addition", length=16)
    model = ModelConfig(d_model=shape.d_model, n_layers=4)
    return [
        plan_run(task, model, TrainConfig(n_steps=shape.n_steps, lr=1e-3 * (1 + seed % 4), seed=seed,
                                          batch_size=shape.batch,
                                          eval_fraction=1.0, n_val=256, n_checkpoints=4))
        for seed in seeds
    ]  # fmt: skip


def _train_alone(shape: _Shape, seeds: list[int]) -> float:
    """CPU seconds of runs trained one after the other."""
    task, start = load_task("addition", length=16), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        for plan in _plans(shape, seeds):
            train_planned(task, plan, Path(folder, plan.run_id), device=shape.device)
    return time.process_time() - start


def _train_stacked(shape: _Shape, seeds: list[int]) -> float:
    """CPU seconds of the same runs trained as stacks."""
    task, start = load_task("addition", length=16), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        runs = [(plan, Path(folder, plan.run_id)) for plan in _plans(shape, seeds)]
        errors = train_stacked(task, runs, device=shape.device)
    if any(errors):
        raise RuntimeError(f"training failed: {errors}")
    return time.process_time() - start
