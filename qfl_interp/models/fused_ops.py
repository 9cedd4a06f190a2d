"""The pieces of a block with hand-written derivatives: the same values, less memory traffic.

Each public function has a form that autograd or a compiler sees through, used under `torch.compile` and on a
GPU, and one whose backward pass is written out, used eagerly. They are once differentiable; curvature uses
the model itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Up to this many keys, on a CPU, the scores are written out: at 51 keys, forward and backward, that took 0.6
# of the time of torch's fused kernel. The limit itself is a guess that keeps their memory small.
_EXPLICIT_SCORES_MAX = 256

# The nonlinearities of a block's MLP, by TransformerLens's names.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class AttentionPlan(NamedTuple):
    """Where attention looks from and to, and how queries and keys are turned.

    Attributes:
        n_heads: Heads; their coordinates lie side by side.
        asked: Positions that ask (queries): a slice, or sorted indices.
        causal: Whether `asked` is every position, so that a fused kernel's own causal mask does.
        mask: Added to the scores: 0 where the key is not after the query, else minus infinity.
        turn: What the rotary embedding multiplies adjacent pairs with, as real and imaginary part: `exp(i
            angle)` times the attention scale for all heads' queries, then `exp(i angle)` for all heads'
            keys. None without rotary; the queries' weights then hold the scale.
    """

    n_heads: int
    asked: slice | Int[Tensor, " asked"]
    causal: bool
    mask: Float[Tensor, "asked pos"]
    turn: Float[Tensor, "pos pairs 2"] | None


def at_positions(
    x: Float[Tensor, "batch pos d"], asked: slice | Int[Tensor, " asked"]
) -> Float[Tensor, "batch asked d"]:
    """`x[:, asked]`; a view where it can be one."""
    return x[:, asked] if isinstance(asked, slice) else x.index_select(1, asked)


def unit_rms(x: Float[Tensor, "*rows d_model"], eps: float) -> Float[Tensor, "*rows d_model"]:
    """`x / sqrt(mean(x^2) + eps)` along the last axis: RMS norm before its gain."""
    if torch.compiler.is_compiling():
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    return _UnitRms.apply(x, eps)


class _UnitRms(Function):
    """`y = x r`, `r = (mean(x^2) + eps)^(-1/2)`; `dx = r (dy - y mean(dy y))`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        y, inverse = ctx.saved_tensors
        along = (dy * y).mean(-1, keepdim=True)
        return torch.addcmul(dy, y, along, value=-1).mul_(inverse), None


