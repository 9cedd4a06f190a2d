"""Greedy decoding in batches, under whatever interventions are installed: all new tokens guessed, checked in one pass.

A pass over a guess gives, at each position, the token that follows what stands before it. Up to the first wrong guess
that is what decoding one token at a time would write; the rest is guessed anew. Every pass settles at least one more
token, so the result is exact after at most as many passes as tokens, and after one where the guess was right.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from qfl_interp.shapes import Tokens


@torch.no_grad()
def decode_greedy(
    forward: Callable[[Tensor, Tensor], Tensor], tokens: Tokens, free: Bool[Tensor, "batch pos"]
) -> Tokens:
    """`tokens` with those that are `free` replaced, from left to right, by the most likely one; ties to the lowest id.

    Exact for causal models, under every intervention that changes a position in the same way whatever follows it. Two
    logits that differ by rounding alone may change places, as between any two batch shapes.

    `forward` takes tokens of some examples, and which ones (their indices), to logits at every position. Examples that
    are settled are not passed again. What `tokens` hold where they are `free` is a guess.

    Raises:
        ValueError: A first token is free: nothing predicts it.

    References:
        Santilli et al. (2023), arXiv 2305.10427, parallel Jacobi decoding.
    """
    if bool(free[:, :1].any()):
        raise ValueError(
            "free must not hold the first token, which nothing predicts, "
            f"got it in example {int(free[:, 0].nonzero()[0])}. Start every prompt with one token at least."
        )
    tokens = tokens.clone()
    order = torch.arange(tokens.shape[1], device=tokens.device)
    last = torch.where(free, order, 0).amax(dim=1) if tokens.numel() else order[:0]
    # Tokens before this one are settled.
    settled = torch.ones_like(last)
    rows = torch.nonzero(last).flatten()
    while len(rows):
        end = int(last[rows].max())
        following = forward(tokens[rows, :end], rows).argmax(dim=-1).to(tokens)
        guess, open_ = tokens[rows, 1 : end + 1], free[rows, 1 : end + 1] & (order[1 : end + 1] >= settled[rows, None])
        wrong = open_ & (following != guess)
        # Those before the first wrong one were right, and its own new value is: nothing before it changes any more.
        wrong_from = torch.where(wrong.any(dim=1), wrong.int().argmax(dim=1), end)
        tokens[rows, 1 : end + 1] = torch.where(open_ & (order[:end] >= wrong_from[:, None]), following, guess)
        settled[rows] = wrong_from + 2
        rows = rows[settled[rows] <= last[rows]]
    return tokens


@torch.no_grad()
def generate_greedy(
    forward: Callable[[Tensor], Tensor],
    prompts: Int[Tensor, "batch prompt"],
    *,
    n_new: int,
    guess: Int[Tensor, "_ new"] | None = None,
) -> Int[Tensor, "batch pos"]:
    """Each prompt and its `n_new` most likely next tokens, as if one at a time; ties go to the lowest id.

    `forward` always gets all examples, so that interventions aligned with them may be installed. Exact under the
    conditions of `decode_greedy`, in at most `n_new` passes, and one where the guess is right.

    Args:
        forward: Tokens to logits at every position (a `HookedTransformer`).
        prompts: Prompts of one length, of at least one token.
        n_new: Tokens to add.
        guess: Likely new tokens, the reference answer for example; by default the prompt's last token, repeated. They
            decide the time, not the result.

    Raises:
        ValueError: A prompt is empty, `n_new` is negative, or `guess` has another shape.
    """
    if n_new < 0 or prompts.shape[1] < 1:
        raise ValueError(
            "n_new must be at least 0 and prompts at least one token long, "
            f"got n_new={n_new} and prompts of shape {tuple(prompts.shape)}."
        )
    if guess is None:
        guess = prompts[:, -1:].expand(-1, n_new)
    if guess.shape != (len(prompts), n_new):
        raise ValueError(f"guess must have shape {(len(prompts), n_new)}, got {tuple(guess.shape)}.")
    tokens = torch.cat([prompts, guess.to(prompts)], dim=1)
    free = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens) >= prompts.shape[1]
    latest = tokens.clone()

    def of_all(part: Tensor, rows: Tensor) -> Tensor:
        latest[rows, : part.shape[1]] = part
        return forward(latest[:, : part.shape[1]])[rows]

    return decode_greedy(of_all, tokens, free)
