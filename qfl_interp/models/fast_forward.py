"""The model's function with the model's parameters, without its hook points: for training and evaluation.

`fast_logits(model, tokens)` equals `model(tokens)` within rounding, gradients too. It computes only what the
positions asked for depend on, and refuses a model whose function it does not know.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from qfl_interp.models.fast_support import require_supported
from qfl_interp.models.fused_ops import (
    ACTIVATIONS,
    AttentionPlan,
    at_positions,
    causal_attention,
    swiglu,
    unit_rms,
)
from qfl_interp.shapes import Tokens

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedTransformer

Positions = Int[Tensor, " asked"] | slice | None
Norm = tuple[Tensor, Tensor | None] | None
FastLogits = Callable[..., Float[Tensor, "batch asked d_vocab"]]


class FastLayer(NamedTuple):
    """One block's parameters; None where the model has none.

    A norm is a gain and a shift, `up` and `down` the MLP's matrices with their biases, `act` its nonlinearity's name.
    """

    norm1: Norm
    norm2: Norm
    qkv: tuple[Tensor, Tensor, Tensor]
    qkv_bias: tuple[Tensor, Tensor, Tensor] | None
    out: tuple[Tensor, Tensor | None]
    gate: Tensor | None
    up: tuple[Tensor, Tensor | None] | None
    down: tuple[Tensor, Tensor | None] | None
    act: str


class FastWeights(NamedTuple):
    """Everything one forward pass reads."""

    embed: Tensor
    pos_embed: Tensor | None
    layers: list[FastLayer]
    norm: Norm
    unembed: tuple[Tensor, Tensor | None]
    turn: Tensor | None
    eps: float


def fast_logits(
    model: HookedTransformer, tokens: Tokens, positions: Positions = None
) -> Float[Tensor, "batch asked d_vocab"]:
    """`model(tokens)[:, positions]`, faster; gradients reach the parameters.

    Nothing is computed that these logits do not depend on: no token after the last position, and in the last
    block queries, MLP and unembedding at the positions alone. Once differentiable. Bits are the same for the
    same inputs.

    Args:
        model: As `build_model` makes it, but for `act` "relu2" and "solu", tied unembeddings, a gated MLP with biases
            and, where heads grow with the model, `mup_base`; float32 or float64.
        tokens: Token ids, at most n_ctx of them in a row.
        positions: Sorted position indices (on the CPU, or every call waits for the device) or a slice; all
            by default.

    Raises:
        QflError: The model's function is not the one computed here, or hooks are attached, which would not
            run.
        ValueError: Tokens beyond the context; positions that are not sorted, not there, or none at all.
    """
    weights = read_weights(model, tokens)
    asked = _asked(positions, tokens.shape[1], weights.embed.device)
    return _logits(weights, tokens.to(weights.embed.device), asked.where, asked.end)


@torch.no_grad()
def fast_resid(
    model: HookedTransformer, tokens: Tokens, layers: Sequence[int], positions: Positions = None
) -> Float[Tensor, "batch layer asked d_model"]:
    """The residual stream after blocks `layers` (`resid_post`) at `positions`, without gradients.

    Stops after the last layer asked for, which is computed at the positions alone. Layers are counted from 0, in any
    order, which the result keeps. The other arguments and the errors are those of `fast_logits`, and a `ValueError`
    for a layer that the model does not have.
    """
    weights = read_weights(model, tokens)
    n_layers = len(weights.layers)
    if not layers or not all(0 <= layer < n_layers for layer in layers):
        raise ValueError(f"layers must lie in [0, {n_layers}) and be at least one, got {list(layers)}.")
    asked = _asked(positions, tokens.shape[1], weights.embed.device)
    short = weights._replace(layers=weights.layers[: max(layers) + 1])
    kept: dict[int, Tensor] = {}
    _resid(short, tokens.to(weights.embed.device), asked.where, asked.end, keep=kept)
    return torch.stack([kept[layer] for layer in layers], 1)


def compile_fast_logits(model: HookedTransformer) -> FastLogits:
    """`fast_logits` of this model through `torch.compile`: call it with tokens and positions.

    The model is checked at every call as in `fast_logits`. The first call of a shape compiles for some
    seconds. Where that fails (no C++ compiler, say) a RuntimeWarning says why, and it goes on uncompiled.
    """
    compiled: Callable[..., Tensor] | None = None

    def give_up(error: Exception) -> None:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        warnings.warn(
            f"torch.compile failed, the fast forward pass goes on uncompiled: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )

    try:
        compiled = torch.compile(_logits, dynamic=False)
    except Exception as error:
        give_up(error)

    def run(tokens: Tokens, positions: Positions = None) -> Float[Tensor, "batch asked d_vocab"]:
        nonlocal compiled
        weights = read_weights(model, tokens)
        asked = _asked(positions, tokens.shape[1], weights.embed.device)
        arguments = (weights, tokens.to(weights.embed.device), asked.where, asked.end)
        if compiled is not None:
            try:
                return compiled(*arguments)
            except Exception as error:  # whatever the compiler raises; a fault of ours shows again below
                compiled = None
                give_up(error)
        return _logits(*arguments)

    return run


class _Asked(NamedTuple):
    """Positions that are asked for, and how many tokens they depend on."""

    where: slice | Tensor
    end: int


def _asked(positions: Positions, n_pos: int, device: torch.device) -> _Asked:
    """Checked positions; a run of neighbours becomes a slice, which is read without a copy."""
    if positions is None:
        positions = slice(None)
    if isinstance(positions, slice):
        wanted = list(range(n_pos)[positions])
    else:
        wanted = positions.tolist()
    in_order = all(a < b for a, b in itertools.pairwise(wanted))
    if not wanted or not in_order or wanted[0] < 0 or wanted[-1] >= n_pos:
        raise ValueError(
            f"positions must be increasing indices in [0, {n_pos}) and at least one, "
            f"got {wanted or positions}. Count from 0 and sort them."
        )
    start, end = wanted[0], wanted[-1] + 1
    if end - start == len(wanted):
        return _Asked(slice(start, end), end)
    return _Asked(torch.tensor(wanted, device=device), end)


def read_weights(model: HookedTransformer, tokens: Tokens) -> FastWeights:
    """The model's parameters as they are now, after the model and the tokens' length were checked."""
    turn = require_supported(model)
    cfg = model.cfg
    n_pos = tokens.shape[1]
    if n_pos > cfg.n_ctx or (turn is not None and n_pos > len(turn)):
        raise ValueError(f"tokens must be at most n_ctx = {cfg.n_ctx} long, got {n_pos}. Cut the sequences.")
    layers = []
    block: Any
    for block in model.blocks:
        attn, mlp = block.attn, None if cfg.attn_only else block.mlp
        biases = ("b_Q", "b_K", "b_V")
        layers.append(
            FastLayer(
                norm1=_norm(block.ln1),
                norm2=None if mlp is None else _norm(block.ln2),
                qkv=(attn.W_Q, attn.W_K, attn.W_V),
                qkv_bias=(attn.b_Q, attn.b_K, attn.b_V) if any(name in attn._parameters for name in biases) else None,
                out=(attn.W_O, _own(attn, "b_O")),
                gate=_own(mlp, "W_gate"),
                up=None if mlp is None else (mlp.W_in, _own(mlp, "b_in")),
                down=None if mlp is None else (mlp.W_out, _own(mlp, "b_out")),
                act=cfg.act_fn,
            )
        )
    return FastWeights(
        embed=model.embed.W_E,
        pos_embed=_own(getattr(model, "pos_embed", None), "W_pos"),
        layers=layers,
        norm=_norm(getattr(model, "ln_final", None)),
        unembed=(model.unembed.W_U, _own(model.unembed, "b_U")),
        turn=turn,
        eps=cfg.eps,
    )


def _own(module: nn.Module | None, name: str) -> Tensor | None:
    """A parameter; None where there is none, or a buffer of zeros in its place."""
    return None if module is None else module._parameters.get(name)


def _norm(module: nn.Module | None) -> Norm:
    """A norm's gain and shift; None of a model without norms."""
    gain = _own(module, "w")
    return None if gain is None else (gain, _own(module, "b"))


