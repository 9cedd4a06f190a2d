"""What a suite needs to know of a module: its configuration, its sizes, a digest of its weights, and hook points."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError
from qfl_interp.models.build import hooked_from_hf, is_hooked_transformer, model_in_dtype
from qfl_interp.models.given import lens_settings
from qfl_interp.models.hugging_face import named_settings
from qfl_interp.runs.sources.hugging_face import limits_of
from qfl_interp.runs.sources.source import Limits

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedModel


class Described(NamedTuple):
    """What is told of a module, as `Source` says.

    Attributes:
        config: What decides its shape, as JSON holds it.
        architecture: What it is called.
        limits: What it takes.
        n_parameters: Trainable parameters, tied ones once.
    """

    config: dict[str, Any]
    architecture: str
    limits: Limits
    n_parameters: int


def describe(module: nn.Module) -> Described:
    """What is told of a module: by its configuration where it has one, else by its class and its tensors' shapes."""
    n_parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    own, limits = _settings(module)
    if own is None:
        shapes = sorted((name, list(tensor.shape)) for name, tensor in module.state_dict().items())
        kind = f"{type(module).__module__}:{type(module).__qualname__}"
        own = {"class": kind, "tensors": json_digest(shapes)}
    return Described(own, _name(module), limits, n_parameters)


def _name(module: nn.Module) -> str:
    """What a module is called: by its type of transformers, else by its class."""
    return str(getattr(hugging_face_config(module), "model_type", type(module).__name__))


def _settings(module: nn.Module) -> tuple[dict[str, Any] | None, Limits]:
    """The configuration as JSON, None where there is none that says all, and what the model takes."""
    config = hugging_face_config(module)
    if config is not None:
        return named_settings(json.loads(config.to_json_string(use_diff=False))), limits_of(config)
    cfg = getattr(module, "cfg", None)
    limits = Limits(*(getattr(cfg, name, None) for name in ("d_vocab", "n_ctx")))
    return (lens_settings(module.cfg) if is_hooked_transformer(module) else None), limits  # pyright: ignore


def hugging_face_config(module: nn.Module) -> Any:
    """The configuration of transformers of one of its models, or of a bridge around one; None of any other."""
    inner = getattr(module, "original_model", module)
    config = getattr(inner, "config", None)
    return config if hasattr(config, "get_text_config") else None


def is_bridge(module: nn.Module) -> bool:
    """Whether it is a `TransformerBridge`, whose state dict has other names than its parameters."""
    return hasattr(module, "original_model")


def as_hooked(module: nn.Module) -> HookedModel:
    """The module in float32 and evaluation mode, with hook points: itself where it has them, else wrapped.

    Raises:
        QflError: It has no hook points, and is none of transformers' models.
    """
    module = model_in_dtype(module, torch.float32)  # pyright: ignore[reportArgumentType]  # any module
    if hasattr(module, "hook_dict"):
        return module.eval()  # pyright: ignore[reportReturnType]
    config: Any = hugging_face_config(module)
    if config is None:
        raise QflError(
            f"{type(module).__name__} has no hook points. docs/any_model.md shows how to add them to a model of your "
            "own; a model of transformers and a HookedTransformer have them."
        )
    # Others never form the attention pattern that hooks read.
    config._attn_implementation = "eager"
    return hooked_from_hf(module)  # pyright: ignore[reportArgumentType]


def copied(module: nn.Module) -> nn.Module:
    """A copy of a module without gradients, which may be changed. Raises `QflError` where it cannot be copied."""
    was = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in was:
        parameter.grad = None
    # What a pass left behind, as a bridge its attention pattern, hangs on a graph and does not copy.
    kept = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    known: dict[int, Any] = {id(tensor): tensor.detach() for tensor in kept if not tensor.is_leaf}
    try:
        return copy.deepcopy(module, known)
    except Exception as error:  # what a module holds may raise what it likes
        raise QflError(
            f"this {type(module).__name__} cannot be copied: {error}. Save its state dict, and open that "
            "(Suite.from_state_dicts)."
        ) from error
    finally:
        for parameter, grad in was:
            parameter.grad = grad


def digest_of(module: nn.Module) -> str:
    """A digest of every tensor that decides the module's function, by name: parameters and buffers as they are now."""
    sha = hashlib.sha256()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)  # NumPy has no bfloat16
        sha.update(plain.numpy().data)
    return sha.hexdigest()
