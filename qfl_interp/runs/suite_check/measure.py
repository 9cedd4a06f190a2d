"""What a check keeps of one checkpoint: digests, moments and a sketch of every tensor, losses on the task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from qfl_interp.seeding import generator

# Numbers of a tensor that distances are told from, at random places that are the same in every checkpoint: a distance
# between tensors is then right to 2 % (1 / sqrt(2 * 1024)), and that of whole checkpoints better.
SKETCH = 1024
# Of fewer different numbers a precision or a change cannot be told: gains of 1, biases of 0.
_DIFFERENT = 8


class Measured(NamedTuple):
    """What is kept of the tensors of a checkpoint.

    Attributes:
        rows: One a tensor: its name, type, shape, numbers, digest, how many are not finite, mean, standard deviation,
            and the bits that hold its numbers (16 where bfloat16 or float16 hold each of them exactly, 0 of too few).
        sketches: Some of its numbers, by name.
    """

    rows: list[dict[str, Any]]
    sketches: dict[str, Tensor]


def measured(tensors: Iterable[tuple[str, Tensor]]) -> Measured:
    """Measure tensors one after the other; of numbers alone, others (indices, masks) have no sketch."""
    rows, sketches = [], {}
    for name, tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        row = {
            "tensor": name, "dtype": str(plain.dtype).removeprefix("torch."), "shape": str(list(plain.shape)),
            "size": plain.numel(), "digest": _digest(plain), "n_nonfinite": 0,
            "mean": float("nan"), "std": float("nan"), "n_different": 0, "bits": 0,
        }  # fmt: skip
        if plain.is_floating_point() and plain.numel():
            numbers = plain.float().flatten()
            row["n_nonfinite"] = int((~torch.isfinite(numbers)).sum())
            row["mean"], row["std"] = float(numbers.mean()), float(numbers.std(correction=0))
            sketch = numbers[torch.from_numpy(_places(name, len(numbers)))]
            row["n_different"] = len(sketch.unique())
            row["bits"] = _bits(sketch) if row["n_different"] >= _DIFFERENT else 0
            sketches[name] = sketch
        rows.append(row)
    return Measured(rows, sketches)


def _digest(tensor: Tensor) -> str:
    """Of shape and bits."""
    state = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    state.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return state.hexdigest()[:16]


def _places(name: str, n: int) -> Int[np.ndarray, " place"]:
    """Where a tensor is sketched."""
    if n <= SKETCH:
        return np.arange(n)
    return np.sort(generator(0, f"suite_check/{name}").choice(n, SKETCH, replace=False))


def _bits(numbers: Tensor) -> int:
    """16 where a half-precision type holds each of the numbers, else 32."""
    return 16 if any(torch.equal(numbers.to(t).float(), numbers) for t in (torch.bfloat16, torch.float16)) else 32
