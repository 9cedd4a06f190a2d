"""Causal attention of many small examples: compiled loops on a CPU, torch's fused kernel elsewhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from qfl_interp.training.stacked.gates import gated, gated_backward
from qfl_interp.training.stacked.kernels import attend, attend_backward
from qfl_interp.training.stacked.lanes import LANES


class Heads(NamedTuple):
    """How heads attend.

    Heads' coordinates lie side by side. `first` is the position of the first query; the others follow up to the last
    key's. `turn` is cosine and sine of the rotary angle by position and pair; no pairs where positions are learned.
    """

    n_heads: int
    first: int
    scale: float
    turn: Float[Tensor, "n_ctx pairs 2"]


def attention(
    q: Float[Tensor, "example asked d"] | None, kv: Float[Tensor, "example pos several_d"], heads: Heads
) -> Float[Tensor, "example asked_or_pos d"]:
    """Heads' outputs side by side, once differentiable.

    `q` are the queries of the last positions, and `kv` keys and values side by side. Where `q` is None every position
    asks, and `kv` starts with its queries.
    """
    if _compiled(kv):
        return _Attention.apply(q, kv, heads)
    if q is None:
        q, k, v = kv.chunk(3, -1)
    else:
        k, v = kv.chunk(2, -1)
    q, k, v = (t.unflatten(-1, (heads.n_heads, -1)) for t in (q, k, v))
    if heads.turn.shape[1]:
        turn = torch.view_as_complex(heads.turn.to(kv.dtype))[:, None]
        q, k = _turned(q, turn[heads.first : heads.first + q.shape[1]]), _turned(k, turn[: k.shape[1]])
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    mask = None
    if q.shape[2] != k.shape[2]:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=kv.device).tril_(heads.first)
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=heads.scale)
    return z.transpose(1, 2).flatten(2)


def gated_unit(gate_up: Float[Tensor, "*rows two_d_mlp"]) -> Float[Tensor, "*rows d_mlp"]:
    """`silu(gate) * up` of gate and up side by side, once differentiable."""
    if _compiled(gate_up):
        return _Gated.apply(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _compiled(x: Tensor) -> bool:
    """Whether the compiled loops take this tensor."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Adjacent pairs of the last axis times complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)


class _Attention(Function):
    """The compiled loops as one operation; nothing of size pos x pos is kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor | None, kv: Tensor, heads: Heads) -> Tensor:
        kv = kv.contiguous()
        asking = kv if q is None else q.contiguous()
        width = kv.shape[2] // (3 if q is None else 2)
        z = kv.new_empty(*asking.shape[:2], width)
        n_blocks = -(-kv.shape[0] * heads.n_heads // LANES)
        levels = kv.new_empty(n_blocks, asking.shape[1], 2, LANES)
        ctx.arguments = _arguments(asking, kv, heads, separate=q is not None)
        arguments = [*ctx.arguments, z.numpy(), levels.numpy()]
        attend(*arguments)
        ctx.save_for_backward(asking, kv, levels)
        ctx.separate = q is not None
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor, None]:
        asking, kv, levels = ctx.saved_tensors
        dkv = torch.empty_like(kv)
        dq = torch.empty_like(asking) if ctx.separate else dkv
        arguments = [*ctx.arguments, *(t.numpy() for t in (levels, dz.contiguous(), dq, dkv))]
        attend_backward(*arguments)
        return dq if ctx.separate else None, dkv, None


def _arguments(asking: Tensor, kv: Tensor, heads: Heads, *, separate: bool) -> tuple[Any, ...]:
    """The kernels' first arguments."""
    width = kv.shape[2] // (2 if separate else 3)
    k_at = 0 if separate else width
    scale = np.float32(heads.scale)
    q_array, kv_array = asking.detach().numpy(), kv.detach().numpy()
    return q_array, 0, kv_array, k_at, k_at + width, heads.turn.numpy(), scale, heads.first, heads.n_heads


class _Gated(Function):
    """The compiled loop as one operation; its backward pass makes the sigmoid again."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        gated(gate_up.flatten(0, -2).numpy(), out.flatten(0, -2).numpy())
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        dgate_up = torch.empty_like(gate_up)
        rows = (t.flatten(0, -2).numpy() for t in (gate_up, dout.contiguous(), dgate_up))
        gated_backward(*rows)
        return dgate_up
