"""Counter-based random generators keyed by (seed, stream, step): the position in the data is the step."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _stream_word(stream: str) -> int:
    """64 bits that name a stream."""
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")


def generator(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """A NumPy generator that depends on its three keys alone.

    Philox4x64 with key (seed, stream) and the step in the counter's highest word, so that generators of different
    steps never overlap (each has 2**192 draws of its own).

    Args:
        seed: The run's seed, in [0, 2**63).
        stream: What the numbers are for; a new use gets a stream of its own, so that no use shifts another.
        step: Position in the stream, at least 0.

    Raises:
        ValueError: The seed is out of its range.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in [0, 2**63), got {seed}. Any number in it serves.")
    key = np.array([seed, _stream_word(stream)], dtype=np.uint64)
    counter = np.array([0, 0, 0, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def torch_generator(seed: int, stream: str) -> torch.Generator:
    """A CPU torch generator that depends on its two keys alone; the global one is never touched."""
    import torch

    return torch.Generator().manual_seed(int(generator(seed, stream).integers(2**63)))
