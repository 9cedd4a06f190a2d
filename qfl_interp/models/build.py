"""ModelConfig -> HookedTransformer, or a Hugging Face model -> TransformerBridge: sizes, weights, what is kept.

`tl_version`, which imports transformer_lens, is imported where a model is made, because that takes longer than showing
tables that are finished.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from qfl_interp.config import ModelConfig
from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.hf_model_config import HFModelConfig
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.model_kinds import AnyModelConfig, LensModelConfig
from qfl_interp.models.given import MADE_FROM, build_given, without_deprecation
from qfl_interp.models.mup import initial_multiplier
from qfl_interp.seeding import torch_generator

# Whatever has TransformerLens hook points: its own models, and the bridge around a Hugging Face model. A name for
# annotations: at run time any module is one.
if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qfl_interp.models.mlp import SampleReader
    from qfl_interp.models.tl_version import (
        HookedRootModule,
        HookedTransformer,
        HookedTransformerConfig,
        TransformerBridge,
    )

    HookedModel = HookedRootModule | TransformerBridge
else:
    HookedModel = nn.Module

ModelT = TypeVar("ModelT", bound=nn.Module)

_NORMS = {"rms": "RMS", "ln": "LN", "none": None}


def build_model(config: AnyModelConfig, task: Task, *, seed: int = 0) -> Any:
    """A freshly initialised model for a task, in float32 on the CPU.

    Args:
        config: Shape and style; or what `models.given.model_config` makes of a configuration of TransformerLens.
        task: Gives the vocabulary and the context length.
        seed: Decides the initial weights; the global generators are not touched.

    Example:
        >>> from qfl_interp.data.registry import load_task
        >>> model = build_model(ModelConfig(d_model=16, n_layers=4), load_task("addition", length=16))
        >>> sum(p.numel() for p in model.parameters())
        12464
    """
    of_vectors = config.kind == MLPConfig.kind
    if of_vectors != (task.samples is not None):
        needs = "tokens: take a transformer" if of_vectors else "vectors: take style 'homogeneous' (MLPConfig)"
        raise QflError(f"task {task.name!r} needs a model that reads {needs}, got one of kind {config.kind!r}.")
    model = build_hooked(config, d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_out=task.d_out, seed=seed)
    shown: Any = model  # of one name the type checker would make a union
    if task.samples is not None and reads_vectors(shown):
        shown.show(task.samples)
    return model


def build_hooked(
    config: AnyModelConfig, *, d_vocab: int, n_ctx: int, d_out: int | None = None, seed: int = 0
) -> HookedTransformer:
    """A freshly initialised model for a vocabulary and a context length, in float32 on the CPU.

    With `d_out`, of a real-valued task, it reads vectors of `d_vocab` entries and gives so many numbers a position.

    Raises:
        ValueError: `d_vocab` or `n_ctx` is not positive.
        QflError: Its weights need more memory than is free, or a model that was given is too small for a task.
    """
    for name, value in (("d_vocab", d_vocab), ("n_ctx", n_ctx)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}.")
    require_memory(
        4 * config.n_weights(d_vocab=d_vocab), available_bytes(),
        f"parameters of d_model {config.d_model:,} and n_layers {config.n_layers:,}", "Take a smaller model.",
    )  # fmt: skip
    if d_out is None:
        return BUILDERS[config.kind](config, d_vocab=d_vocab, n_ctx=n_ctx, seed=seed)
    if not isinstance(config, ModelConfig):
        raise QflError(f"a real-valued task needs a transformer that reads vectors (ModelConfig), got {config.kind!r}.")
    return _build_transformer(config, d_vocab=d_vocab, n_ctx=n_ctx, d_out=d_out, seed=seed)


def _build_transformer(
    config: ModelConfig, *, d_vocab: int, n_ctx: int, seed: int, d_out: int | None = None
) -> HookedTransformer:
    """The model of a `ModelConfig`; with `d_out` one of vectors.

    Every bias of TransformerLens that the model does not have becomes a zero buffer that no checkpoint holds, and so do
    the positions of a model without any: the parameters are the paper's (`ModelConfig.n_parameters`).

    References:
        Quiet Feature Learning in Algorithmic Tasks (arXiv 2505.03997), "Transformer++"; for "gpt2" the
        arithmetic setting of Hidden Breakthroughs (arXiv 2506.15872), section 4.
    """
    from qfl_interp.models.tl_version import HookedTransformer

    if d_out is not None and config.tied:
        raise QflError("tied must be left out of a model for a real-valued task: it reads vectors and writes others.")
    cfg = _lens_config(config, d_vocab, n_ctx, d_out)
    with without_deprecation():
        model = HookedTransformer(cfg)
    if d_out is not None:
        from qfl_interp.models.vectors import read_vectors

        read_vectors(model)
    if config.attention == "linear":
        from qfl_interp.models.linear_attention import make_linear

        make_linear(model)
    if config.tied:
        from qfl_interp.models.tied import tie

        tie(model, scale=1 / config.width_ratio)
    _freeze_absent(model, config)
    _initialise(model, config, torch_generator(seed, "init"))
    setattr(model, MADE_FROM, config)
    return model


@torch.no_grad()
def _build_given(config: LensModelConfig, *, d_vocab: int, n_ctx: int, seed: int) -> HookedTransformer:
    """A model of TransformerLens; drawn as the one of a `ModelConfig` where the first was made so."""
    model = build_given(config, d_vocab=d_vocab, n_ctx=n_ctx, seed=seed)
    if config.drawn_as is not None:
        made_from, cfg = ModelConfig.from_dict(json.loads(config.drawn_as)), config.cfg
        fresh = _build_transformer(made_from, d_vocab=cfg["d_vocab"], n_ctx=cfg["n_ctx"], seed=seed)
        # Biases that one has no parameters of are zeros in its buffers.
        drawn = dict(fresh.named_parameters()) | dict(fresh.named_buffers())
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn[name])
    return model


def _build_mlp(config: MLPConfig, *, d_vocab: int, n_ctx: int, seed: int) -> SampleReader:
    """The homogeneous network of a configuration, reading the numbers of samples that it is yet to be shown."""
    from qfl_interp.models.mlp import HomogeneousMLP, SampleReader

    if config.d_out != d_vocab:
        raise QflError(f"d_out must be the task's {d_vocab} classes, got {config.d_out}.")
    return SampleReader(HomogeneousMLP(config, seed=seed))


def _build_hugging_face(config: HFModelConfig, *, d_vocab: int, n_ctx: int, seed: int) -> TransformerBridge:
    """The bridge around a freshly initialised Hugging Face model; the recorder has checked that the task fits."""
    from qfl_interp.models.hugging_face import new_model_of

    return hooked_from_hf(new_model_of(config, seed))


def build_loaded(
    config: AnyModelConfig, tensors: Mapping[str, Tensor], *, d_vocab: int, n_ctx: int, d_out: int | None = None
) -> HookedModel:
    """The model of a configuration with the weights of a checkpoint; those of a Hugging Face model have its own names.

    Raises:
        QflError: A name, shape or dtype does not fit, or as `build_hooked`.
    """
    if isinstance(config, HFModelConfig):
        from qfl_interp.models.hugging_face import new_model_of, stored_tensors

        made = new_model_of(config)
        load_tensors(stored_tensors(made), tensors)
        return hooked_from_hf(made)
    model = build_hooked(config, d_vocab=d_vocab, n_ctx=n_ctx, d_out=d_out)
    load_parameters(model, tensors)
    return model


# How the models of each kind of configuration are made.
BUILDERS: dict[str, Callable[..., Any]] = {
    ModelConfig.kind: _build_transformer,
    LensModelConfig.kind: _build_given,
    MLPConfig.kind: _build_mlp,
    HFModelConfig.kind: _build_hugging_face,
}


def _lens_config(config: ModelConfig, d_vocab: int, n_ctx: int, d_out: int | None) -> HookedTransformerConfig:
    """TransformerLens's configuration of the same model; weights are left for us to draw."""
    from qfl_interp.models.tl_version import HookedTransformerConfig

    used, rotary = config.used, config.used.positions == "rotary"
    scores = {}
    if config.mup_base is not None and config.d_head is None:
        # Scores divided by d_head instead of its root, but for a constant: the base model's are the standard ones.
        scores["attn_scale"] = math.sqrt(config.d_head_used * config.width_ratio)
    return HookedTransformerConfig(
        d_model=config.d_model,
        d_head=config.d_head_used,
        d_mlp=None if config.attn_only else config.d_mlp_used,
        n_heads=config.n_heads,
        n_layers=config.n_layers,
        n_ctx=n_ctx,
        d_vocab=d_vocab,
        d_vocab_out=d_vocab if d_out is None else d_out,
        eps=config.norm_eps,
        attn_only=config.attn_only,
        act_fn=used.act,
        gated_mlp=used.gated,
        normalization_type=_NORMS[used.norm],
        positional_embedding_type="rotary" if rotary else "standard",
        rotary_dim=config.d_head_used if rotary else None,
        rotary_adjacent_pairs=rotary,
        rotary_base=config.rope_theta,
        init_weights=False,
        device="cpu",
        **scores,
    )


