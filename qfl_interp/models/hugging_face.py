"""Hugging Face models without hook points: made from a configuration, described by one, their weights put back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from qfl_interp.errors import QflError
from qfl_interp.hf_model_config import HFModelConfig
from qfl_interp.models.given import weights_digest

# What may differ between the configurations of one model's checkpoints.
_INCIDENTAL = {
    "_attn_implementation", "attn_implementation", "_commit_hash", "_name_or_path", "dtype", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
# What float32 holds every number of.
_HELD = (torch.float32, torch.bfloat16, torch.float16)


def named_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What names a model among the values of a configuration."""
    return {key: value for key, value in values.items() if key not in _INCIDENTAL}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports of transformers, and with the global CPU generator as it was, after."""
    bars, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def new_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A freshly initialised model, in float32 on the CPU; the global generators are not touched."""
    with quiet():
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")


def new_model_of(config: HFModelConfig, seed: int = 0) -> PreTrainedModel:
    """A freshly initialised model of a stored configuration.

    Raises:
        QflError: This version of transformers makes no such model.
    """
    values = config.cfg
    try:
        return new_model(AutoConfig.for_model(values.pop("model_type"), **values), seed)
    except Exception as error:  # each model class raises what its configuration makes it trip over
        raise QflError(
            f"transformers cannot make the model {config.style!r} of this run again: {type(error).__name__}: {error}. "
            "Install the version that the run's provenance.json names."
        ) from error


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, detached, sharing the model's memory; tied ones once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def recorded_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of a model: its tensors, floating ones in float32, which holds each number exactly."""
    tensors = stored_tensors(model)
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def described(model: Any) -> HFModelConfig:
    """What names a recording of a Hugging Face model, its present weights among it.

    Raises:
        QflError: It is no model of transformers, or of a precision that float32 does not hold.
    """
    if not isinstance(model, PreTrainedModel):
        raise QflError(
            f"a recorder takes a HookedTransformer or a causal language model of transformers, got a "
            f"{type(model).__name__}. Save state dicts of other models and open them as a Suite; give a wrapped model "
            "(torch.compile, DistributedDataParallel, PEFT) without its wrapper."
        )
    odd = sorted({str(t.dtype) for t in stored_tensors(model).values() if t.is_floating_point()} - {*map(str, _HELD)})
    if odd:
        raise QflError(f"weights must be float32, bfloat16 or float16, got {', '.join(odd)} in {type(model).__name__}.")
    values = json.loads(model.config.to_json_string(use_diff=False))
    settings = json.dumps(named_settings(values), sort_keys=True)
    text = model.config.get_text_config()
    n_heads, d_model = getattr(text, "num_attention_heads", None) or 0, int(text.hidden_size)
    parameters = sum(p.numel() for p in model.parameters())
    looked_up, unembedding = model.get_input_embeddings(), model.get_output_embeddings()
    tied = unembedding is not None and unembedding.weight is looked_up.weight
    return HFModelConfig(
        settings=settings,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        multiplied=parameters - (0 if tied else sum(p.numel() for p in looked_up.parameters())),
        d_model=d_model,
        n_layers=int(text.num_hidden_layers),
        n_heads=n_heads,
        d_head=getattr(text, "head_dim", None) or (d_model // n_heads if n_heads else 0),
        d_mlp=getattr(text, "intermediate_size", None) or 0,
        weights=weights_digest(recorded_tensors(model)),
    )