def swiglu(gate: Float[Tensor, "*rows d_mlp"], up: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_mlp"]:
    """`silu(gate) * up`."""
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    return _SwiGlu.apply(gate, up)


class _SwiGlu(Function):
    """Keeps `silu(gate)` and makes both gradients in three passes."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        opened = F.silu(gate)
        ctx.save_for_backward(gate, up, opened)
        return opened * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up, opened = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), dy * opened


def causal_attention(
    x: Float[Tensor, "batch pos d_in"],
    weight: Float[Tensor, "d_in three_d"],
    bias: Float[Tensor, " three_d"] | None,
    plan: AttentionPlan,
) -> Float[Tensor, "batch asked d_all_heads"]:
    """Causal attention from normalised input to the heads' outputs side by side, before W_O.

    Args:
        x: What queries, keys and values are read from.
        weight: Queries', keys' and values' matrices side by side, heads side by side in each. Where the plan
            has no rotation, the queries' part holds the attention scale.
        bias: Theirs.
        plan: Heads, rotation, positions that ask.
    """
    explicit = x.device.type == "cpu" and x.shape[1] <= _EXPLICIT_SCORES_MAX
    if explicit and not torch.compiler.is_compiling():
        return _CausalAttention.apply(x, weight, bias, plan)
    return _fused_attention(x, weight, bias, plan)


def _fused_attention(x: Tensor, weight: Tensor, bias: Tensor | None, plan: AttentionPlan) -> Tensor:
    """Causal attention through `scaled_dot_product_attention`."""
    qkv = x @ weight if bias is None else x @ weight + bias
    q, k, v = qkv.unflatten(-1, (3, plan.n_heads, -1)).unbind(2)
    if plan.turn is not None:
        turn_q, turn_k = plan.turn.unflatten(1, (2, plan.n_heads, -1)).unbind(1)
        q, k = _turned(q, turn_q), _turned(k, turn_k)
    if not plan.causal:
        q = q[:, plan.asked]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    mask = None if plan.causal else plan.mask
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=plan.causal, scale=1.0)
    return z.transpose(1, 2).flatten(2)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Adjacent pairs of the last axis times `turn`'s complex numbers, in real arithmetic."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turn.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class _CausalAttention(Function):
    """Attention with its scores written out, head by head and without a copy.

    Queries, keys and values stay slices of the matrix product that makes them, and their gradients are
    written into slices of what the next product takes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: AttentionPlan) -> Tensor:
        width = weight.shape[1] // 3
        if plan.causal:
            q, k, v = _linear(x, weight, bias).split(width, -1)
        else:
            bias_q, bias_kv = (None, None) if bias is None else (bias[:width], bias[width:])
            q = _linear(at_positions(x, plan.asked), weight[:, :width], bias_q)
            k, v = _linear(x, weight[:, width:], bias_kv).split(width, -1)
        _turn_(q, k, plan, back=False)
        scores = x.new_empty(plan.n_heads, x.shape[0], q.shape[1], k.shape[1])
        qs, ks, vs = (_heads(t, plan) for t in (q, k, v))
        for head, score in enumerate(scores):
            torch.baddbmm(plan.mask, qs[head], ks[head].transpose(1, 2), out=score)
        pattern = scores.softmax(-1)
        by_head = x.new_empty(plan.n_heads, *q.shape[:2], width // plan.n_heads)
        for head, weights in enumerate(pattern):
            torch.bmm(weights, vs[head], out=by_head[head])
        ctx.save_for_backward(x, weight, q, k, v, pattern)
        ctx.plan, ctx.has_bias = plan, bias is not None
        return _side_by_side(by_head)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight, q, k, v, pattern = ctx.saved_tensors
        plan: AttentionPlan = ctx.plan
        width = weight.shape[1] // 3
        dq, packed = _attention_gradients(dz, q, k, v, pattern, plan)
        _turn_(dq, packed[..., -2 * width : -width], plan, back=True)
        dx = None
        if plan.causal:
            dweight = _rows(x).t() @ _rows(packed)
            dbias = _rows(packed).sum(0) if ctx.has_bias else None
            if ctx.needs_input_grad[0]:
                dx = packed @ weight.t()
        else:
            asking = at_positions(x, plan.asked)
            dweight = torch.cat((_rows(asking).t() @ _rows(dq), _rows(x).t() @ _rows(packed)), 1)
            dbias = torch.cat((_rows(dq).sum(0), _rows(packed).sum(0))) if ctx.has_bias else None
            if ctx.needs_input_grad[0]:
                dx = packed @ weight[:, width:].t()
                dx_asking = dq @ weight[:, :width].t()
                if isinstance(plan.asked, slice):
                    dx[:, plan.asked] += dx_asking
                else:
                    dx.index_add_(1, plan.asked, dx_asking)
        return dx, dweight, dbias, None


def _attention_gradients(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, pattern: Tensor, plan: AttentionPlan
) -> tuple[Tensor, Tensor]:
    """Gradients of queries, and of keys and values side by side (all three where every position asks)."""
    qs, ks, vs, dzs = (_heads(t, plan) for t in (q, k, v, dz.contiguous()))
    shape = (plan.n_heads, *k.shape[:2], k.shape[2] // plan.n_heads)
    dqkv = k.new_empty(3, *shape) if plan.causal else k.new_empty(2, *shape)
    dq = dqkv[0] if plan.causal else k.new_empty(shape[0], *q.shape[:2], shape[3])
    dk, dv = dqkv[-2], dqkv[-1]
    # torch's batched product is slow into anything but contiguous memory: hence by head here, side by side
    # below.
    dpattern = torch.empty_like(pattern)
    for head, weights in enumerate(pattern):
        torch.bmm(dzs[head], vs[head].transpose(1, 2), out=dpattern[head])
        torch.bmm(weights.transpose(1, 2), dzs[head], out=dv[head])
    dscores = torch.ops.aten._softmax_backward_data(dpattern, pattern, -1, pattern.dtype)
    for head, dscore in enumerate(dscores):
        torch.bmm(dscore, ks[head], out=dq[head])
        torch.bmm(dscore.transpose(1, 2), qs[head], out=dk[head])
    packed = _side_by_side(dqkv.flatten(0, 1))
    return packed[..., : q.shape[2]] if plan.causal else _side_by_side(dq), packed


def _side_by_side(by_head: Tensor) -> Tensor:
    """[head, batch, pos, d_head] copied to [batch, pos, head * d_head]."""
    return by_head.permute(1, 2, 0, 3).flatten(2)


def _heads(t: Tensor, plan: AttentionPlan) -> tuple[Tensor, ...]:
    """A view [batch, pos, d_head] of each head's coordinates."""
    return t.unflatten(-1, (plan.n_heads, -1)).unbind(2)


def _turn_(q: Tensor, k: Tensor, plan: AttentionPlan, *, back: bool) -> None:
    """Turn queries and keys in place; `back` applies the adjoint, which takes their gradients back."""
    if plan.turn is None:
        return
    turn = torch.view_as_complex(plan.turn)
    turn_q, turn_k = (turn.conj().resolve_conj() if back else turn).chunk(2, -1)
    for t, turn in ((q, turn_q[plan.asked]), (k, turn_k)):
        torch.view_as_complex(t.unflatten(-1, (-1, 2))).mul_(turn)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight + bias` as one matrix product over all rows."""
    product = _rows(x) @ weight if bias is None else torch.addmm(bias, _rows(x), weight)
    return product.view(*x.shape[:-1], -1)


def _rows(x: Tensor) -> Tensor:
    """All positions of all examples, a row each."""
    return x.reshape(-1, x.shape[-1])
