"""The layers of `hooked_transformer`: norms, embeddings, attention and MLP with TransformerLens hook points.

Names, parameters and the order of operations are those of TransformerLens 3.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from qfl_interp.models.hooked_config import ACTIVATIONS

Stream = Float[Tensor, "batch pos d_model"]
# With one copy of the stream for each head where `use_attn_in` or `use_split_qkv_input` asks for that.
Inputs = Float[Tensor, "batch pos *head d_model"]
Heads = Float[Tensor, "batch pos head d_head"]
Scores = Float[Tensor, "batch head query key"]


def _empty(cfg: Any, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=cfg.dtype))


def _zeros(cfg: Any, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=cfg.dtype))


def soft_capped(x: Tensor, cap: float) -> Tensor:
    """`cap tanh(x / cap)`; `x` where `cap` is not positive."""
    return cap * torch.tanh(x / cap) if cap > 0 else x


class Embed(nn.Module):
    """Rows of `W_E`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_E = _empty(cfg, cfg.d_vocab, cfg.d_model)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Stream:
        """The tokens' rows."""
        return self.W_E[tokens, :]


class PosEmbed(nn.Module):
    """Rows of `W_pos`, one a position."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_pos = _empty(cfg, cfg.n_ctx, cfg.d_model)

    def forward(self, tokens: Tensor, *_: Any) -> Stream:
        """The rows of as many positions as `tokens`, `[batch, pos]`, has."""
        rows = self.W_pos[: tokens.shape[1]]
        return rows.expand(tokens.shape[0], *rows.shape)


class Unembed(nn.Module):
    """`x W_U + b_U`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_U = _empty(cfg, cfg.d_model, cfg.d_vocab_out)
        self.b_U = _zeros(cfg, cfg.d_vocab_out)
        self.hook_in = HookPoint()
        self.hook_out = HookPoint()

    def forward(self, resid: Stream) -> Float[Tensor, "batch pos d_vocab_out"]:
        """The logits."""
        return self.hook_out(F.linear(self.hook_in(resid), self.W_U.T.contiguous(), self.b_U))


class RMSNorm(nn.Module):
    """`w x / sqrt(mean(x^2) + eps)`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg, self.eps = cfg, cfg.eps
        self.w = nn.Parameter(torch.ones(cfg.d_model, dtype=cfg.dtype))
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Inputs) -> Inputs:
        """The normed stream."""
        scale = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        return self.hook_normalized(x / scale) * self.w


class LayerNorm(RMSNorm):
    """`w (x - mean(x)) / sqrt(var(x) + eps) + b`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.b = _zeros(cfg, cfg.d_model)

    def forward(self, x: Inputs) -> Inputs:
        """The normed stream."""
        return super().forward(x - x.mean(-1, keepdim=True)) + self.b


class MLP(nn.Module):
    """`act(x W_in + b_in) W_out + b_out`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg, self.act_fn = cfg, ACTIVATIONS[cfg.act_fn]
        self.W_in = _empty(cfg, cfg.d_model, cfg.d_mlp)
        self.b_in = _zeros(cfg, cfg.d_mlp)
        self.W_out = _empty(cfg, cfg.d_mlp, cfg.d_model)
        self.b_out = _zeros(cfg, cfg.d_model)
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Stream) -> Stream:
        """What the MLP writes."""
        pre = self.hook_pre(torch.addmm(self.b_in, x.flatten(0, 1), self.W_in).unflatten(0, x.shape[:2]))
        post = self.hook_post(self.act_fn(pre))
        return torch.addmm(self.b_out, post.flatten(0, 1), self.W_out).unflatten(0, x.shape[:2])


class GatedMLP(nn.Module):
    """`(act(x W_gate) (x W_in) + b_in) W_out + b_out`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg, self.act_fn = cfg, ACTIVATIONS[cfg.act_fn]
        self.W_in = _empty(cfg, cfg.d_model, cfg.d_mlp)
        self.W_out = _empty(cfg, cfg.d_mlp, cfg.d_model)
        self.W_gate = _empty(cfg, cfg.d_model, cfg.d_mlp)
        self.b_in = _zeros(cfg, cfg.d_mlp)
        self.b_out = _zeros(cfg, cfg.d_model)
        self.hook_pre = HookPoint()
        self.hook_pre_linear = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Stream) -> Stream:
        """What the MLP writes."""
        pre = self.hook_pre(F.linear(x, self.W_gate.T.contiguous()))
        linear = self.hook_pre_linear(F.linear(x, self.W_in.T.contiguous()))
        post = self.hook_post(self.act_fn(pre) * linear + self.b_in)
        return F.linear(post, self.W_out.T.contiguous(), self.b_out)


