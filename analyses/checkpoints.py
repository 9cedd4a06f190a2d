"""Work on many checkpoints: one after the other, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

import torch

from qfl_interp.errors import QflError
from qfl_interp.processes import end_with_parent
from qfl_interp.progress import progress_bar
from qfl_interp.runs.workplace import said_once, share_said

ItemT = TypeVar("ItemT")
ContextT = TypeVar("ContextT")

# What `prepare` gave in this worker process.
_CONTEXT: list[Any] = []


def over_checkpoints(
    items: Sequence[ItemT],
    prepare: Callable[[], ContextT],
    work: Callable[[ContextT, ItemT], object],
    *,
    label: str,
    jobs: int = 1,
    progress: bool = True,
) -> None:
    """Call `work(prepare(), item)` for every item; `prepare` runs once a process, and only if there is work.

    `work` writes what it finds, so that an interrupted call has lost nothing that was finished.

    Args:
        items: What is still to do; each has a short `str`.
        prepare: Loads what all items share.
        work: Does one item.
        label: What the bar says.
        jobs: Processes; no more are started than the machine has cores (or 2). Above 1 each computes on one thread, and
            the arguments must pickle; a script then needs the usual `if __name__ == "__main__":`.
        progress: Draw a bar on standard error.

    Raises:
        ValueError: `jobs` is below 1.
        QflError: An argument cannot go to another process, or a process was killed.
    """
    require_jobs(jobs)
    if not items:
        return
    with progress_bar(enabled=progress) as bar:
        shown = bar.add_task(label, total=len(items), detail="")
        for item in _done(items, prepare, work, jobs, label):
            bar.update(shown, advance=1, detail=str(item))


def n_processes(jobs: int, n_items: int) -> int:
    """How many processes work at a time."""
    return min(jobs, n_items, max(2, os.cpu_count() or 1))


def require_jobs(jobs: int) -> None:
    """Raise `ValueError` where `jobs` is no number of processes."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}. Use the number of cores, or 1 for no extra process.")


def _done(
    items: Sequence[ItemT],
    prepare: Callable[[], ContextT],
    work: Callable[[ContextT, ItemT], object],
    jobs: int,
    label: str,
) -> Iterable[ItemT]:
    """The items as they are finished."""
    if jobs == 1:
        context = prepare()
        for item in items:
            work(context, item)
            yield item
        return
    # Here, where an argument that cannot go to another process is an error: the pool may wait for it forever.
    try:
        ForkingPickler.dumps((prepare, work))
    except Exception as error:  # each type raises what it likes
        raise QflError(
            f"an argument cannot go to another process: {error}. Define classes of your own, such as a task's, in a "
            "module that can be imported, or work in one process (jobs=1)."
        ) from error
    processes = multiprocessing.get_context("spawn")
    futures: dict[Future[None], ItemT] = {}
    # A single item too: on one thread, as the others were, or the bits of a call would depend on its interruptions.
    with (
        said_once(processes) as said,
        ProcessPoolExecutor(
            n_processes(jobs, len(items)), mp_context=processes, initializer=_start, initargs=(said,)
        ) as pool,
    ):
        try:
            for item in items:
                futures[pool.submit(_one, prepare, work, item)] = item
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            # Workers take items in order: those they were at are the first without a result.
            lost = [str(item) for future, item in futures.items() if not future.done() or future.exception()][:jobs]
            raise QflError(
                f"{label}: a worker process died at {' or '.join(lost) or 'its start'}. Was there too little memory, "
                'or does a script lack `if __name__ == "__main__"`? Finished parts are kept: call again, with fewer '
                f"jobs than {jobs}."
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start(said: Synchronized[int]) -> None:
    """What a worker does first."""
    end_with_parent()
    share_said(said)


def _one(prepare: Callable[[], Any], work: Callable[[Any, Any], object], item: Any) -> None:
    """One item in a worker, which prepares before its first."""
    if not _CONTEXT:
        torch.set_num_threads(1)
        _CONTEXT.append(prepare())
    work(_CONTEXT[0], item)
