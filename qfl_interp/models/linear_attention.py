"""Causal attention without its softmax; needs transformer_lens, so it is imported where one is made."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from qfl_interp.models.tl_version import Attention, HookedTransformer


class LinearAttention(Attention):
    """`z_i = sum_{j <= i} (q_i . k_j / sqrt(d_head)) v_j`, by the hook points of `Attention`.

    `hook_attn_scores` and `hook_pattern` both hold the scores, 0 above the diagonal: a pattern is any number here, and
    its rows sum to anything.

    References:
        von Oswald et al., arXiv 2212.07677, eq. 3, with our scale; no normaliser.
    """

    def forward(
        self,
        query_input: Float[Tensor, "batch pos d_model"],
        key_input: Float[Tensor, "batch pos d_model"],
        value_input: Float[Tensor, "batch pos d_model"],
        *unused: Any,
        **unknown: Any,
    ) -> Float[Tensor, "batch pos d_model"]:
        """What attention writes; there is no cache, mask of padding or bias of positions."""
        if any(value is not None for value in (*unused, *unknown.values())):
            raise NotImplementedError("linear attention has no cache, no mask of padding and no bias of positions.")
        q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
        if self.cfg.positional_embedding_type == "rotary":
            q, k = self.hook_rot_q(self.apply_rotary(q, 0, None)), self.hook_rot_k(self.apply_rotary(k, 0, None))
        scores = self.hook_attn_scores(self.calculate_attention_scores(q, k).tril())
        z = self.calculate_z_scores(v, self.hook_pattern(scores))
        if self.cfg.use_attn_result:
            by_head = torch.einsum("bphd,hdm->bphm", z, self.W_O)
            return self.hook_result(by_head).sum(dim=2) + self.b_O
        return functional.linear(z.flatten(2), self.W_O.flatten(0, 1).T, self.b_O)


@torch.no_grad()
def make_linear(model: HookedTransformer) -> None:
    """Take the softmax out of a model's attention, before its weights are drawn."""
    for layer, block in enumerate(model.blocks):
        block.attn = LinearAttention(model.cfg, "global", layer)
    model.setup()  # gives hook points their names