def _logits(weights: FastWeights, tokens: Tensor, asked: slice | Tensor, end: int) -> Tensor:
    """Logits at the positions asked for."""
    x = _resid(weights, tokens, asked, end)
    matrix, bias = weights.unembed
    normal, matrix = normalised(x, weights.norm, matrix, weights.eps)
    return linear(normal, (matrix, bias))


def _resid(
    weights: FastWeights, tokens: Tensor, asked: slice | Tensor, end: int, keep: dict[int, Tensor] | None = None
) -> Tensor:
    """The residual stream after the last block at the positions asked for; `keep` takes every block's."""
    tokens = tokens[:, :end]
    every = isinstance(asked, slice) and asked.start == 0
    plan_all, plan_asked = _plans(weights, asked, end, every)
    # As a matrix product with one-hot rows, picking embeddings has a matrix product for its gradient too,
    # and the first block can read the few rows of the vocabulary instead of every token.
    d_vocab, d_model = weights.embed.shape
    one_hot = F.one_hot(tokens, d_vocab).to(weights.embed.dtype) if d_vocab <= d_model else None
    x = F.embedding(tokens, weights.embed) if one_hot is None else one_hot @ weights.embed
    if weights.pos_embed is not None:
        x = x + weights.pos_embed[:end]
    for index, layer in enumerate(weights.layers):
        last = index == len(weights.layers) - 1
        plan = plan_asked if last else plan_all
        matrix, bias = qkv(layer, turned=weights.turn is not None)
        if index == 0 and one_hot is not None and weights.pos_embed is None:
            # Without positions in the stream the first block reads one of d_vocab rows.
            rows, matrix = normalised(weights.embed, layer.norm1, matrix, weights.eps)
            z = causal_attention(one_hot, rows @ matrix, bias, plan)
        else:
            normal, matrix = normalised(x, layer.norm1, matrix, weights.eps)
            z = causal_attention(normal, matrix, bias, plan)
        if last and not every:
            x = at_positions(x, asked)
        x = add_linear(x, z, (layer.out[0].flatten(0, 1), layer.out[1]))
        x = add_mlp(x, layer, weights.eps)
        if keep is not None:
            keep[index] = x if last else at_positions(x, asked)
    return x


