"""The function of several models of one shape, each on its own tokens, as batched matrix products.

The algebra is `fast_forward`'s: only what the positions asked for depend on, an RMS norm's gain folded into the matrix
that reads it, embeddings as one-hot rows where the vocabulary is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qfl_interp.config import ModelConfig
from qfl_interp.models.fast_support import require_supported
from qfl_interp.models.fused_ops import unit_rms
from qfl_interp.models.losses import IGNORED
from qfl_interp.training.stacked.attention import Heads, attention, gated_unit

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedTransformer


class Shape(NamedTuple):
    """What the members of a stack have in common; `turn` is that of their `Heads`."""

    model: ModelConfig
    turn: Float[Tensor, "n_ctx pairs 2"]


def stack_shape(config: ModelConfig, model: HookedTransformer) -> Shape:
    """The shape of stacks of models like this one.

    Raises:
        QflError: The model's function is not the one computed here.
    """
    turn = require_supported(model)
    return Shape(config, torch.zeros(model.cfg.n_ctx, 0, 2) if turn is None else turn.contiguous())


def stacked_logits(
    weights: Mapping[str, Float[Tensor, "member ..."]],
    shape: Shape,
    tokens: Int[Tensor, "member batch pos"],
    span: slice,
) -> Float[Tensor, "member batch asked d_vocab"]:
    """Every member's logits on its own tokens at positions `span`; gradients reach the weights.

    `span` has a start and a stop; nothing after it is computed.
    """
    config, eps = shape.model, shape.model.norm_eps
    n_members, n_batch = tokens.shape[:2]
    tokens = tokens[:, :, : span.stop]
    one_hot = _one_hot(tokens, weights["embed.W_E"])
    x = _embedded(weights, tokens, one_hot)
    for layer in range(config.n_layers):
        block = _Block(weights, f"blocks.{layer}.")
        last = layer == config.n_layers - 1
        first = span.start if last else 0
        heads = Heads(config.n_heads, first, config.d_head_used**-0.5, shape.turn)
        matrix, bias = _qkv(block)
        if layer == 0 and one_hot is not None and "pos_embed.W_pos" not in weights:
            # Without positions in the stream the first block reads one of d_vocab rows.
            rows, matrix = _normalised(weights["embed.W_E"], block, "ln1", matrix, eps)
            source, matrix = one_hot, rows @ matrix
        else:
            source, matrix = _normalised(x, block, "ln1", matrix, eps)
        if first:
            source = source.unflatten(1, (n_batch, -1))
            asking = source[:, :, first:].flatten(1, 2)
            x = x.unflatten(1, (n_batch, -1))[:, :, first:].flatten(1, 2)
            parts = [config.d_model, 2 * config.d_model]
            (w_q, w_kv), (b_q, b_kv) = matrix.split(parts, -1), _split(bias, parts)
            q = _linear(asking, w_q, b_q).view(n_members * n_batch, -1, config.d_model)
            kv = _linear(source.flatten(1, 2), w_kv, b_kv)
        else:
            q, kv = None, _linear(source, matrix, bias)
        z = attention(q, kv.view(n_members * n_batch, -1, kv.shape[-1]), heads)
        x = _add(x, z.view(n_members, -1, config.d_model), block("attn.W_O").flatten(1, 2), block.bias("attn.b_O"))
        x = _add_mlp(x, block, eps)
    final = _Block(weights, "")
    normal, matrix = _normalised(x, final, "ln_final", weights["unembed.W_U"], eps)
    return _linear(normal, matrix, final.bias("unembed.b_U")).unflatten(1, (n_batch, -1))


def member_losses(
    logits: Float[Tensor, "member batch scored d_vocab"], target: Int[Tensor, "member batch scored"]
) -> Float[Tensor, " member"]:
    """`metrics.masked_loss` of every member: mean cross-entropy in nats over the scored tokens of its batch."""
    losses = F.cross_entropy(logits.flatten(0, 2), target.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(len(target), -1).sum(1) / (target != IGNORED).flatten(1).sum(1)


class _Block:
    """A block's parameters by their names in it."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str) -> None:
        self._weights, self._prefix = weights, prefix

    def __call__(self, name: str) -> Tensor:
        return self._weights[self._prefix + name]

    def bias(self, name: str) -> Tensor | None:
        """None in the style that has none."""
        return self._weights.get(self._prefix + name)


def _one_hot(tokens: Tensor, embed: Tensor) -> Tensor | None:
    """One-hot rows [member, batch * pos, d_vocab]; None where the vocabulary is too large for them."""
    n_vocab, d_model = embed.shape[1:]
    return F.one_hot(tokens.flatten(1), n_vocab).to(embed.dtype) if n_vocab <= d_model else None


def _embedded(weights: Mapping[str, Tensor], tokens: Tensor, one_hot: Tensor | None) -> Tensor:
    """The stream before the first block, [member, batch * pos, d_model]."""
    embed = weights["embed.W_E"]
    if one_hot is not None:
        x = one_hot @ embed
    else:
        offset = torch.arange(len(tokens), device=tokens.device) * embed.shape[1]
        x = F.embedding(tokens.flatten(1) + offset[:, None], embed.flatten(0, 1))
    if "pos_embed.W_pos" in weights:
        positions = weights["pos_embed.W_pos"][:, None, : tokens.shape[2]]
        x = (x.unflatten(1, tokens.shape[1:]) + positions).flatten(1, 2)
    return x


def _qkv(block: _Block) -> tuple[Tensor, Tensor | None]:
    """Queries', keys' and values' matrices side by side, [member, input, output], and their biases."""
    matrix = torch.stack([block(f"attn.W_{name}") for name in "QKV"], 1).permute(0, 3, 1, 2, 4).flatten(2)
    if block.bias("attn.b_Q") is None:
        return matrix, None
    return matrix, torch.stack([block(f"attn.b_{name}") for name in "QKV"], 1).flatten(1)


def _normalised(x: Tensor, block: _Block, norm: str, matrix: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normed stream and the matrix that reads it; an RMS norm's gain goes into the matrix."""
    gain, bias = block(f"{norm}.w"), block.bias(f"{norm}.b")
    if bias is None:
        return unit_rms(x, eps), gain[:, :, None] * matrix
    return F.layer_norm(x, x.shape[-1:], eps=eps) * gain[:, None] + bias[:, None], matrix


def _linear(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ matrix + bias` of every member."""
    return torch.bmm(x, matrix) if bias is None else torch.baddbmm(bias[:, None], x, matrix)


def _add(x: Tensor, z: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """`x + z @ matrix + bias` of every member."""
    total = torch.baddbmm(x, z, matrix)
    return total if bias is None else total + bias[:, None]


def _add_mlp(x: Tensor, block: _Block, eps: float) -> Tensor:
    """The stream with the block's MLP added."""
    gate = [block("mlp.W_gate")] if block.bias("mlp.W_gate") is not None else []
    normal, matrix = _normalised(x, block, "ln2", torch.cat([*gate, block("mlp.W_in")], 2), eps)
    hidden = _linear(normal, matrix, block.bias("mlp.b_in"))
    hidden = gated_unit(hidden) if gate else F.gelu(hidden, approximate="tanh")
    return _add(x, hidden, block("mlp.W_out"), block.bias("mlp.b_out"))


def _split(bias: Tensor | None, parts: list[int]) -> tuple[Tensor | None, Tensor | None]:
    """A bias in two, or none twice."""
    return (None, None) if bias is None else (bias[:, : parts[0]], bias[:, parts[0] :])
