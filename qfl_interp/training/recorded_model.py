"""The model of a training loop of the user's own, as a recorder needs it: what names it, its weights, its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.hf_model_config import HFModelConfig
from qfl_interp.model_kinds import AnyModelConfig
from qfl_interp.models.build import HookedModel, build_loaded, is_hooked_transformer, model_device
from qfl_interp.models.fast_forward import FastLogits
from qfl_interp.models.forward import training_forward
from qfl_interp.models.given import configured
from qfl_interp.models.hugging_face import described, new_model_of, recorded_tensors
from qfl_interp.models.undisturbed import undisturbed

# How far the logits of the model that is opened again may be off: attention is written out there.
_TOLERANCE = 1e-3
# Tokens that they are compared at.
_N_TOKENS = 16


class RecordedModel(NamedTuple):
    """What a recorder asks of a model.

    Attributes:
        config: What names it; its `weights` are those it has now.
        tensors: Gives what a checkpoint keeps, as it is then.
        logits: Its own forward pass at some positions.
    """

    config: AnyModelConfig
    tensors: Callable[[], dict[str, Tensor]]
    logits: FastLogits


def recorded_model(model: nn.Module, task: Task) -> RecordedModel:
    """A `HookedTransformer`, or a causal language model of transformers, to be recorded.

    The model is not changed, and neither are random generators.

    Raises:
        QflError: It could not be opened again from what a run directory keeps, or it does not take the task's tokens.
    """
    with undisturbed(model):
        made = _lens(model) if is_hooked_transformer(cast(HookedModel, model)) else _hugging_face(model)
        _require_fit(made.config, task)
        _require_opens(model, made, task)
    return made


def _lens(model: Any) -> RecordedModel:
    """A model of TransformerLens."""
    given = configured(model)
    assert given.weights is not None
    names = list(given.weights)

    def tensors() -> dict[str, Tensor]:
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        return {name: own[name].detach() for name in names}

    return RecordedModel(given.config, tensors, training_forward(model))


def _hugging_face(model: Any) -> RecordedModel:
    """A model of transformers."""
    config = described(model)
    made = new_model_of(config)
    if type(made) is not type(model):
        raise QflError(
            f"the configuration of a {type(model).__name__} makes a {type(made).__name__}: it could not be opened "
            "again. Record a causal language model itself, without adapters or a head of your own."
        )

    def logits(tokens: Tensor, positions: slice = slice(None)) -> Tensor:
        return model(input_ids=tokens[:, : positions.stop]).logits[:, positions]

    return RecordedModel(config, lambda: recorded_tensors(model), logits)


def _require_fit(config: AnyModelConfig, task: Task) -> None:
    """Raise `QflError` where the model takes fewer tokens or positions than the task has."""
    cfg = getattr(config, "cfg", {})
    keys = ("vocab_size", "max_position_embeddings") if isinstance(config, HFModelConfig) else ("d_vocab", "n_ctx")
    # Some configurations have a part for text; older ones have names of their own, and say nothing here.
    cfg = cfg.get("text_config", cfg)
    needs = (task.d_vocab, "token ids"), (task.n_ctx, "tokens in a sequence")
    for key, (needed, what) in zip(keys, needs, strict=True):
        has = cfg.get(key)
        if has is not None and has < needed:
            raise QflError(
                f"task {task.name!r} has {needed} {what}, but the model takes {has}. Give the task that it is trained "
                "on, in its own tokens."
            )


def _require_opens(model: nn.Module, made: RecordedModel, task: Task) -> None:
    """Raise `QflError` unless what would be kept makes a model with hook points and the same logits.

    `given.configured` has compared a model of TransformerLens to the last bit.
    """
    if not isinstance(made.config, HFModelConfig):
        return
    weights = {name: tensor.cpu() for name, tensor in made.tensors().items()}
    again = build_loaded(made.config, weights, d_vocab=task.d_vocab, n_ctx=task.n_ctx)
    tokens = torch.arange(2 * min(_N_TOKENS, task.n_ctx)).view(2, -1) % task.d_vocab
    own, found = made.logits(tokens.to(model_device(model))).float().cpu(), again(tokens)
    full = all(p.dtype == torch.float32 for p in model.parameters())
    gap = float((own - found).abs().max())
    if full and not gap <= _TOLERANCE * max(1.0, float(own.abs().max())):
        raise QflError(
            f"made again from its configuration and weights, the {type(model).__name__} computes other logits (by "
            f"{gap:.2g}): something in it is not in its configuration. Record it as transformers made it."
        )
