"""Frozen configurations, checked on creation, JSON both ways. A run is named by its configuration."""

from __future__ import annotations

import dataclasses
import math
import numbers
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeVar

from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError, nearest, unknown_name
from qfl_interp.model_sizes import kept_numbers, matrix_flops, nominal_flops
from qfl_interp.recipes import (
    DECAYS,
    OPTIMIZERS,
    SCHEDULES,
    checked_settings,
    register_loss,
    require_loss,
    setting_values,
)
from qfl_interp.sites import PROBE_SITES

# beartype, which checks the annotations in tests, refuses typing.Self on a method it sees alone.
_ConfigT = TypeVar("_ConfigT", bound="_Config")


# The integers that a tensor can hold.
_LARGEST = 2**63
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _require(ok: bool, rule: str, value: object, advice: str) -> None:
    """Raise ValueError with the rule, the value found and what to do, unless `ok`."""
    if not ok:
        raise ValueError(f"{rule}, got {_shown(value)}. {advice}".rstrip())


def _require_word(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError with the words there are, and the nearest, unless `value` is one of them."""
    listed = " or ".join((", ".join(map(repr, known[:-1])), repr(known[-1])))
    _require(value in known, f"{name} must be {listed}", value, nearest(value, known).strip())


def _shown(value: object) -> str:
    """The value as a message shows it: a list or a number of a thousand digits is cut."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python writes no number of 4300 digits
        return f"an integer of {value.bit_length()} bits"
    return _SHORT.repr(value)


def _plain(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError("an integer")
    if abs(int(value)) > _LARGEST:
        raise TypeError("an integer within 2**63")
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError("a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise TypeError("a finite number")
    return number


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    return str(value)


def _floats(value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("several numbers")
    return tuple(_float(_plain(one)) for one in value)


def _ints(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError("several integers")
    return tuple(_int(_plain(one)) for one in value)


class Options(dict[str, "bool | int | float | str"]):
    """Named settings of something that is itself a name (a task, an optimiser); hashable, never changed once made."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _options(value: Any) -> Options:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError("settings by name, each true or false, a number or a text")
    plain = {name: _plain(one) for name, one in value.items()}
    for name, one in plain.items():
        if not isinstance(one, (bool, str)):
            try:
                plain[name] = _int(one) if isinstance(one, numbers.Integral) else _float(one)
            except TypeError as error:
                raise TypeError(f"settings of which {name} is true or false, a text or {error}") from error
    return Options(plain)


def _int_or_all(value: Any) -> int | Literal["all"]:
    if isinstance(value, str) and value == "all":
        return "all"
    try:
        return _int(value)
    except TypeError as error:
        raise TypeError(f"{error}, or 'all'") from error


def _str_or_floats(value: Any) -> str | tuple[float, ...]:
    return _str(value) if isinstance(value, str) else _floats(value)


# Annotation -> what makes a value of it; a TypeError says what is wanted.
_TYPES: dict[str, Callable[[Any], Any]] = {
    "bool": _bool, "int": _int, "float": _float, "str": _str, "tuple[int, ...]": _ints,
    "tuple[float, ...]": _floats, "tuple[float, float]": _floats, "str | tuple[float, float]": _str_or_floats,
    "Mapping[str, Any]": _options, "int | Literal['all']": _int_or_all,
}  # fmt: skip


class _Config:
    """JSON both ways for a frozen dataclass; equal configurations have one JSON text, hence one digest.

    Every field is checked and made what its annotation says: a scalar of numpy becomes Python's, NaN and infinities are
    no numbers here. Fields of other annotations are words, and which ones is the class's own to check.
    """

    # Limits that may be infinite: there is none then.
    _unlimited: ClassVar[tuple[str, ...]] = ()
    # Fields that came after the first release. At their default they are not written: configurations of before keep
    # their names.
    _later: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            kind = str(field.type).removesuffix(" | None")
            value = _plain(getattr(self, field.name))
            if value is None and kind != field.type:
                continue
            if field.name in self._unlimited and isinstance(value, float) and value == math.inf:
                continue
            try:
                object.__setattr__(self, field.name, _TYPES.get(kind, _str)(value))
            except TypeError as error:
                _require(False, f"{field.name} must be {error}", value, "")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; those of `_later` where they differ from their default."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass
        defaults = {f.name: f.default for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {k: v for k, v in values.items() if not (k in self._later and getattr(self, k) == defaults[k])}

    @classmethod
    def from_dict(cls: type[_ConfigT], values: dict[str, Any]) -> _ConfigT:
        """The configuration that `to_dict` wrote.

        Raises:
            QflError: A field is unknown or missing: the file is another version's or another program's.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # a dataclass
        unknown = sorted(set(values) - set(fields))
        required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
        missing = sorted(required - set(values))
        if unknown or missing:
            raise QflError(
                f"{cls.__name__} does not fit: unknown fields {unknown}, missing fields {missing}. "
                "The file was written by another version of qfl_interp or by another program."
            )
        fitted = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fitted)

    def digest(self) -> str:
        """Twelve hexadecimal digits that name this configuration: the SHA-256 of its sorted JSON."""
        return json_digest(self.to_dict())


class Architecture(NamedTuple):
    """What a model's blocks are made of, every choice made."""

    norm: str
    act: str
    gated: bool
    positions: str
    biases: str
    init: str


# What `ModelConfig.style` stands for: the models of three papers.
PRESETS: Final = {
    "llama": Architecture("rms", "silu", True, "rotary", "none", "llama"),
    "gpt2": Architecture("ln", "gelu_new", False, "learned", "all", "gpt2"),
    "grokking": Architecture("none", "relu", False, "learned", "mlp", "grokking"),
}
_WORDS: Final = {
    "norm": ("rms", "ln", "none"),
    "act": ("silu", "gelu", "gelu_new", "relu", "relu2", "solu"),
    "positions": ("rotary", "learned", "none"),
    "biases": ("all", "mlp", "none"),
    "init": tuple(PRESETS),
    "attention": ("softmax", "linear"),
}


@dataclass(frozen=True)
class ModelConfig(_Config):
    """The shape of a model; context length and vocabulary come from the task.

    `style` is a preset: "llama" (RMS norm, rotary positions, SwiGLU, no biases; quiet features), "gpt2" (layer norm,
    learned positions, GELU, biases; POLCA) or "grokking" (no norm, learned positions, ReLU, biases of the MLP alone;
    modular addition). Every part of it can be chosen otherwise; None means the style's, and `used` says what that is.

    Args:
        d_model: Width of the residual stream. Without `d_head` a multiple of `n_heads` (of `2 n_heads` with rotary
            positions, which turn pairs of coordinates).
        n_layers: Number of blocks.
        n_heads: Attention heads; the quiet-features paper uses 4 at every width.
        style: The preset.
        d_mlp: Hidden width of the MLP. By default `int(8 d_model / 3)` rounded up to even where it is gated, and
            `4 d_model` where it is not.
        norm_eps: Epsilon of the norms.
        rope_theta: Base of the rotary frequencies.
        norm: "rms" (with gain), "ln" (with gain and shift) or "none".
        act: The MLP's nonlinearity: "silu", "gelu" (exact), "gelu_new" (tanh), "relu", "relu2" or "solu".
        gated: Whether a second matrix' outputs multiply the activated ones, as in SwiGLU.
        positions: "rotary", "learned" (added to the embedding) or "none", where attention's mask alone tells them.
        biases: "all" (of attention, MLP and unembedding), "mlp" (of that alone) or "none"; the shift of a norm is
            none of them.
        init: Initial matrices. "llama": uniform within `1 / sqrt(inputs)`, embeddings of deviation 1. "gpt2": normal of
            deviation `0.8 / sqrt(d_model)`. "grokking": normal of `1 / sqrt(d_model)`, the unembedding's of
            `1 / sqrt(d_vocab)`. Gains are 1 and biases 0.
        init_scale: Multiplies every initial matrix.
        d_head: Width of an attention head, by default `d_model / n_heads`; even with rotary positions.
        attn_only: Whether the blocks have no MLP.
        tied: Whether the unembedding is the transposed embedding.
        attention: "softmax", or "linear": the scores as they are, without a normaliser (arXiv 2212.07677).
        mup_base: Maximal-update parametrisation with this base width: at `d_model = mup_base` the model is the standard
            one, and at every width the learning rate that was best there serves. Initial weights, attention's scale and
            the learning rate of each parameter (`qfl_interp.models.mup`) depend on `d_model / mup_base`. Keep
            `d_mlp / d_model` and `n_heads d_head / d_model` the same at all widths. None: the standard one.

    Raises:
        ValueError: A size is not positive, the heads do not divide the width, a word is unknown, or a part of an MLP is
            asked of a model without one.

    References:
        Nanda et al. (2023), arXiv 2301.05217, and the code released with it, for "grokking"; Yang et al. (2022), arXiv
        2203.03466, for `mup_base`.
    """

    _later = (
        "norm", "act", "gated", "positions", "biases", "init", "init_scale", "d_head", "attn_only", "tied", "mup_base",
        "attention",
    )  # fmt: skip

    # What tells a model configuration from others in a run's `config.json`; of this one, the first, it is not written.
    kind: ClassVar[str] = "transformer"

    d_model: int
    n_layers: int
    n_heads: int = 4
    style: Literal["llama", "gpt2", "grokking"] = "llama"
    d_mlp: int | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    norm: Literal["rms", "ln", "none"] | None = None
    act: Literal["silu", "gelu", "gelu_new", "relu", "relu2", "solu"] | None = None
    gated: bool | None = None
    positions: Literal["rotary", "learned", "none"] | None = None
    biases: Literal["all", "mlp", "none"] | None = None
    init: Literal["llama", "gpt2", "grokking"] | None = None
    init_scale: float = 1.0
    d_head: int | None = None
    attn_only: bool = False
    tied: bool = False
    mup_base: int | None = None
    attention: Literal["softmax", "linear"] = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("d_model", "n_layers", "n_heads"):
            _require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name), "")
        _require_word("style", self.style, tuple(PRESETS))
        for name, known in _WORDS.items():
            if getattr(self, name) is not None:
                _require_word(name, getattr(self, name), known)
        if self.attn_only:
            for name in ("act", "gated", "d_mlp"):
                value = getattr(self, name)
                _require(value is None, f"{name} must be left out where attn_only is set", value, "There is no MLP.")
        self._check_heads()
        if self.d_mlp is not None:
            _require(self.d_mlp > 0, "d_mlp must be positive", self.d_mlp, "Leave it out for the default.")
        _require(self.norm_eps > 0, "norm_eps must be positive", self.norm_eps, "The papers use 1e-5.")
        _require(self.rope_theta > 0, "rope_theta must be positive", self.rope_theta, "The papers use 10000.")
        _require(self.init_scale > 0, "init_scale must be positive", self.init_scale, "1 is the style's own.")
        if self.mup_base is not None:
            advice = "It is the width at which the learning rate was chosen; leave it out for the standard one."
            _require(self.mup_base > 0, "mup_base must be positive", self.mup_base, advice)

    def _check_heads(self) -> None:
        """Raise ValueError unless the heads have a whole, and with rotary positions even, width."""
        rotary = self.used.positions == "rotary"
        if self.d_head is not None:
            _require(self.d_head > 0, "d_head must be positive", self.d_head, "Leave it out for d_model / n_heads.")
            even = not rotary or self.d_head % 2 == 0
            _require(even, "d_head must be even with rotary positions", self.d_head, "They turn pairs of coordinates.")
            return
        factor = 2 * self.n_heads if rotary else self.n_heads
        below = self.d_model // factor * factor
        near = [d for d in (below, below + factor) if d > 0]
        _require(
            self.d_model % factor == 0,
            f"d_model must be a multiple of {factor} ({self.n_heads} heads" + (", rotary pairs)" if rotary else ")"),
            self.d_model,
            f"Use {' or '.join(map(str, near))}, or another n_heads.",
        )

    @property
    def used(self) -> Architecture:
        """The parts of the model, the style's filled in."""
        chosen = {name: getattr(self, name) for name in Architecture._fields}
        return PRESETS[self.style]._replace(**{name: value for name, value in chosen.items() if value is not None})

    @property
    def d_head_used(self) -> int:
        """Width of one attention head, the default filled in."""
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def d_mlp_used(self) -> int:
        """Hidden width of the MLP, the default filled in; 0 where there is none."""
        if self.attn_only:
            return 0
        if self.d_mlp is not None:
            return self.d_mlp
        if not self.used.gated:
            return 4 * self.d_model
        hidden = 8 * self.d_model // 3
        return hidden + hidden % 2

    @property
    def width_ratio(self) -> float:
        """`d_model / mup_base`, by which maximal-update parametrisation scales; 1 in the standard one."""
        return 1.0 if self.mup_base is None else self.d_model / self.mup_base

    @property
    def weights(self) -> None:
        """No digest of initial weights: the run's seed decides them."""
        return None

    @property
    def stackable(self) -> bool:
        """Whether the function is one that `training.stacked` computes for several models at once."""
        standard = PRESETS[self.style]._replace(init=self.used.init)
        square = self.n_heads * self.d_head_used == self.d_model and self.width_ratio == 1
        plain = self.attention == "softmax" and not (self.attn_only or self.tied)
        return self.style != "grokking" and self.used == standard and square and plain

    @property
    def _mlp_numbers(self) -> int:
        """Matrices of a block's MLP times its hidden width."""
        return (3 if self.used.gated else 2) * self.d_mlp_used

    def n_parameters(self, *, d_vocab: int, n_ctx: int, d_out: int | None = None) -> int:
        """Trainable parameters of the model for a vocabulary and a context length, which learned positions have.

        With `d_out`, of a real-valued task, `d_vocab` is what it reads and `d_out` what it gives.
        """
        out = d_vocab if d_out is None else d_out
        d, d_heads, used = self.d_model, self.n_heads * self.d_head_used, self.used
        norm = {"rms": d, "ln": 2 * d, "none": 0}[used.norm]
        layer = norm if self.attn_only else 2 * norm
        if used.biases == "all":
            layer += 3 * d_heads + d
        if used.biases != "none" and not self.attn_only:
            layer += self.d_mlp_used + d
        outside = norm + (n_ctx * d if used.positions == "learned" else 0) + (out if used.biases == "all" else 0)
        return self.n_weights(d_vocab=d_vocab) + (out - d_vocab) * d + self.n_layers * layer + outside

    def n_weights(self, *, d_vocab: int) -> int:
        """Numbers in the model's matrices, learned positions left out."""
        return self._matrix_weights(d_vocab) + (0 if self.tied else d_vocab * self.d_model)

    def _matrix_weights(self, d_vocab: int) -> int:
        """Numbers in the matrices that a token is multiplied with."""
        d, d_heads = self.d_model, self.n_heads * self.d_head_used
        return self.n_layers * (4 * d * d_heads + self._mlp_numbers * d) + d_vocab * d

    def nominal_flops(self, n_ctx: float) -> float:
        """Nominal training FLOPs of a token in sequences of `n_ctx` real tokens (`model_sizes.nominal_flops`)."""
        return nominal_flops(d_model=self.d_model, n_layers=self.n_layers, n_ctx=n_ctx, attn_only=self.attn_only)

    def matrix_flops(self, *, n_ctx: int, d_vocab: int) -> float:
        """FLOPs of the matrix products of a token of an update (`model_sizes.matrix_flops`)."""
        d_heads = self.n_heads * self.d_head_used
        return matrix_flops(weights=self._matrix_weights(d_vocab), n_layers=self.n_layers, d_heads=d_heads, n_ctx=n_ctx)

    def kept_numbers(self, *, d_vocab: int) -> int:
        """About how many numbers of one token a forward pass keeps (`model_sizes.kept_numbers`)."""
        return kept_numbers(
            d_model=self.d_model, d_heads=self.n_heads * self.d_head_used, n_heads=self.n_heads,
            n_layers=self.n_layers, mlp=self._mlp_numbers, d_vocab=d_vocab,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainConfig(_Config):
    """How a model is trained. Exactly one of `budget_flops` and `n_steps` sets the length.

    Args:
        budget_flops: Nominal training FLOPs, turned into steps by `qfl_interp.runs.flops`.
        n_steps: Number of optimiser updates, instead of a budget.
        lr: Peak learning rate.
        batch_size: Examples per update, or "all": every problem of the training split at once, in a fixed order (of
            tasks that can list their problems).
        seed: Names the result: initial weights, data and evaluation sets all derive from it.
        schedule: How the learning rate moves after the warm-up: "cosine" (to `min_lr_fraction`), "linear" (likewise),
            "constant", "ramp" (constant behind a linear warm-up from 0), "wsd" (stable stage, decay), "wsd_s" (several
            of both: after a decay the rate returns to its peak and training goes on), or "cdat" (set at each update by
            the curvature along it); `qfl_interp.training.schedule` has the formulas.
        warmup_fraction: Part of the steps spent warming up.
        min_lr_fraction: Final over peak learning rate.
        decay_fraction: Part of the steps spent decaying ("wsd"; of each of the stages of "wsd_s").
        weight_decay: On all parameters; decoupled in "adamw" and "muon" (0.1 by default), added to the gradient in
            "adam" and "sgd" (0 by default).
        betas: Adam's and AdamW's, and of what Muon leaves to AdamW.
        adam_eps: Likewise.
        clip_norm: Gradients are scaled down to this global norm, by default 1; infinite: never, as in "depthwise".
        eval_fraction: A validation every `max(1, int(eval_fraction * n_steps))` steps; the paper uses 0.005. None:
            about 100 of them, at the first steps and then log-spaced.
        n_val: Examples in the fixed validation set. None: as many as cost about a tenth of training, 128 to 1,000.
        n_checkpoints: About how many checkpoints are kept, half of them log-spaced and half evenly spaced; the
            initial and the final model always are.
        save_every: Keep one every so many steps instead, beside the initial and the final one.
        save_optimizer: Keep the optimiser's state beside every checkpoint (AdamW's moments: twice the weights in size).
            Needed for forks and for preconditioned sharpness.
        divergence_loss: A training loss above this, in its own unit, counts as diverged.
        compile: Train through `torch.compile` (about 30 s to start); falls back with a message.
        optimizer: "adamw", "adam", "sgd" or "muon" (torch's own; `qfl_interp.training.optimizers`), or "depthwise" (of
            homogeneous networks; `qfl_interp.homogeneous`).
        optimizer_options: Further settings of the optimiser by name, such as `{"momentum": 0.9}`;
            `qfl_interp.recipes.OPTIMIZERS` declares them.
        schedule_options: Those of the schedule, such as `{"sigma": 1.0}` of "cdat"; `recipes.SCHEDULES`.
        loss: What is minimised, a mean over scored tokens: "cross_entropy" (nats), "squared_error" (half the squared
            distance from the unit vector), "hinge", or a function `(logits, targets) -> losses` of single tokens, which
            the run keeps the name of.
        draw: Where a batch comes from. "fresh": drawn anew from the task at every step, so that few problems come again
            (with replacement). "batch" and "epoch" draw from the fixed training set of a task that can list its
            problems: "batch" each batch without replacement, whatever the last one was; "epoch" each problem once an
            epoch, in an order of its own. All follow from the seed and the step alone.

    Raises:
        ValueError: A value is out of its range.
        QflError: An optimiser, schedule, loss or one of their settings is unknown.
    """

    _unlimited = ("clip_norm", "divergence_loss")
    _later = ("optimizer", "optimizer_options", "schedule_options", "loss", "draw", "save_every")

    budget_flops: float | None = None
    n_steps: int | None = None
    lr: float = 1e-3
    batch_size: int | Literal["all"] = 64
    seed: int = 0
    schedule: str = "cosine"
    warmup_fraction: float = 0.1
    min_lr_fraction: float = 0.1
    decay_fraction: float = 0.2
    weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    adam_eps: float = 1e-8
    clip_norm: float | None = None
    eval_fraction: float | None = None
    n_val: int | None = None
    n_checkpoints: int = 40
    save_optimizer: bool = False
    divergence_loss: float = 100.0
    compile: bool = False
    optimizer: str = "adamw"
    optimizer_options: Mapping[str, Any] = Options()
    schedule_options: Mapping[str, Any] = Options()
    loss: str | Callable[..., Any] = "cross_entropy"
    draw: Literal["fresh", "batch", "epoch"] = "fresh"
    save_every: int | None = None

    def __post_init__(self) -> None:
        if callable(self.loss):
            object.__setattr__(self, "loss", register_loss(self.loss))
        super().__post_init__()
        self._check_recipe()
        _require(
            (self.budget_flops is None) != (self.n_steps is None),
            "exactly one of budget_flops and n_steps must be given",
            (self.budget_flops, self.n_steps),
            "A budget in FLOPs is turned into steps by the model's and the task's size.",
        )
        if self.n_steps is not None:
            _require(self.n_steps >= 1, "n_steps must be at least 1", self.n_steps, "")
        if self.budget_flops is not None:
            finite = math.isfinite(self.budget_flops) and self.budget_flops > 0
            _require(finite, "budget_flops must be positive and finite", self.budget_flops, "Try 3e12.")
        _require(math.isfinite(self.lr) and self.lr > 0, "lr must be positive and finite", self.lr, "Try 1e-3.")
        whole = self.batch_size == "all"
        _require(self.batch_size == "all" or self.batch_size >= 1, "batch_size must be at least 1", self.batch_size, "")
        _require(self.draw in ("fresh", "batch", "epoch"), "draw must be 'fresh', 'batch' or 'epoch'", self.draw, "")
        _require(
            not whole or self.draw == "fresh",
            "draw must be left out with batch_size 'all', which takes every training problem at every step",
            self.draw,
            "",
        )
        _require(self.n_val is None or self.n_val >= 1, "n_val must be at least 1", self.n_val, "")
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")
        for name in ("warmup_fraction", "min_lr_fraction", "decay_fraction", "eval_fraction"):
            value = getattr(self, name)
            fits = value is None or 0 <= value <= 1
            _require(fits, f"{name} must lie in [0, 1]", value, "It is a fraction, not a percentage.")
        _require(
            self.schedule != "wsd_s" or self.min_lr_fraction > 0,
            "min_lr_fraction must be above 0 with 'wsd_s'",
            self.min_lr_fraction,
            "Its decays raise the rate's inverse.",
        )
        stages = self.warmup_fraction + self.decay_fraction
        _require(self.schedule != "wsd" or stages <= 1, "warmup_fraction + decay_fraction must not pass 1", stages, "")
        assert self.weight_decay is not None
        _require(self.weight_decay >= 0, "weight_decay must not be negative", self.weight_decay, "")
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "betas must be two numbers in [0, 1)",
            self.betas,
            "The paper uses (0.9, 0.95).",
        )
        _require(0 < self.adam_eps <= 1, "adam_eps must lie in (0, 1]", self.adam_eps, "Above, nothing is trained.")
        for name in ("clip_norm", "divergence_loss"):
            _require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name), "")
        _require(self.n_checkpoints >= 2, "n_checkpoints must be at least 2", self.n_checkpoints, "First and last.")
        often = self.save_every is None or self.save_every >= 1
        _require(often, "save_every must be at least 1 step", self.save_every, "")

    @property
    def max_norm(self) -> float:
        """`clip_norm` with its default filled in."""
        assert self.clip_norm is not None
        return self.clip_norm

    @property
    def loss_name(self) -> str:
        """The loss's name, a function's too."""
        return str(self.loss)

    def _check_recipe(self) -> None:
        """Check the names of optimiser, schedule and loss and their settings, and fill in what depends on them."""
        for kind, name, known in (("optimizer", self.optimizer, OPTIMIZERS), ("schedule", self.schedule, SCHEDULES)):
            if name not in known:
                raise unknown_name(kind, name, known)
            given = getattr(self, f"{kind}_options")
            object.__setattr__(self, f"{kind}_options", Options(checked_settings(kind, name, given, known[name])))
        require_loss(self.loss_name)
        own = setting_values(self.optimizer_options, OPTIMIZERS[self.optimizer])
        looks_ahead = own.get("nesterov", False) and not own["momentum"]
        _require(not looks_ahead, "nesterov needs a momentum above 0", own.get("momentum"), "Give momentum=0.9.")
        if self.weight_decay is None:
            object.__setattr__(self, "weight_decay", DECAYS.get(self.optimizer, 0.0))
        scaled = self.optimizer == "depthwise"
        if self.clip_norm is None:
            object.__setattr__(self, "clip_norm", math.inf if scaled else 1.0)
        if scaled:
            _require(self.weight_decay == 0, "weight_decay must be 0 with 'depthwise'", self.weight_decay, "")
            advice = "Its steps are not clipped; cap them by the setting max_u."
            _require(self.clip_norm == math.inf, "clip_norm must be left out with 'depthwise'", self.clip_norm, advice)
            fits = self.loss in ("cross_entropy", "squared_error")
            advice = "Its formulas hold for these two."
            _require(fits, "loss must be cross_entropy or squared_error with 'depthwise'", self.loss, advice)


