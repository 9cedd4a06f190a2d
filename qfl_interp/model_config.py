"""The configuration of a transformer: its presets, and every part of it that can be chosen otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple

from qfl_interp.checked import _Config, _require, _require_word
from qfl_interp.model_sizes import kept_numbers, matrix_flops, nominal_flops
from qfl_interp.sites import block_sites


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
    def sites(self) -> tuple[str, ...]:
        """The places of `qfl_interp.sites` that its blocks have."""
        return block_sites(attn_only=self.attn_only)

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