def _freeze_absent(model: HookedTransformer, config: ModelConfig) -> None:
    """Turn every bias that the configuration leaves out, and positions, into zero buffers outside the state dict."""
    kept = {"all": ("b_",), "mlp": ("b_in", "b_out"), "none": ()}[config.used.biases]
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            absent = name.startswith("b_") and not name.startswith(kept)
            if absent or (name == "W_pos" and config.used.positions == "none"):
                _freeze(module, name, torch.zeros_like(parameter.detach()))


def _freeze(module: nn.Module, name: str, value: Tensor) -> None:
    """Turn a parameter into a buffer outside the state dict."""
    delattr(module, name)
    module.register_buffer(name, value, persistent=False)


@torch.no_grad()
def _initialise(model: HookedTransformer, config: ModelConfig, rng: torch.Generator) -> None:
    """Draw weight matrices (gains are 1, biases 0 already), by name: the order of construction changes no weight."""
    for name, parameter in sorted(model.named_parameters()):
        matrix = name.rpartition(".")[2]
        if not matrix.startswith("W_"):
            continue
        uniform, spread = _spread(config, matrix, model.cfg.d_vocab_out)
        spread *= config.init_scale * initial_multiplier(config, matrix)
        if uniform:
            nn.init.uniform_(parameter, -spread, spread, generator=rng)
        else:
            nn.init.normal_(parameter, std=spread, generator=rng)


