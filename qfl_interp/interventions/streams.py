"""Interventions on the residual stream alone, which the model's fast forward pass can make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch

from qfl_interp.models.build import HookedModel, is_hooked_transformer
from qfl_interp.models.fast_suffix import Changes, fast_suffix, suffix_logits
from qfl_interp.models.forward import is_fast, logits_at
from qfl_interp.models.hooks import ActivationFn, Intervention
from qfl_interp.shapes import Tokens

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedTransformer


def fast_at_streams(model: HookedModel, interventions: Sequence[Intervention]) -> TypeGuard[HookedTransformer]:
    """Whether there are interventions, all after blocks (`resid_post`) of a model that `fast_suffix` takes."""
    if not interventions or not is_hooked_transformer(model) or not is_fast(model):
        return False
    blocks = range(model.cfg.n_layers)
    return all(i.site.name == "resid_post" and i.site.layer in blocks for i in interventions)


def first_block(interventions: Sequence[Intervention]) -> int:
    """The first block whose input stream the interventions may change, or that they change inside; 0: any."""
    if not interventions or any(i.site.layer is None for i in interventions):
        return 0
    return min((i.site.layer or 0) + (i.site.name == "resid_post") for i in interventions)


def stream_changes(interventions: Sequence[Intervention]) -> Changes:
    """What the interventions do after each block, in their order."""
    changes: dict[int, list[ActivationFn]] = {}
    for intervention in interventions:
        changes.setdefault(intervention.site.layer or 0, []).append(intervention.fn)
    return changes


@torch.no_grad()
def run_under(model: HookedModel, tokens: Tokens, interventions: Sequence[Intervention]) -> None:
    """Run the model for what the interventions see of it, and throw its logits away.

    Raises:
        QflError: A hook point does not exist or did not fire.
    """
    last = slice(tokens.shape[1] - 1, tokens.shape[1])
    if fast_at_streams(model, interventions):
        suffix = fast_suffix(model, tokens, first_block(interventions), 0)
        suffix_logits(suffix, last, stream_changes(interventions))
    else:
        logits_at(model, tokens, last, interventions)
