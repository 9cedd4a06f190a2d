"""jaxtyping aliases used across the library; axis names are spelled alike everywhere."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
LossMask = Bool[Tensor, "batch pos"]
Logits = Float[Tensor, "batch pos d_vocab"]
Resid = Float[Tensor, "batch pos d_model"]
PosLoss = Float[Tensor, "batch pos"]

# Raw examples of a task: one row of integers an example.
Examples = Integer[np.ndarray, "batch raw"]
