"""The losses of single tokens by name: what training minimises and validations report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from qfl_interp.errors import QflError
from qfl_interp.recipes import LOSSES, own_loss

# Marks a position whose prediction is not scored; among real-valued targets NaN does.
IGNORED = -100

# One token's each: an id, or numbers.
Target = Int[Tensor, " token"] | Float[Tensor, "token d_out"]
TokenLosses = Callable[[Float[Tensor, "token d_vocab"], Any], Float[Tensor, " token"]]  # a loss for each row of logits


def is_scored(target: Tensor) -> Bool[Tensor, "*token"]:
    """Which targets are scored: ids but `IGNORED`, rows of numbers but NaN."""
    return ~target.isnan().any(dim=-1) if target.is_floating_point() else target != IGNORED


def _require_ids(name: str, target: Tensor) -> None:
    """Raise `QflError` where a loss of token ids is given numbers."""
    if target.is_floating_point():
        raise QflError(f"loss {name!r} needs token ids to predict, got real-valued targets. Take 'squared_error'.")


def cross_entropies(logits: Float[Tensor, "token d_vocab"], target: Target) -> Float[Tensor, " token"]:
    """`-log softmax(f)_y` in nats; 0 where the target is `IGNORED`. Raises `QflError` for real-valued targets."""
    _require_ids("cross_entropy", target)
    return functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")


def squared_errors(logits: Float[Tensor, "token d_vocab"], target: Target) -> Float[Tensor, " token"]:
    """`|f - y|^2 / 2` with the target, or the unit vector of an id; 0 where it is not scored."""
    kept = is_scored(target)
    if target.is_floating_point():
        wanted = target.nan_to_num().to(logits.dtype)
    else:
        wanted = functional.one_hot(target.where(kept, 0), logits.shape[-1]).to(logits.dtype)
    return (logits - wanted).square().sum(dim=-1).where(kept, 0) / 2


def hinges(logits: Float[Tensor, "token d_vocab"], target: Target) -> Float[Tensor, " token"]:
    """`max(0, 1 + max_{j != y} f_j - f_y)`; 0 where the target is `IGNORED`.

    References:
        Crammer and Singer, On the algorithmic implementation of multiclass kernel-based vector machines (JMLR 2001).
    """
    _require_ids("hinge", target)
    kept = target != IGNORED
    index = target.where(kept, 0)[:, None]
    right = logits.gather(1, index)[:, 0]
    others = logits.scatter(1, index, -torch.inf).amax(dim=1)
    return (1 + others - right).clamp_min(0).where(kept, 0)


_NAMED: dict[str, TokenLosses] = dict(zip(LOSSES, (cross_entropies, squared_errors, hinges), strict=True))


def token_losses_of(name: str) -> TokenLosses:
    """The losses of this name; one of the user's is given scored tokens alone, and checked.

    Raises:
        QflError: A function of the user's that this process does not know, or that does not give one finite-typed
            number a token.
    """
    if name in _NAMED:
        return _NAMED[name]
    own = own_loss(name)

    def checked(logits: Tensor, target: Tensor) -> Tensor:
        kept = is_scored(target)
        found = own(logits[kept], target[kept])
        n = int(kept.sum())
        if not isinstance(found, Tensor) or found.shape != (n,) or not found.is_floating_point():
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise QflError(f"loss {name!r} must give one number for each of {n} tokens, got {shape}. Do not average.")
        return logits.new_zeros(len(target)).masked_scatter(kept, found.to(logits.dtype))

    return checked
