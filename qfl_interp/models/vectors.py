"""A transformer that reads vectors, not token ids; needs transformer_lens, so it is imported where one is made."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.models.tl_version import Embed, HookedTransformer, PosEmbed


class VectorEmbed(Embed):
    """`tokens W_E`: what `Embed` gives of an id is this of its unit vector."""

    def forward(self, tokens: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_model"]:
        """The vectors, each times the matrix."""
        return tokens.to(self.W_E.dtype) @ self.W_E


class VectorPosEmbed(PosEmbed):
    """`PosEmbed`, of vectors."""

    def forward(
        self, tokens: Tensor, past_kv_pos_offset: int = 0, attention_mask: Tensor | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The positions' own vectors; tokens say how many there are."""
        return super().forward(tokens[..., 0], past_kv_pos_offset, attention_mask)


@torch.no_grad()
def read_vectors(model: HookedTransformer) -> None:
    """Let the model read vectors of `d_vocab` entries."""
    cfg = model.cfg
    model.embed = VectorEmbed(cfg)
    if cfg.positional_embedding_type == "standard":
        model.pos_embed = VectorPosEmbed(cfg)
    model.setup()  # gives hook points their names