def _spread(config: ModelConfig, matrix: str, d_vocab_out: int) -> tuple[bool, float]:
    """Whether a matrix is drawn uniformly, and its bound or else its standard deviation, of the base width's model."""
    scheme = config.used.init
    if config.tied and matrix == "W_E":
        matrix = "W_U"  # it is both: drawn as an embedding, initial logits would be far from 0
    d_model = config.d_model / config.width_ratio
    if scheme == "gpt2":
        return False, 0.8 / math.sqrt(d_model)
    if scheme == "grokking":
        return False, 1 / math.sqrt(d_vocab_out if matrix == "W_U" else d_model)
    if matrix in ("W_E", "W_pos"):
        return False, 1.0
    inputs = {"W_out": config.d_mlp_used, "W_O": config.n_heads * config.d_head_used}.get(matrix, config.d_model)
    return True, 1 / math.sqrt(inputs / config.width_ratio)


def hooked_from_hf(model: PreTrainedModel) -> TransformerBridge:
    """A bridge with TransformerLens hook points around a Hugging Face causal language model, in evaluation mode.

    Weights are not folded or centred: its logits are those of the model itself. The bridge puts its own modules into
    the model's tree, so that the model given should not be used any more. It has no tokenizer: give it token ids.
    The global generators are not touched.

    Args:
        model: Loaded with `attn_implementation="eager"`; other implementations never form attention patterns.

    Raises:
        QflError: Another attention implementation, or an architecture TransformerLens has no bridge for, or one whose
            logits are not the model's own (a few tokens are compared).

    Example:
        >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
        >>> tiny = GPTNeoXConfig(vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2, attn_implementation="eager")
        >>> hooked_from_hf(GPTNeoXForCausalLM(tiny))(torch.tensor([[1, 2]])).shape
        torch.Size([1, 2, 5])
    """
    from qfl_interp.models.tl_version import build_bridge_from_module

    name = type(model).__name__
    if not hasattr(model, "config"):
        raise QflError(f"a causal language model of transformers is needed, got a {name}, which has no `config`.")
    attention = getattr(model.config, "_attn_implementation", "eager")
    if attention != "eager":
        raise QflError(
            f"{name} must be loaded with attn_implementation='eager', got {attention!r}, which never forms the "
            "attention pattern that hooks read."
        )
    own = {id(parameter) for parameter in model.parameters()}
    # The bridge draws weights for projections that it overwrites at once.
    with torch.random.fork_rng(devices=[]):
        try:
            own_logits = _few_logits(model.eval())
            bridge = build_bridge_from_module(model, name, hf_config=model.config, model_name=name)
        except Exception as error:  # adapters raise whatever their architecture makes them trip over
            raise QflError(
                f"TransformerLens cannot put hook points into {name}: {type(error).__name__}: {error}. Use a decoder "
                "it supports (GPT-NeoX, GPT-2, Llama, Mistral, Qwen, Gemma, OLMo, ...)."
            ) from error
    _freeze_untrained(bridge, own)
    _require_logits(bridge.eval(), own_logits, name)
    return bridge


