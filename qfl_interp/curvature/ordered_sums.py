"""Gradients to the same bits at several threads: PyTorch sums what falls on one entry in an order of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import deterministic

# A class that torch puts in a module's place, which type checkers do not see.
_MEMORY: Any = deterministic


@contextlib.contextmanager
def ordered_sums(device: str | torch.device) -> Iterator[None]:
    """Have the gradients of indexed float32 parameters on a CPU, such as embeddings, be summed in one order.

    There PyTorch adds with atomic operations, whose order is that of the threads; it is asked for deterministic ones.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warns, fills = torch.is_deterministic_algorithms_warn_only_enabled(), _MEMORY.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    _MEMORY.fill_uninitialized_memory = False  # it costs time, and nothing here reads memory that was not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        _MEMORY.fill_uninitialized_memory = fills
