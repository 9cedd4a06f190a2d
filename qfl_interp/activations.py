"""The residual stream where a feature is read: every layer in one pass, only the positions that are needed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.fast_forward import fast_resid
from qfl_interp.model import HookedTransformer, model_device
from qfl_interp.shapes import Tokens
from qfl_interp.task import NO_POSITION


class ReadOut(NamedTuple):
    """Activations of one feature.

    Attributes:
        x: The residual stream after each block at each label's position; zeros where an example has no such label.
        present: Which examples have the label.
    """

    x: Float[Tensor, "layer label example d_model"]
    present: Bool[Tensor, "label example"]


class ResidSpan(NamedTuple):
    """The residual stream after every block, over a stretch of positions.

    Attributes:
        first: Token index of the first position kept.
        resid: On the CPU, float32 or as the model computes.
    """

    first: int
    resid: Float[Tensor, "layer pos example d_model"]

    def read(self, positions: Int[np.ndarray, "example label"]) -> ReadOut:
        """The activations at `positions`; a view where every example reads the same ones, in a row or all the same.

        Raises:
            ValueError: A position is outside the span.
        """
        present = positions != NO_POSITION
        last = self.first + self.resid.shape[1] - 1
        if present.any() and (positions[present].min() < self.first or positions[present].max() > last):
            raise ValueError(
                f"positions must lie in the span [{self.first}, {last}], got "
                f"[{positions[present].min()}, {positions[present].max()}]. Capture them first."
            )
        if present.all() and (positions == positions[:1]).all():
            index = positions[0] - self.first
            if (np.diff(index) == 1).all():
                x = self.resid[:, index[0] : index[-1] + 1]
            elif (np.diff(index) == 0).all():
                x = self.resid[:, index[0] : index[0] + 1].expand(-1, len(index), -1, -1)
            else:
                x = self.resid[:, index]
            return ReadOut(x, torch.ones(x.shape[1:3], dtype=torch.bool))
        index = torch.from_numpy(np.where(present, positions - self.first, 0).T.copy())
        x = self.resid[:, index, torch.arange(len(positions))]
        kept = torch.from_numpy(present.T.copy())
        return ReadOut(x * kept[..., None], kept)


@torch.no_grad()
def resid_span(model: HookedTransformer, tokens: Tokens, first: int, last: int, *, chunk: int = 500) -> ResidSpan:
    """`resid_post` of every layer at the positions `first` to `last`, inclusive, of every example.

    Memory: `n_layers (last - first + 1) examples d_model` numbers, plus one chunk's forward pass.

    Args:
        model: Any model `fast_logits` supports.
        tokens: Whole sequences; what comes after `last` is not computed.
        first: First position kept.
        last: Last position kept.
        chunk: Examples a forward pass.

    Raises:
        ValueError: The span is empty or outside the sequence.
    """
    if not 0 <= first <= last < tokens.shape[1]:
        raise ValueError(f"first and last must satisfy 0 <= first <= last < {tokens.shape[1]}, got {first}, {last}.")
    config = model.cfg
    layers = range(config.n_layers)
    kept = torch.empty(config.n_layers, last - first + 1, len(tokens), config.d_model, dtype=config.dtype)
    device = model_device(model)
    for start in range(0, len(tokens), chunk):
        part = fast_resid(model, tokens[start : start + chunk].to(device), layers, slice(first, last + 1))
        kept[:, :, start : start + chunk] = part.permute(1, 2, 0, 3).cpu()
    return ResidSpan(first, kept)
