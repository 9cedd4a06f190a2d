"""Logits of any hooked model at some positions: through fused attention where nothing is hooked and that is known."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel, is_hooked_transformer, model_device
from qfl_interp.models.fast_forward import FastLogits, compile_fast_logits, fast_logits
from qfl_interp.models.fast_support import require_supported
from qfl_interp.models.hooks import Intervention, interventions_on
from qfl_interp.shapes import Tokens

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedTransformer


def is_fast(model: HookedModel) -> bool:
    """Whether `fast_logits` computes this model's function as it is now (no hooks attached)."""
    try:
        require_supported(model)  # pyright: ignore[reportArgumentType]  # it refuses what it does not know
    except QflError:
        return False
    return True


def training_forward(model: HookedModel, *, compiled: bool = False, hooked: bool = False) -> FastLogits:
    """Tokens and positions to `model(tokens)[:, positions]`, with gradients: the fast way where the model has it.

    Every other model runs its own forward pass, hook points included, to the same result within rounding. With
    `compiled` the fast way goes through `torch.compile`; the own forward does not, and a RuntimeWarning says so.
    """
    if is_fast(model) and not hooked:
        if compiled:
            return compile_fast_logits(model)  # pyright: ignore[reportArgumentType]
        return functools.partial(fast_logits, model)  # pyright: ignore[reportArgumentType]
    if compiled:
        text = "compile=True has no effect: the fast forward pass does not know this model, which runs its own."
        warnings.warn(text, RuntimeWarning, stacklevel=2)

    def forward(tokens: Tokens, positions: slice = slice(None)) -> Float[Tensor, "batch asked d_vocab"]:
        # The model is causal: what follows the last position changes nothing.
        return model(tokens[:, : positions.stop])[:, positions]

    return forward


@torch.no_grad()
def logits_at(
    model: HookedModel, tokens: Tokens, positions: slice, interventions: Sequence[Intervention] = ()
) -> Float[Tensor, "batch asked d_vocab"]:
    """`model(tokens)[:, positions]` under interventions, on the model's device, without gradients.

    Without interventions, a model that `fast_logits` knows takes that way.

    Raises:
        QflError: A hook point does not exist or did not fire.
    """
    tokens = tokens.to(model_device(model))
    if not interventions and is_fast(model):
        return fast_logits(model, tokens, positions)  # pyright: ignore[reportArgumentType]
    with interventions_on(model, interventions):
        return model(tokens)[:, positions]


def resumable(model: HookedModel) -> TypeGuard[HookedTransformer]:
    """Whether the model can start at a layer from a residual stream and stop before its unembedding."""
    return is_hooked_transformer(model) and model.cfg.positional_embedding_type != "shortformer"


@torch.no_grad()
def rows_logits(
    model: HookedModel,
    tokens: Tokens | None,
    span: slice,
    interventions: Sequence[Intervention] = (),
    start: tuple[int, Float[Tensor, "row pos d_model"]] | None = None,
) -> Float[Tensor, "row scored d_vocab"]:
    """Logits at `span` under interventions.

    `start` is a layer and the residual stream before it. Where the model is `resumable` the run starts there, and
    `tokens` are not read (None will do): no intervention may then be at an earlier layer.
    """
    if not resumable(model):
        with interventions_on(model, interventions):
            return model(tokens)[:, span]
    layer, inputs = (None, tokens) if start is None else start
    with interventions_on(model, interventions):
        resid = model(inputs, start_at_layer=layer, stop_at_layer=model.cfg.n_layers)[:, span]
    # As HookedTransformer.forward ends, at the positions asked for alone.
    logits = model.unembed(resid if model.cfg.normalization_type is None else model.ln_final(resid))
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits
