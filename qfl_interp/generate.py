"""Greedy decoding in batches, under whatever interventions are installed on the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor


@torch.no_grad()
def generate_greedy(
    forward: Callable[[Tensor], Tensor], prompts: Int[Tensor, "batch prompt"], *, n_new: int
) -> Int[Tensor, "batch pos"]:
    """Each prompt and its `n_new` most likely next tokens, one at a time; ties go to the lowest id.

    Recomputes the whole prefix for every token: exact under any intervention, because nothing is cached.

    Args:
        forward: Tokens to logits at every position (a `HookedTransformer`).
        prompts: Prompts of one length.
        n_new: Tokens to add.
    """
    tokens = prompts
    for _ in range(n_new):
        following = forward(tokens)[:, -1].argmax(dim=-1, keepdim=True)
        tokens = torch.cat([tokens, following], dim=1)
    return tokens
