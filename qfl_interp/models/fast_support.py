"""Which models `fast_forward` reproduces: checked in full when first seen, for changes at every call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qfl_interp.errors import QflError
from qfl_interp.models.fused_ops import ACTIVATIONS

if TYPE_CHECKING:
    from qfl_interp.models.build import HookedTransformer

# What the configuration must say for the function to be the one we compute. Flags that only add hook points
# (use_attn_result, use_split_qkv_input, ...) are not here.
_WANTED: dict[str, Any] = {
    "attention_dir": "causal",
    "clip_qkv": None,
    "final_rms": False,
    "load_in_4bit": False,
    "n_devices": 1,
    "n_key_value_heads": None,
    "num_experts": None,
    "original_architecture": None,
    "parallel_attn_mlp": False,
    "post_embedding_ln": False,
    "scale_attn_by_inverse_layer_idx": False,
    "use_attention_sinks": False,
    "use_attn_scale": True,
    "use_dynamic_ntk_rope": False,
    "use_local_attn": False,
    "use_logn_attn": False,
    "use_normalization_before_and_after": False,
    "use_qk_norm": False,
}
# Of the rest, what is computed. Gates, biases, the heads' width and blocks without an MLP are seen in the parameters.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "normalization_type": ("RMS", "LN", None),
    "positional_embedding_type": ("rotary", "standard"),
    "act_fn": tuple(ACTIVATIONS),
}
_CLASSES = {
    "Attention",
    "Embed",
    "GatedMLP",
    "HookedTransformer",
    "HookPoint",
    "LayerNorm",
    "MLP",
    "PosEmbed",
    "RMSNorm",
    "TransformerBlock",
    "TypedModuleList",
    "Unembed",
}
# Where these are: TransformerLens 3, and our own under TransformerLens 4.
_MODULES = ("transformer_lens.", "qfl_interp.models.hooked_")
# What stands in a model without norms for them.
_NO_NORM = {"ln1", "ln2"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Seen(NamedTuple):
    """What was true of a model when it was examined."""

    children: tuple[tuple[dict[str, nn.Module | None], tuple[nn.Module | None, ...]], ...]
    buffers: tuple[tuple[dict[str, Tensor | None], str, Tensor, int], ...]
    hooks: tuple[dict[int, Any], ...]
    turn: Tensor | None


_SEEN: WeakKeyDictionary[nn.Module, _Seen] = WeakKeyDictionary()


def require_supported(model: HookedTransformer) -> Float[Tensor, "n_ctx pairs 2"] | None:
    """Refuse a model whose function `fast_forward` does not compute.

    The configuration and the hooks are looked at in every call; classes, biases and rotary tables again when
    a module or a buffer has changed. Writing through `.data` is the one change that is not seen.

    Returns:
        Cosine and sine of the rotary embedding's angle by position and pair; None without one.

    Raises:
        QflError: The model differs; everything that differs is listed. Or a hook is attached, which would
            not run.
    """
    faults = _config_faults(model)
    if faults:
        raise _unsupported(faults)
    seen = _SEEN.get(model)
    if seen is None or not _unchanged(seen):
        seen = _SEEN[model] = _examine(model)
    if any(seen.hooks):
        names = [name or "the model" for name, m in model.named_modules() if any(vars(m)[kind] for kind in _HOOKS)]
        raise QflError(
            f"the fast forward pass runs no hooks, but hooks are attached at {', '.join(names)}. "
            "Remove them (model.reset_hooks()) or call model(tokens)."
        )
    return seen.turn


def _unsupported(faults: list[str]) -> QflError:
    """The error that lists what differs."""
    listed = "\n  ".join(faults)
    return QflError(
        f"the fast forward pass does not compute this model's function:\n  {listed}\n"
        "Call model(tokens), or build the model with qfl_interp.build_model."
    )


def _config_faults(model: HookedTransformer) -> list[str]:
    """What in the configuration we do not reproduce."""
    cfg = getattr(model, "cfg", None)
    if cfg is None or type(model).__name__ != "HookedTransformer":
        return [f"it is a {type(model).__name__} instead of a HookedTransformer"]
    values = vars(cfg)
    faults = [f"{name}={values[name]!r} instead of {want!r}" for name, want in _WANTED.items() if values[name] != want]
    faults += [
        f"{name}={values[name]!r} instead of {', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        for name, known in _CHOICES.items()
        if values[name] not in known and not (name == "act_fn" and values["attn_only"])
    ]
    caps = ("attn_scores_soft_cap", "output_logits_soft_cap")
    faults += [f"{name}={values[name]!r} instead of none (-1)" for name in caps if values[name] > 0]
    if values["dtype"] not in (torch.float32, torch.float64):
        faults.append(f"dtype={values['dtype']} instead of float32 or float64")
    if values["positional_embedding_type"] == "rotary":
        if values["rotary_dim"] != values["d_head"]:
            faults.append(f"rotary_dim={values['rotary_dim']} instead of d_head={values['d_head']}")
        if not values["rotary_adjacent_pairs"]:
            faults.append("rotary_adjacent_pairs=False instead of True")
    if model.tokenizer is not None:
        faults.append("it has a tokenizer, whose padding may mask tokens")
    return faults


def _unchanged(seen: _Seen) -> bool:
    """Whether no module and no buffer was replaced or written since."""
    return all(tuple(now.values()) == then for now, then in seen.children) and all(
        owner.get(name) is tensor and tensor._version == version for owner, name, tensor, version in seen.buffers
    )


def _examine(model: HookedTransformer) -> _Seen:
    """Check classes, scales, biases and rotary tables; keep what tells whether they change."""
    faults = []
    for name, module in model.named_modules():
        kind = type(module)
        no_norm = kind is nn.Identity and name.rpartition(".")[2] in _NO_NORM and model.cfg.normalization_type is None
        known = kind is nn.ModuleList or (kind.__name__ in _CLASSES and kind.__module__.startswith(_MODULES))
        if not (known or no_norm):
            faults.append(f"{name} is a {kind.__module__}.{kind.__name__}")
        elif "forward" in vars(module):
            faults.append(f"{name} has a forward of its own")
    if not faults:
        faults = [*_attention_faults(model), *_bias_faults(model)]
    rotary = model.cfg.positional_embedding_type == "rotary"
    turn = _rotary_turn(model, faults) if rotary and not faults else None
    if faults:
        raise _unsupported(faults)
    modules = list(model.modules())
    return _Seen(
        children=tuple((m._modules, tuple(m._modules.values())) for m in modules if m._modules),
        buffers=tuple((m._buffers, n, b, b._version) for m in modules for n, b in m._buffers.items() if b is not None),
        hooks=tuple(vars(m)[kind] for m in modules for kind in _HOOKS),
        turn=turn,
    )


def _attention_faults(model: HookedTransformer) -> list[str]:
    """Attention modules that were built to differ from the configuration."""
    faults = []
    for layer, block in enumerate(model.blocks):
        attn = block.attn
        if not math.isclose(attn.attn_scale, math.sqrt(model.cfg.d_head)):
            faults.append(f"blocks.{layer}.attn.attn_scale={attn.attn_scale} instead of sqrt(d_head)")
        if attn.attn_type != "global" or attn._attention_dir_override is not None:
            faults.append(f"blocks.{layer}.attn is {attn.attn_type} {attn._attention_dir_override or ''} attention")
    return faults


def _bias_faults(model: HookedTransformer) -> list[str]:
    """Biases of a gated MLP, which come after its gate; and what is no parameter, which is left out, but not zero."""
    gated = [f"{name} comes after a gate" for name, _ in model.named_parameters() if name.endswith(".mlp.b_in")]
    left_out = [(name, b) for name, b in model.named_buffers() if name.rpartition(".")[2].startswith(("b_", "W_"))]
    return gated * model.cfg.gated_mlp + [f"{name} is not zero" for name, b in left_out if bool(b.any())]


def _rotary_turn(model: HookedTransformer, faults: list[str]) -> Tensor | None:
    """Cosine and sine from the model's own tables; adds a fault where layers or a pair's halves differ."""
    cos, sin = model.blocks[0].attn.rotary_cos, model.blocks[0].attn.rotary_sin
    for layer, block in enumerate(model.blocks):
        attn = block.attn
        if not (torch.equal(attn.rotary_cos, cos) and torch.equal(attn.rotary_sin, sin)):
            faults.append(f"blocks.{layer}.attn has rotary tables of its own")
    if not (torch.equal(cos[:, ::2], cos[:, 1::2]) and torch.equal(sin[:, ::2], sin[:, 1::2])):
        faults.append("the rotary tables turn the two coordinates of a pair differently")
    return None if faults else torch.stack((cos[:, ::2], sin[:, ::2]), -1)
