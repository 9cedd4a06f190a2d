"""A worker process ends with the process that started it, whatever ended that one."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time


def end_with_parent(save_seconds: float = 0.0) -> None:
    """Have this worker process end once its parent is gone, be it killed; call it first in the worker.

    Args:
        save_seconds: How long it may take to save where it is, from a SIGINT on; by default it ends at once.

    Raises:
        RuntimeError: This process was not started by `multiprocessing`.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("end_with_parent must be called in a process that multiprocessing started, not in the main.")
    threading.Thread(target=_watch, args=(parent.sentinel, save_seconds), daemon=True).start()


def _watch(sentinel: int, save_seconds: float) -> None:
    """Wait for the parent's end, then bring about this one's."""
    multiprocessing.connection.wait([sentinel])
    if save_seconds:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(save_seconds)
    os._exit(1)  # the main thread may be in a computation that heeds no signal for minutes
