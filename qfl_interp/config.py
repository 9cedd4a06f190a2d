"""Frozen configurations, checked on creation, JSON both ways. A run is named by its configuration."""

from __future__ import annotations

import dataclasses
import math
import numbers
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from qfl_interp.digests import json_digest
from qfl_interp.errors import QflError
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
    "bool": _bool, "int": _int, "float": _float, "str": _str,
    "tuple[float, ...]": _floats, "tuple[float, float]": _floats, "str | tuple[float, float]": _str_or_floats,
    "Options": _options, "int | Literal['all']": _int_or_all,
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


@dataclass(frozen=True)
class ModelConfig(_Config):
    """The shape of a model; context length and vocabulary come from the task.

    Args:
        d_model: Width of the residual stream; a multiple of `n_heads` (of `2 n_heads` for "llama", whose rotary
            embedding turns pairs of coordinates).
        n_layers: Number of blocks.
        n_heads: Attention heads; the quiet-features paper uses 4 at every width.
        style: "llama" (RMS norm, rotary positions, SwiGLU, no biases; quiet features) or "gpt2" (layer norm,
            learned positions, GELU, biases; POLCA).
        d_mlp: Hidden width of the MLP. By default `int(8 d_model / 3)` rounded up to even for "llama" and
            `4 d_model` for "gpt2".
        norm_eps: Epsilon of the norms.
        rope_theta: Base of the rotary frequencies ("llama" only).

    Raises:
        ValueError: A size is not positive or the heads do not divide the width.
    """

    d_model: int
    n_layers: int
    n_heads: int = 4
    style: Literal["llama", "gpt2"] = "llama"
    d_mlp: int | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("d_model", "n_layers", "n_heads"):
            _require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name), "")
        _require(self.style in ("llama", "gpt2"), "style must be 'llama' or 'gpt2'", self.style, "")
        factor = 2 * self.n_heads if self.style == "llama" else self.n_heads
        below = self.d_model // factor * factor
        near = [d for d in (below, below + factor) if d > 0]
        _require(
            self.d_model % factor == 0,
            f"d_model must be a multiple of {factor} ({self.n_heads} heads"
            + (", rotary pairs)" if self.style == "llama" else ")"),
            self.d_model,
            f"Use {' or '.join(map(str, near))}, or another n_heads.",
        )
        if self.d_mlp is not None:
            _require(self.d_mlp > 0, "d_mlp must be positive", self.d_mlp, "Leave it out for the default.")
        _require(self.norm_eps > 0, "norm_eps must be positive", self.norm_eps, "The papers use 1e-5.")
        _require(self.rope_theta > 0, "rope_theta must be positive", self.rope_theta, "The papers use 10000.")

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def d_mlp_used(self) -> int:
        """Hidden width of the MLP with the style's default filled in."""
        if self.d_mlp is not None:
            return self.d_mlp
        if self.style == "gpt2":
            return 4 * self.d_model
        hidden = 8 * self.d_model // 3
        return hidden + hidden % 2

    def n_parameters(self, *, d_vocab: int, n_ctx: int) -> int:
        """Trainable parameters of the model for a vocabulary and a context length, which learns positions in "gpt2"."""
        d, d_mlp, gpt2 = self.d_model, self.d_mlp_used, self.style == "gpt2"
        matrices = 4 * d**2 + (2 if gpt2 else 3) * d * d_mlp
        # Gains of both norms; in "gpt2" their shifts, and the biases of attention and of the MLP.
        vectors = 9 * d + d_mlp if gpt2 else 2 * d
        outside = 2 * d_vocab * d + (n_ctx * d + 2 * d + d_vocab if gpt2 else d)
        return self.n_layers * (matrices + vectors) + outside


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
        schedule: "cosine" (warm-up, then cosine to `min_lr_fraction`) or "wsd" (warm-up, stable stage, decay).
        warmup_fraction: Part of the steps spent warming up.
        min_lr_fraction: Final over peak learning rate.
        decay_fraction: Part of the steps spent decaying ("wsd" only).
        weight_decay: AdamW's, on all parameters.
        betas: AdamW's.
        adam_eps: AdamW's.
        clip_norm: Gradients are scaled down to this global norm; infinite: never.
        eval_fraction: A validation every `max(1, int(eval_fraction * n_steps))` steps; the paper uses 0.005. None:
            about 100 of them, at the first steps and then log-spaced.
        n_val: Examples in the fixed validation set. None: as many as cost about a tenth of training, 128 to 1,000.
        n_checkpoints: About how many checkpoints are kept, half of them log-spaced and half evenly spaced; the
            initial and the final model always are.
        save_optimizer: Keep AdamW's moments beside every checkpoint (twice the weights in size). Needed for decay
            branches and for preconditioned sharpness.
        divergence_loss: A training loss above this many nats counts as diverged.
        compile: Train through `torch.compile` (about 30 s to start); falls back with a message.
        draw: Where a batch comes from. "fresh": drawn anew from the task at every step, so that few problems come again
            (with replacement). "batch" and "epoch" draw from the fixed training set of a task that can list its
            problems: "batch" each batch without replacement, whatever the last one was; "epoch" each problem once an
            epoch, in an order of its own. All follow from the seed and the step alone.

    Raises:
        ValueError: A value is out of its range.
    """

    _unlimited = ("clip_norm", "divergence_loss")
    _later = ("draw",)

    budget_flops: float | None = None
    n_steps: int | None = None
    lr: float = 1e-3
    batch_size: int | Literal["all"] = 64
    seed: int = 0
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_fraction: float = 0.1
    min_lr_fraction: float = 0.1
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    adam_eps: float = 1e-8
    clip_norm: float = 1.0
    eval_fraction: float | None = None
    n_val: int | None = None
    n_checkpoints: int = 40
    save_optimizer: bool = False
    divergence_loss: float = 100.0
    compile: bool = False
    draw: Literal["fresh", "batch", "epoch"] = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
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
        _require(self.schedule in ("cosine", "wsd"), "schedule must be 'cosine' or 'wsd'", self.schedule, "")
        for name in ("warmup_fraction", "min_lr_fraction", "decay_fraction", "eval_fraction"):
            value = getattr(self, name)
            fits = value is None or 0 <= value <= 1
            _require(fits, f"{name} must lie in [0, 1]", value, "It is a fraction, not a percentage.")
        stages = self.warmup_fraction + self.decay_fraction
        _require(self.schedule != "wsd" or stages <= 1, "warmup_fraction + decay_fraction must not pass 1", stages, "")
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
