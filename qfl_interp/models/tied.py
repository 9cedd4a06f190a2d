"""An unembedding that is the transposed embedding; needs transformer_lens, so it is imported where one is made."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.models.tl_version import Embed, HookedTransformer, Unembed


class TiedUnembed(Unembed):
    """`W_U` is `scale` times the transposed `W_E`, read anew at every use; its bias is its own."""

    def __init__(self, embed: Embed, scale: float) -> None:
        super().__init__(embed.cfg)
        del self._parameters["W_U"]
        # In a tuple the embedding is no submodule, whose parameters would have two names.
        self._embed, self.scale = (embed,), scale

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The matrix."""
        return self.scale * self._embed[0].W_E.T


def tie(model: HookedTransformer, *, scale: float = 1.0) -> None:
    """Let the model's unembedding be its transposed embedding, times `scale`."""
    unembed = TiedUnembed(model.embed, scale)
    with torch.no_grad():
        unembed.b_U.zero_()
    model.unembed = unembed
    model.setup()  # gives the new hook points their names