@dataclass(frozen=True)
class Intervene(_Config):
    """An intervention that is installed while a model trains, at the tokens where a feature is read.

    Args:
        feature: The feature's name.
        kind: "project_out": its directions are taken out of the activation. "random": as many random directions at the
            same places, the control. "resample": the whole activation is another example's of the batch.
        labels: Which of its labels; empty: all.
        site: What is changed: "resid_post", "resid_mid", "attn_out", "mlp_out" or "resid_pre".
        layers: In which blocks; empty: all.
        directions: "probe": of probes fitted for each label and block. "written": along which the mean activation moves
            with the label.
        refit_every: Fit the directions anew every so many steps; 0: once, at the fork's first step.
        n_fit: Examples of the split "val" they are fitted on.
        seed: Draws those examples, random directions and donors.

    Raises:
        ValueError: A value is out of its range.
    """

    feature: str
    kind: Literal["project_out", "random", "resample"] = "project_out"
    labels: tuple[int, ...] = ()
    site: str = "resid_post"
    layers: tuple[int, ...] = ()
    directions: Literal["probe", "written"] = "probe"
    refit_every: int = 0
    n_fit: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_word("kind", self.kind, ("project_out", "random", "resample"))
        _require_word("directions", self.directions, ("probe", "written"))
        _require_word("site", self.site, ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"))
        _require(self.refit_every >= 0, "refit_every must not be negative", self.refit_every, "0 fits once.")
        _require(self.n_fit >= 20, "n_fit must be at least 20 examples", self.n_fit, "")
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")


@dataclass(frozen=True)
class ProbeConfig(_Config):
    """How linear probes are fitted: by default the paper's logistic regression with L2 penalty, at every label.

    Args:
        c: Inverse L2 strength of probes of classes, scikit-learn's `C`; the paper uses 100. The objective is
            `c * sum(log loss) + ||w||^2 / 2`, the intercept unpenalised.
        alpha: Ridge penalty of probes of numbers, scikit-learn's; 0, as in the paper, is least squares. The objective
            is `sum(error^2) + alpha ||w||^2`.
        path: Inverse strengths to choose from instead, such as 0.01,1,100: each probe by its loss on validation
            examples. `alpha` is then `1 / c`. Empty: no choice.
        n_train: Examples the probes are fitted on, from a split the model never trains on.
        n_val: Validation examples of the choice, from the same split; none are drawn without a `path`.
        n_test: Examples they are scored on, from another such split.
        seed: Draws those examples and the shuffled labels.
        shuffled_control: Fit every probe once more on shuffled labels.
        max_iter: Newton iterations at most; one that has not converged by then is reported, not hidden.
        site: What is read: a name of `qfl_interp.models.hooks.Site` such as "resid_post", "resid_mid", "attn_out",
            "mlp_out", or "z" for every head on its own.
        pooled: One probe for all labels of a feature instead of one for each: the paper's option.

    Raises:
        ValueError: A value is out of its range.
    """

    c: float = 100.0
    alpha: float = 0.0
    path: tuple[float, ...] = ()
    n_train: int = 10_000
    n_val: int = 2_000
    n_test: int = 1_000
    seed: int = 0
    shuffled_control: bool = True
    max_iter: int = 100
    site: str = "resid_post"
    pooled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(math.isfinite(self.c) and self.c > 0, "c must be positive and finite", self.c, "Paper: 100.")
        _require(math.isfinite(self.alpha) and self.alpha >= 0, "alpha must be finite and not negative", self.alpha, "")
        path = tuple(sorted(self.path))
        _require(
            all(math.isfinite(c) and c > 0 for c in path) and len(set(path)) == len(path),
            "path must hold different positive numbers",
            self.path,
            "Try (0.01, 1, 100).",
        )
        object.__setattr__(self, "path", path)
        for name in ("n_train", "n_val", "n_test", "max_iter"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "")
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")
        _require(self.site in PROBE_SITES, f"site must be one of {PROBE_SITES}", self.site, "")
