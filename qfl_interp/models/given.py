"""Models of the user's own: a `HookedTransformerConfig` or a `HookedTransformer` as what names a run, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.model_kinds import AnyModelConfig, LensModelConfig
from qfl_interp.seeding import generator

# What `train` takes as a model. A name for annotations: at run time it is anything.
if TYPE_CHECKING:
    from qfl_interp.models.tl_version import HookedTransformer, HookedTransformerConfig

    GivenModel = AnyModelConfig | HookedTransformerConfig | HookedTransformer
else:
    GivenModel = object

# Fields of the configuration that do not name the model: where it is, what it was drawn from, what follows from others.
_NOT_NAMED = ("device", "seed", "n_params", "init_weights")
# Where `build_model` notes the `ModelConfig` of a model.
MADE_FROM = "made_from"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Configured(NamedTuple):
    """A model's configuration, and its initial weights where they were given; None where the run's seed decides."""

    config: AnyModelConfig
    weights: dict[str, Tensor] | None


@contextlib.contextmanager
def without_deprecation() -> Iterator[None]:
    """Make a `HookedTransformer` without its warning: it exists in transformer-lens 3.x only, which is pinned."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        yield


def configured(model: GivenModel) -> Configured:
    """What names a run of this model, and its initial weights.

    Args:
        model: A `ModelConfig` or another configuration of this library, as it is; a `HookedTransformerConfig`, whose
            weights are drawn as it says (`init_mode`) from the run's seed; or a `HookedTransformer`, which is copied
            and whose own weights are the initial ones. Parameters that require no gradient stay as they are.

    Raises:
        QflError: It cannot be trained or made again from what is stored; everything that stands in the way is listed.
        TypeError: It is none of these.
    """
    if isinstance(model, AnyModelConfig):
        return Configured(model, None)
    from qfl_interp.models.tl_version import HookedRootModule, HookedTransformerConfig

    if isinstance(model, HookedTransformerConfig):
        faults = [f"{name}={value!r}: {why}" for name, value, why in _only_config_faults(model)]
        _refuse(_config_faults(model) + faults)
        return Configured(_described(_build(_plain_fields(model), 0)), None)
    if isinstance(model, HookedRootModule):
        return _of_model(model)
    raise TypeError(
        f"a model must be a ModelConfig, or a HookedTransformerConfig or HookedTransformer of transformer_lens, got a "
        f"{type(model).__name__}."
    )


def build_given(config: LensModelConfig, *, d_vocab: int, n_ctx: int, seed: int) -> HookedTransformer:
    """A model of this configuration, its weights drawn as TransformerLens does, from the seed.

    Raises:
        QflError: It has fewer tokens or positions than asked for.
    """
    cfg = config.cfg
    wanted = {"d_vocab": d_vocab, "d_vocab_out": d_vocab, "n_ctx": n_ctx}
    _refuse([f"{name}={cfg[name]}: the task needs {least}" for name, least in wanted.items() if cfg[name] < least])
    model = _build(cfg, seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in config.frozen)
    return model


def lens_settings(config: Any) -> dict[str, Any]:
    """The fields that name a model of transformer_lens, as JSON holds them and in float32; `lens_model` makes it.

    Args:
        config: A `HookedTransformerConfig`, or its fields as a mapping, such as its `to_dict()` read back from a file.
            Where it was, how it was loaded and its tokenizer are left out.

    Raises:
        QflError: A field is unknown, the vocabulary's size is missing, or the weights would be quantised.
    """
    given = dict(config) if isinstance(config, Mapping) else _plain_fields(config)
    kept = {name: value for name, value in given.items() if name not in _NOT_NAMED}
    kept |= {"dtype": "float32", "tokenizer_name": None, "n_devices": 1}
    if not isinstance(kept.get("d_vocab"), int) or kept["d_vocab"] < 1:
        raise QflError(f"a configuration of transformer_lens must say d_vocab, got {kept.get('d_vocab')!r}.")
    if kept.get("load_in_4bit"):
        raise QflError("load_in_4bit must be False: quantised weights are not read.")
    try:
        return _plain_fields(_build(kept, 0).cfg)
    except Exception as error:  # its checks raise what they like
        raise QflError(f"transformer_lens makes no model of this configuration: {error}") from error


def lens_model(settings: Mapping[str, Any], seed: int) -> HookedTransformer:
    """The model of `lens_settings`, its weights drawn as transformer_lens does, from the seed."""
    return _build(settings, seed)


def _build(cfg: Mapping[str, Any], seed: int) -> HookedTransformer:
    """A model of plain fields; the global generators are as before."""
    from qfl_interp.models.tl_version import HookedTransformer, HookedTransformerConfig

    made = HookedTransformerConfig(**{**cfg, "dtype": _DTYPES[cfg["dtype"]], "device": "cpu"})
    with torch.random.fork_rng(devices=[]), without_deprecation():
        torch.default_generator.manual_seed(int(generator(seed, "init").integers(2**63)))
        return HookedTransformer(made)


