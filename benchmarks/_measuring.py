"""Timing of one piece of work, and work in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch

ValueT = TypeVar("ValueT")


def wait() -> None:
    """Until a GPU that this process uses has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Seconds(NamedTuple):
    """Processor seconds of this process, and wall seconds, of one round."""

    cpu: float
    wall: float


def timed(work: Callable[[], ValueT]) -> tuple[Seconds, ValueT]:
    """What one round took, and what it gave."""
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    wait()
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall), found


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Seconds]:
    """The best round of each work by processor seconds, the works taking turns."""
    taken: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(timed(work)[0])
    return {name: min(rounds_of) for name, rounds_of in taken.items()}


def in_process(work: Callable[..., Any], *arguments: object) -> Any:
    """What a module's function returns in a fresh process, so that its peak memory is that work's alone."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def isolated(device: str, work: Callable[..., Any], *arguments: object) -> Any:
    """`in_process` where a peak is the process's; on a GPU here, as torch counts its peaks anew and starts are slow."""
    return in_process(work, *arguments) if torch.device(device).type == "cpu" else work(*arguments)
