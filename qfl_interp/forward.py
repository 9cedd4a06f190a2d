"""Logits of any hooked model at some positions: through fused attention where nothing is hooked and that is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.errors import QflError
from qfl_interp.fast_forward import fast_logits
from qfl_interp.fast_support import require_supported
from qfl_interp.hooks import Intervention, interventions_on
from qfl_interp.model import HookedModel, model_device
from qfl_interp.shapes import Tokens


def is_fast(model: HookedModel) -> bool:
    """Whether `fast_logits` computes this model's function as it is now (no hooks attached)."""
    try:
        require_supported(model)  # pyright: ignore[reportArgumentType]  # it refuses what it does not know
    except QflError:
        return False
    return True


@torch.no_grad()
def logits_at(
    model: HookedModel, tokens: Tokens, positions: slice, interventions: Sequence[Intervention] = ()
) -> Float[Tensor, "batch asked d_vocab"]:
    """`model(tokens)[:, positions]` under interventions, on the model's device, without gradients.

    Args:
        model: Any hooked model.
        tokens: Token ids; moved to the model's device.
        positions: Which positions' logits.
        interventions: Installed for this call alone. Without any, a model `fast_logits` knows takes that way.

    Raises:
        QflError: A hook point does not exist or did not fire.
    """
    tokens = tokens.to(model_device(model))
    if not interventions and is_fast(model):
        return fast_logits(model, tokens, positions)  # pyright: ignore[reportArgumentType]
    with interventions_on(model, interventions):
        return model(tokens)[:, positions]
