"""Where an answer lies in a padded sequence: what tasks with answers of any length share."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from qfl_interp.shapes import LossMask


def scored_between(equals: Int[Tensor, " batch"], last: Int[Tensor, " batch"], n_ctx: int) -> LossMask:
    """True from `=` through `last`, the first end-of-sequence token (or the last answer token where there is none)."""
    index = torch.arange(n_ctx)
    return (index >= equals[:, None]) & (index <= last[:, None])
