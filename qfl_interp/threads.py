"""Pieces of work on every core at once, each on one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Found = TypeVar("Found")


def on_every_core(work: Callable[[Piece], Found], pieces: Iterable[Piece]) -> Iterator[Found]:
    """What `work` gives for each piece, in their order; `torch.get_num_threads()` pieces at a time, each on one core.

    The cores never wait for one another. Splitting each small product over the cores instead costs barriers: several
    times the time when other programs keep a core busy. The bits of a piece do not depend on how many cores there are.

    At most twice as many pieces as cores are begun and not yet taken. An error is raised when its piece is due. What
    the caller does between two of them is on one core too: threads that wait for its next product would spin.
    """
    n_workers = torch.get_num_threads()
    if n_workers == 1:
        yield from map(work, pieces)
        return
    ahead = iter(pieces)
    with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            torch.set_num_threads(1)
            due = deque(pool.submit(work, piece) for piece in itertools.islice(ahead, 2 * n_workers))
            while due:
                found = due.popleft().result()
                due.extend(pool.submit(work, piece) for piece in itertools.islice(ahead, 1))
                yield found
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(n_workers)