class Attention(nn.Module):
    """Causal attention of heads side by side; `LinearAttention` is made of its parts."""

    # What TransformerLens 3 may choose otherwise.
    attn_type, _attention_dir_override = "global", None

    def __init__(self, cfg: Any, attn_type: Literal["global"] = "global", layer_id: int | None = None) -> None:
        super().__init__()
        self.cfg, self.layer_id, self.attn_scale = cfg, layer_id, cfg.attn_scale
        self.W_Q = _empty(cfg, cfg.n_heads, cfg.d_model, cfg.d_head)
        self.W_O = _empty(cfg, cfg.n_heads, cfg.d_head, cfg.d_model)
        self.b_Q = _zeros(cfg, cfg.n_heads, cfg.d_head)
        self.b_O = _zeros(cfg, cfg.d_model)
        # A state dict of TransformerLens 3 holds these two.
        self.register_buffer("mask", torch.empty((0, 0), dtype=torch.bool))
        self.register_buffer("IGNORE", torch.tensor(-torch.inf))
        self.hook_k = HookPoint()
        self.hook_q = HookPoint()
        self.hook_v = HookPoint()
        self.hook_z = HookPoint()
        self.hook_attn_scores = HookPoint()
        self.hook_pattern = HookPoint()
        self.hook_result = HookPoint()
        self.rotary_sin: Tensor
        self.rotary_cos: Tensor
        if cfg.positional_embedding_type == "rotary":
            self.hook_rot_k = HookPoint()
            self.hook_rot_q = HookPoint()
            angles = _rotary_angles(cfg)
            self.register_buffer("rotary_sin", torch.sin(angles).to(cfg.dtype))
            self.register_buffer("rotary_cos", torch.cos(angles).to(cfg.dtype))
        self.W_K = _empty(cfg, cfg.n_heads, cfg.d_model, cfg.d_head)
        self.W_V = _empty(cfg, cfg.n_heads, cfg.d_model, cfg.d_head)
        self.b_K = _zeros(cfg, cfg.n_heads, cfg.d_head)
        self.b_V = _zeros(cfg, cfg.n_heads, cfg.d_head)

    def forward(self, query_input: Inputs, key_input: Inputs, value_input: Inputs) -> Stream:
        """What attention writes."""
        q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
        if self.cfg.positional_embedding_type == "rotary":
            q, k = self.hook_rot_q(self.apply_rotary(q)), self.hook_rot_k(self.apply_rotary(k))
        scores = self.calculate_attention_scores(q, k)
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = self.hook_attn_scores(torch.where(seen, scores, -torch.inf))
        pattern = F.softmax(scores, dim=-1)
        # A hook may have masked a whole row.
        pattern = self.hook_pattern(torch.where(torch.isnan(pattern), torch.zeros_like(pattern), pattern))
        return self._out(self.calculate_z_scores(v, pattern))

    def calculate_qkv_matrices(self, query: Inputs, key: Inputs, value: Inputs) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values."""
        return (
            self.hook_q(_project(query, self.W_Q, self.b_Q)),
            self.hook_k(_project(key, self.W_K, self.b_K)),
            self.hook_v(_project(value, self.W_V, self.b_V)),
        )

    def apply_rotary(self, x: Heads, *_: Any) -> Heads:
        """Pairs of coordinates, turned by their position's angle."""
        turned, rest = x[..., : self.cfg.rotary_dim], x[..., self.cfg.rotary_dim :]
        if self.cfg.rotary_adjacent_pairs:
            swapped = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            swapped = torch.cat((-second, first), dim=-1)
        cos, sin = self.rotary_cos[None, : x.shape[1], None], self.rotary_sin[None, : x.shape[1], None]
        return torch.cat((turned * cos + swapped * sin, rest), dim=-1)

    def calculate_attention_scores(self, q: Heads, k: Heads) -> Scores:
        """`q . k / attn_scale`, of later keys too."""
        return soft_capped(
            q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1) / self.attn_scale, self.cfg.attn_scores_soft_cap
        )

    def calculate_z_scores(self, v: Heads, pattern: Scores) -> Heads:
        """The values' sum, weighted by the pattern."""
        return self.hook_z((pattern @ v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3))

    def _out(self, z: Heads) -> Stream:
        """Heads' outputs through `W_O`."""
        if self.cfg.use_attn_result:
            return self.hook_result((z[..., None] * self.W_O).sum(-2)).sum(2) + self.b_O
        return F.linear(z.flatten(2), self.W_O.permute(2, 0, 1).flatten(1).contiguous(), self.b_O)


def _project(x: Inputs, w: Float[Tensor, "head d_model d_head"], b: Float[Tensor, "head d_head"]) -> Heads:
    """Every head's matrix on the stream, or on the head's own copy of it."""
    if x.ndim == 4:
        return torch.einsum("bphm,hmd->bphd", x, w) + b
    return F.linear(x, w.permute(0, 2, 1).flatten(0, 1), b.flatten()).unflatten(-1, b.shape)


def _rotary_angles(cfg: Any) -> Float[Tensor, "n_ctx rotary_dim"]:
    """Angles by position and coordinate; both of a pair turn by the same."""
    half = cfg.rotary_dim // 2
    dtype = torch.float64 if cfg.dtype == torch.float64 else torch.float32
    periods = cfg.rotary_base ** (torch.arange(half, dtype=dtype) / half)
    periods = periods.repeat_interleave(2) if cfg.rotary_adjacent_pairs else periods.repeat(2)
    return torch.arange(cfg.n_ctx, dtype=dtype)[:, None] / periods
