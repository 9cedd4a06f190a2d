"""jaxtyping aliases used across the library, axis names spelled alike everywhere; tensors shown by their shape."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

# Ids; of a real-valued task vectors.
Tokens = Int[Tensor, "batch pos"] | Float[Tensor, "batch pos d_in"]
# What a position should predict: the id of a token, or numbers.
Targets = Int[Tensor, "batch scored"] | Float[Tensor, "batch scored d_out"]
LossMask = Bool[Tensor, "batch pos"]
Resid = Float[Tensor, "batch pos d_model"]

# Raw examples of a task: one row of integers an example.
Examples = Integer[np.ndarray, "batch raw"]


def compact_repr(self: Any) -> str:
    """The `__repr__` of a named tuple or dataclass that holds tensors: each by dtype and shape, `float32[3, 10]`."""
    names = [field.name for field in fields(self)] if is_dataclass(self) else self._fields
    return f"{type(self).__name__}({', '.join(f'{name}={_compact(getattr(self, name))}' for name in names)})"


def _compact(value: Any) -> str:
    """A tensor's dtype and shape, a number to four digits."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_compact, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