@torch.no_grad()
def _few_logits(model: Any) -> Tensor:
    """The logits of a model of transformers, or of its bridge, on two short rows of tokens, in double precision."""
    n_tokens = model.config.get_text_config().vocab_size if hasattr(model, "config") else model.cfg.d_vocab
    tokens = torch.arange(12, device=next(model.parameters()).device).view(2, 6) * 5 % n_tokens
    found = model(tokens)
    return getattr(found, "logits", found).double()


def _require_logits(bridge: TransformerBridge, wanted: Tensor, name: str) -> None:
    """Raise `QflError` where a bridge computes something else than the model that it wraps."""
    # A bridge's sums are in another order: 1e-6 in single precision, and much more in half.
    least = 1e-4 if next(bridge.parameters()).dtype in (torch.float32, torch.float64) else 0.1
    apart = float((_few_logits(bridge) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    if apart > least:  # not of a NaN, which is the model's own
        raise QflError(
            f"TransformerLens's bridge for {name} must compute the model's own logits, but is off by {apart:.1%} of "
            "the largest: its activations would be another model's. Take another version of transformer-lens, or a "
            "model of another family."
        )


def _freeze_untrained(bridge: TransformerBridge, own: Set[int]) -> None:
    """Leave as parameters of a bridge what is trained: not the projections it has split, nor biases it has added.

    `own` holds the `id` of every parameter the Hugging Face model had.
    """
    for module in list(bridge.modules()):
        for fused in _split_projections(module):
            for inner in fused.modules():
                for name, parameter in list(inner.named_parameters(recurse=False)):
                    _freeze(inner, name, parameter.detach())
        weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
        if bias is not None and id(weight) in own and id(bias) not in own:
            _freeze(module, "bias", bias.detach())


def _split_projections(module: nn.Module) -> Iterator[nn.Module]:
    """The fused projections of a bridge's module whose parts it reads instead."""
    from qfl_interp.models.tl_version import JointGateUpMLPBridge, JointQKVAttentionBridge

    if isinstance(module, JointQKVAttentionBridge):
        yield module.get_submodule("qkv")
    elif isinstance(module, JointGateUpMLPBridge):
        yield module.get_submodule(f"_original_component.{module.fused_attr}")


def is_hooked_transformer(model: HookedModel) -> TypeGuard[HookedTransformer]:
    """Whether it is one of TransformerLens's own models."""
    from qfl_interp.models.tl_version import HookedTransformer

    return isinstance(model, HookedTransformer)


def reads_vectors(model: nn.Module) -> TypeGuard[SampleReader]:
    """Whether the model's token ids stand for vectors that it has to be shown."""
    return hasattr(model, "show")


def _prints_moves(model: HookedModel) -> TypeGuard[HookedTransformer | TransformerBridge]:
    """Whether the model prints where it is moved, unless it is told not to."""
    from qfl_interp.models.tl_version import HookedTransformer, TransformerBridge

    return isinstance(model, HookedTransformer | TransformerBridge)


def model_on(model: ModelT, device: str | torch.device) -> ModelT:
    """The model, moved to a device; TransformerLens would print that it moves."""
    if _prints_moves(model):  # pyright: ignore[reportArgumentType]
        return model.to(device, print_details=False)  # pyright: ignore[reportReturnType]
    return model.to(device)


def model_in_dtype(model: HookedModel, dtype: torch.dtype) -> HookedModel:
    """The model in a precision: itself where it is in that one, otherwise a copy."""
    if all(parameter.dtype == dtype for parameter in model.parameters()):
        return model
    other = copy.deepcopy(model)
    # TransformerLens's norms follow `cfg.dtype`, which `.to` keeps in step and `.double()` does not.
    if _prints_moves(other):
        return other.to(dtype, print_details=False)
    return other.to(dtype)


def layer_count(model: HookedModel) -> int:
    """How many blocks the model has.

    Raises:
        QflError: It has no TransformerLens configuration, as a model without hook points has none.
    """
    n_layers = getattr(getattr(model, "cfg", None), "n_layers", None)
    if n_layers is None:
        raise QflError(
            f"a hooked model has a configuration with its number of blocks (cfg.n_layers), and {type(model).__name__} "
            "has none. Wrap a Hugging Face model: qfl_interp.hooked_from_hf(model)."
        )
    return int(n_layers)


def model_device(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def parameters_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors by name, detached, sharing the model's memory.

    Masks, rotary tables and frozen biases follow from the configuration and are left out.
    """
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into the model's parameters. Raises as `load_tensors`."""
    load_tensors(dict(model.named_parameters()), tensors)


@torch.no_grad()
def load_tensors(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into those of a model, after all of them were checked.

    Raises:
        QflError: A name, shape or dtype does not fit; all mismatches are listed and the model is unchanged.
    """
    faults = [f"{name}: missing" for name in sorted(parameters.keys() - tensors.keys())]
    faults += [f"{name}: not in this model" for name in sorted(tensors.keys() - parameters.keys())]
    for name in sorted(parameters.keys() & tensors.keys()):
        want, got = parameters[name], tensors[name]
        if want.shape != got.shape:
            faults.append(f"{name}: shape {tuple(got.shape)} instead of {tuple(want.shape)}")
        if want.dtype != got.dtype:
            faults.append(f"{name}: dtype {got.dtype} instead of {want.dtype}")
    if faults:
        listed = "\n  ".join(faults)
        raise QflError(
            f"these weights do not fit the model, {len(faults)} mismatches:\n  {listed}\n"
            "Nothing was loaded. Build the model from the configuration saved beside the weights."
        )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