def _of_model(model: Any) -> Configured:
    """The configuration and the weights of a model that was given."""
    _refuse(_model_faults(model))
    made = _build(_plain_fields(model.cfg), 0)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    faults = [f"{name} is not there" for name, _ in made.named_parameters() if name not in own]
    faults += [f"{name} is a parameter of its own" for name, _ in model.named_parameters() if name not in _names(made)]
    _refuse(faults or _class_faults(model, made))
    weights = {name: own[name].detach().cpu().clone() for name in _names(made)}
    _refuse([
        f"{name} has shape {tuple(w.shape)} and {w.dtype} instead of {tuple(p.shape)} and {p.dtype}"
        for (name, p), w in zip(made.named_parameters(), weights.values(), strict=True)
        if (p.shape, p.dtype) != (w.shape, w.dtype)
    ])  # fmt: skip
    for name, parameter in made.named_parameters():
        parameter.data.copy_(weights[name])
        parameter.requires_grad_(own[name].requires_grad)
    _require_same_function(model, made)
    made_from = getattr(model, MADE_FROM, None)
    drawn_as = None if made_from is None else json.dumps(made_from.to_dict(), sort_keys=True)
    return Configured(
        dataclasses.replace(_described(made), weights=weights_digest(weights), drawn_as=drawn_as), weights
    )


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits that name weights: of names, shapes and numbers."""
    named = ((name, str(tuple(t.shape)), t.cpu().contiguous().numpy().tobytes()) for name, t in tensors.items())
    return digest(*(part for parts in named for part in parts))


def _described(model: HookedTransformer) -> LensModelConfig:
    """The configuration of a model that `_build` made."""
    parameters = dict(model.named_parameters())
    looked_up = ("embed.W_E", "pos_embed.W_pos")
    frozen = tuple(name for name, parameter in parameters.items() if not parameter.requires_grad)
    return LensModelConfig(
        settings=json.dumps(_plain_fields(model.cfg), sort_keys=True),
        parameters=sum(p.numel() for name, p in parameters.items() if name not in frozen),
        multiplied=sum(p.numel() for n, p in parameters.items() if ".W_" in n and n not in looked_up),
        frozen=frozen,
    )


def _plain_fields(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """The fields that name the model, as JSON has them."""
    fields = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
    named = {name: value for name, value in fields.items() if name not in _NOT_NAMED}
    named["dtype"] = str(cfg.dtype).removeprefix("torch.")
    return json.loads(json.dumps(named, default=lambda value: value.item()))


def _names(model: torch.nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _refuse(faults: list[str]) -> None:
    """Raise QflError with all faults, where there are some."""
    if faults:
        listed = "\n  ".join(faults)
        raise QflError(
            f"this model of transformer_lens cannot be trained and opened again:\n  {listed}\n"
            "Change it, or describe the model by a qfl_interp.ModelConfig."
        )


def _config_faults(cfg: HookedTransformerConfig) -> list[str]:
    """What in a configuration rules training out."""
    rules = {
        "tokenizer_name": (cfg.tokenizer_name is None, "a task has tokens of its own"),
        "d_vocab": (cfg.d_vocab > 0, "give the number of the task's tokens"),
        "n_devices": (cfg.n_devices == 1, "a run is trained on one device"),
        "dtype": (cfg.dtype in _DTYPES.values(), "torch.float32 and torch.float64 are trained"),
        "attention_dir": (cfg.attention_dir == "causal", "others read the tokens that are to be predicted"),
        "load_in_4bit": (not cfg.load_in_4bit, "quantised weights are not trained"),
    }
    return [f"{name}={getattr(cfg, name)!r}: {why}" for name, (fits, why) in rules.items() if not fits]


def _only_config_faults(cfg: HookedTransformerConfig) -> Iterator[tuple[str, object, str]]:
    """What rules a configuration without a model out."""
    if cfg.seed is not None:
        yield "seed", cfg.seed, "TrainConfig.seed decides the initial weights"
    if not cfg.init_weights:
        yield "init_weights", False, "there are no initial weights; give the model"


def _model_faults(model: Any) -> list[str]:
    """What in a model rules training out."""
    from qfl_interp.models.tl_version import HookedTransformer

    if type(model) is not HookedTransformer:
        return [f"it is a {type(model).__name__} instead of a HookedTransformer"]
    faults = _config_faults(model.cfg)
    if model.tokenizer is not None and model.cfg.tokenizer_name is None:
        faults.append("it has a tokenizer: a task has tokens of its own")
    hooked = [name for name, module in model.named_modules() if module._forward_hooks or module._backward_hooks]
    return faults + [f"hooks are attached at {', '.join(hooked)}: call reset_hooks()"] * bool(hooked)


def _class_faults(model: torch.nn.Module, made: torch.nn.Module) -> list[str]:
    """Modules that are of another class than the configuration's."""
    own, wanted = ({name: type(m) for name, m in one.named_modules()} for one in (model, made))
    differing = [name for name in {**own, **wanted} if own.get(name) is not wanted.get(name)]
    shown = {
        name: tuple(getattr(found.get(name), "__name__", "missing") for found in (own, wanted)) for name in differing
    }
    return [f"{name} is {mine} instead of {other}" for name, (mine, other) in shown.items()]


@torch.no_grad()
def _require_same_function(model: Any, made: Any) -> None:
    """Raise QflError where the model made from the configuration computes other logits than the one that was given."""
    n = min(model.cfg.n_ctx, 16)
    tokens = torch.arange(2 * n).view(2, n) % model.cfg.d_vocab
    device = next(model.parameters()).device
    got, want = made(tokens), model(tokens.to(device)).cpu()
    close = torch.allclose(got, want, rtol=1e-4, atol=1e-4) if device.type != "cpu" else torch.equal(got, want)
    _refuse([] if close else ["made again from its configuration and weights it computes other logits"])