def _plans(weights: FastWeights, asked: slice | Tensor, end: int, every: bool) -> tuple[AttentionPlan, AttentionPlan]:
    """How the blocks attend: all positions, and those asked for (the last block)."""
    w_q = weights.layers[0].qkv[0]
    n_heads, d_head = w_q.shape[0], w_q.shape[2]
    mask = w_q.new_full((end, end), -torch.inf).triu_(1)
    turn = None
    if weights.turn is not None:
        by_head = weights.turn[:end].repeat(1, n_heads, 1)
        turn = torch.cat((by_head * d_head**-0.5, by_head), 1)
    plan = AttentionPlan(n_heads, slice(0, end), causal=True, mask=mask, turn=turn)
    return plan, plan if every else plan._replace(asked=asked, causal=False, mask=mask[asked])


def qkv(layer: FastLayer, *, turned: bool) -> tuple[Tensor, Tensor | None]:
    """Queries', keys' and values' matrices side by side, (input, output).

    Unless they are `turned` by a rotation, which holds it, the attention scale is in the queries'.
    """
    w_q, w_k, w_v = layer.qkv
    scale = 1 if turned else w_q.shape[2] ** -0.5
    matrix = torch.stack((w_q if turned else w_q * scale, w_k, w_v)).permute(2, 0, 1, 3).flatten(1)
    if layer.qkv_bias is None:
        return matrix, None
    b_q, b_k, b_v = layer.qkv_bias
    return matrix, torch.stack((b_q if turned else b_q * scale, b_k, b_v)).flatten()


def normalised(x: Tensor, norm: Norm, matrix: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normed stream and the matrix that reads it; an RMS norm's gain goes into the smaller of the two."""
    if norm is None:
        return x, matrix
    gain, bias = norm
    if bias is None:
        return unit_rms(x, eps), gain[:, None] * matrix
    return F.layer_norm(x, gain.shape, gain, bias, eps), matrix


def linear(x: Tensor, layer: tuple[Tensor, Tensor | None]) -> Tensor:
    """`x @ matrix + bias`."""
    matrix, bias = layer
    return x @ matrix if bias is None else F.linear(x, matrix.t(), bias)


def add_linear(x: Tensor, z: Tensor, layer: tuple[Tensor, Tensor | None]) -> Tensor:
    """`x + z @ matrix + bias`, the first sum inside the matrix product."""
    matrix, bias = layer
    total = torch.addmm(x.flatten(0, 1), z.flatten(0, 1), matrix).view(x.shape)
    return total if bias is None else total + bias


def add_mlp(x: Tensor, layer: FastLayer, eps: float) -> Tensor:
    """The stream with the block's MLP added, where it has one."""
    if layer.up is None or layer.down is None:
        return x
    up, bias = layer.up
    normal, up = normalised(x, layer.norm2, up, eps)
    hidden = linear(normal, (up, bias))
    if layer.gate is None:
        hidden = ACTIVATIONS[layer.act](hidden)
    else:
        # As in `normalised`, an RMS norm's gain is in the matrix.
        gain = layer.norm2[0][:, None] if layer.norm2 and layer.norm2[1] is None else None
        gate = normal @ (layer.gate if gain is None else gain * layer.gate)
        hidden = swiglu(gate, hidden) if layer.act == "silu" else ACTIVATIONS[layer.act](gate) * hidden
    return add_linear(x, hidden, layer.down)
