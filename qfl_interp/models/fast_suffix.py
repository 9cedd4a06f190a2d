"""The model's function from a position and a block on, for many changes of the same examples.

What lies before a change is computed once: in a causal model, every token before the first that is changed, and every
block before the first. `fast_suffix` keeps keys, values and residual streams of these; `suffix_logits` computes the
rest, under changes of the residual stream. It computes what the model computes with hooks there, within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from qfl_interp.errors import QflError
from qfl_interp.models.fast_forward import (
    FastLayer,
    FastWeights,
    add_linear,
    add_mlp,
    linear,
    normalised,
    qkv,
    read_weights,
)
from qfl_interp.shapes import Tokens

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedTransformer

# Changes of the residual stream after a block: `[example, pos, d_model]` in, the same shape out.
Changes = Mapping[int, Sequence[Callable[[Tensor], Tensor]]]


class _Past(NamedTuple):
    """One block's view of the tokens before the suffix.

    Attributes:
        keys: Turned, heads side by side.
        values: Likewise.
        after: The residual stream after the block.
    """

    keys: Float[Tensor, "example past d_all_heads"]
    values: Float[Tensor, "example past d_all_heads"]
    after: Float[Tensor, "example past d_model"]


class Suffix(NamedTuple):
    """Examples up to a block and a position.

    Attributes:
        layer: The first block that is still to be computed.
        first: The first position that is.
        weights: The model's.
        resid: The residual stream before block `layer` from `first` on.
        before: The one of the tokens before `first`.
        past: What blocks from `layer` on see of the tokens before `first`.
    """

    layer: int
    first: int
    weights: FastWeights
    resid: Float[Tensor, "example suffix d_model"]
    before: Float[Tensor, "example past d_model"]
    past: list[_Past]

    def rows(self, rows: slice) -> Suffix:
        """Some of the examples."""
        past = [_Past(*(tensor[rows] for tensor in block)) for block in self.past]
        return self._replace(resid=self.resid[rows], before=self.before[rows], past=past)


@torch.no_grad()
def fast_suffix(model: HookedTransformer, tokens: Tokens, layer: int, first: int) -> Suffix:
    """The examples up to block `layer` and position `first`, on the model's device.

    Memory: three numbers a token before `first`, block from `layer` on and coordinate of the stream.

    Args:
        model: One that `fast_forward.fast_logits` takes, without hooks.
        tokens: Whole sequences.
        layer: The first block to be left out, counted from 0.
        first: The first position to be left out.

    Raises:
        QflError: The model is none of those.
        ValueError: Tokens beyond the context, or no such block or position.
    """
    weights = read_weights(model, tokens)
    if not 0 <= layer <= len(weights.layers) or not 0 <= first < tokens.shape[1]:
        raise ValueError(
            f"layer and first must lie in [0, {len(weights.layers)}] and [0, {tokens.shape[1]}), got {layer}, {first}."
        )
    x = F.embedding(tokens.to(weights.embed.device), weights.embed)
    if weights.pos_embed is not None:
        x = x + weights.pos_embed[: tokens.shape[1]]
    before, after = x[:, :first], x[:, first:]
    past = []
    for index, block in enumerate(weights.layers):
        start = before
        before, keys, values = _block(weights, block, before, 0, None)
        seen = _Past(keys, values, before)
        if index < layer:
            after, _, _ = _block(weights, block, after, first, seen)
        else:
            if index == layer:
                kept = start
            past.append(seen)
    return Suffix(layer, first, weights, after, kept if past else before, past)


@torch.no_grad()
def suffix_logits(suffix: Suffix, positions: slice, changes: Changes) -> Float[Tensor, "example asked d_vocab"]:
    """Logits at `positions` with the residual stream changed after some blocks.

    Args:
        suffix: Of the untouched model.
        positions: None before `suffix.first`.
        changes: By block, from the one before `suffix.layer` on: one after the other.

    Raises:
        QflError: A change changes a token before `suffix.first`, or a stream's shape.
        ValueError: Positions or blocks that are not in the suffix.
    """
    blocks = range(suffix.layer - 1, len(suffix.weights.layers))
    if positions.start < suffix.first or not set(changes) <= {*blocks}:
        raise ValueError(
            f"positions and blocks must lie in the suffix, from {suffix.first} and {blocks.start} on, got {positions} "
            f"and {sorted(changes)}."
        )
    x = _changed(suffix.before, suffix.resid, changes.get(suffix.layer - 1, ()))
    for index, (block, past) in enumerate(zip(suffix.weights.layers[suffix.layer :], suffix.past, strict=True)):
        x, _, _ = _block(suffix.weights, block, x, suffix.first, past)
        x = _changed(past.after, x, changes.get(suffix.layer + index, ()))
    x = x[:, positions.start - suffix.first : positions.stop - suffix.first]
    matrix, bias = suffix.weights.unembed
    normal, matrix = normalised(x, suffix.weights.norm, matrix, suffix.weights.eps)
    return linear(normal, (matrix, bias))


def _changed(before: Tensor, after: Tensor, changes: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """The suffix' stream after changes of the whole one, which must leave the tokens before it alone."""
    if not changes:
        return after
    n, x = before.shape[1], torch.cat([before, after], 1)
    for change in changes:
        x = change(x)
    if x.shape[1] != n + after.shape[1] or not torch.equal(x[:, :n], before):
        raise QflError(f"a change must leave the tokens before position {n} as they are; it does not. Start earlier.")
    return x[:, n:]


def _block(
    weights: FastWeights, block: FastLayer, x: Tensor, first: int, past: _Past | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The stream after a block at positions from `first` on, their turned keys and their values."""
    matrix, bias = qkv(block, turned=weights.turn is not None)
    normal, matrix = normalised(x, block.norm1, matrix, weights.eps)
    n_heads = block.qkv[0].shape[0]
    q, k, v = linear(normal, (matrix, bias)).chunk(3, -1)
    end = first + x.shape[1]
    if weights.turn is not None:
        turn = weights.turn[first:end]
        q, k = _turned(q * block.qkv[0].shape[2] ** -0.5, turn, n_heads), _turned(k, turn, n_heads)
    keys, values = (k, v) if past is None else (torch.cat([past.keys, k], 1), torch.cat([past.values, v], 1))
    heads = (t.unflatten(-1, (n_heads, -1)).transpose(1, 2) for t in (q, keys, values))
    z = F.scaled_dot_product_attention(*heads, attn_mask=_seen(first, end, x), scale=1.0)
    x = add_linear(x, z.transpose(1, 2).flatten(2), (block.out[0].flatten(0, 1), block.out[1]))
    return add_mlp(x, block, weights.eps), k, v


def _turned(x: Tensor, turn: Float[Tensor, "pos pair 2"], n_heads: int) -> Tensor:
    """Adjacent pairs of each head's coordinates times complex numbers of their position."""
    pairs = torch.view_as_complex(x.unflatten(-1, (n_heads, -1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(turn)[:, None]).flatten(2)


def _seen(first: int, end: int, x: Tensor) -> Bool[Tensor, "query key"]:
    """Which tokens each position sees: none after it."""
    every = torch.arange(end, device=x.device)
    return every[first:, None] >= every[None]
