"""Ctrl-C held back until a safe place: inside an update, weights and optimiser would not belong together."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back; the yielded function says whether one came, and the caller stops where it is safe.

    A second Ctrl-C raises `KeyboardInterrupt` at once. Nothing changes outside the main thread, where Python delivers
    no signals, or where the program has its own way with Ctrl-C.
    """
    came = threading.Event()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield came.is_set
        return

    def hold(number: int, frame: FrameType | None) -> None:
        if came.is_set():
            signal.default_int_handler(number, frame)
        came.set()

    signal.signal(signal.SIGINT, hold)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
