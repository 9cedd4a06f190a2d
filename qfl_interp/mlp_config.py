"""The configuration of a homogeneous network: widths, activation, multipliers; reads without torch.

Marks: [A] said in an abstract of the source, [S] in a third-party summary, [R] our reconstruction, [M] measured by us.

References:
    D. Terjék, Feature Learning Beyond the Edge of Stability (arXiv 2502.13110).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from qfl_interp.checked import _Config, _require

# (a, b) of phi(s) = a s + b |s| by name; a^2 + b^2 = 1 is the edge of chaos.
ACTIVATIONS = {"abs": (0.0, 1.0), "relu": (math.sqrt(0.5), math.sqrt(0.5))}
# How far a^2 + b^2 may be from 1.
_CIRCLE = 1e-9


@dataclass(frozen=True)
class MLPConfig(_Config):
    """The shape of a homogeneous network; its layers are k = 1..depth here.

    `Z_k = alpha_k X_{k-1} W_k'`, `X_k = phi(Z_k)` for k < depth, output `Z_depth`, `alpha_k = 1 / sqrt(m_{k-1})`, no
    biases, weights drawn from N(0, 1) (NTK multipliers [R]). Widths `m_k = round(k^width_exponent width)` [A].

    Args:
        d_in: Inputs, `m_0`.
        d_out: Outputs, `m_depth`.
        width: `m`, the width of the first hidden layer. With a growing pattern that one is the bottleneck: 16 to 32 at
            least on digits [M].
        depth: Weight matrices, 2 at least.
        width_exponent: `r`: 0 constant, 1 linear, 2 quadratic widths.
        activation: "abs" (a, b = 0, 1), "relu" (a = b = sqrt(1/2)), or (a, b) with `a^2 + b^2 = 1`, the edge of chaos
            [A]: `phi(s) = a s + b |s|`. All are positively homogeneous, which every formula of this package needs.
        output_scale: Factor on the last multiplier [R]. With the depthwise rule the one multiplier that matters.

    Raises:
        ValueError: A size is not positive, or the activation is not of the family.
    """

    kind: ClassVar[str] = "homogeneous"

    d_in: int
    d_out: int
    width: int
    depth: int = 4
    width_exponent: float = 2.0
    activation: str | tuple[float, float] = "abs"
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("d_in", "d_out", "width"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "")
        _require(self.depth >= 2, "depth must be at least 2 weight matrices", self.depth, "")
        good = math.isfinite(self.width_exponent) and self.width_exponent >= 0
        _require(good, "width_exponent must be finite and not negative", self.width_exponent, "2 is quadratic.")
        # As a logarithm: k^r m itself may be beyond what a float holds.
        largest = self.width_exponent * math.log(self.depth) + math.log(self.width)
        _require(
            largest < 40, "widths up to depth^width_exponent * width must stay below e^40", f"e^{largest:.4g}",
            "Take a smaller width, depth or width_exponent.",
        )  # fmt: skip
        good = math.isfinite(self.output_scale) and self.output_scale > 0
        _require(good, "output_scale must be positive and finite", self.output_scale, "")
        if isinstance(self.activation, tuple):
            _require(len(self.activation) == 2, "activation must be (a, b) of a s + b |s|", self.activation, "")
            a, b = self.activation
            _require(
                abs(a * a + b * b - 1) <= _CIRCLE, "activation (a, b) must have a^2 + b^2 = 1", self.activation,
                f"Divide both by {math.hypot(a, b):.6g}.",
            )  # fmt: skip
        else:
            _require(
                isinstance(self.activation, str) and self.activation in ACTIVATIONS,
                f"activation must be one of {sorted(ACTIVATIONS)}, or (a, b) of a s + b |s|",
                self.activation,
                "The Gram formulas and the depthwise rule hold for positively homogeneous functions alone. For any "
                "other network take Hessian products: qfl_interp.curvature.along_step.",
            )

    @property
    def slopes(self) -> tuple[float, float]:
        """`(a, b)` of `phi(s) = a s + b |s|`."""
        return self.activation if isinstance(self.activation, tuple) else ACTIVATIONS[self.activation]

    @property
    def widths(self) -> tuple[int, ...]:
        """`m_0 .. m_depth`."""
        hidden = (round(k**self.width_exponent * self.width) for k in range(1, self.depth))
        return (self.d_in, *hidden, self.d_out)

    @property
    def multipliers(self) -> tuple[float, ...]:
        """`alpha_1 .. alpha_depth`; the last with `output_scale`."""
        alphas = [1 / math.sqrt(m) for m in self.widths[:-1]]
        return (*alphas[:-1], alphas[-1] * self.output_scale)

    @property
    def n_layers(self) -> int:
        """Hidden layers: what TransformerLens calls blocks."""
        return self.depth - 1

    @property
    def size(self) -> int:
        """Weights of all layers."""
        return sum(m * n for m, n in zip(self.widths[:-1], self.widths[1:], strict=True))

    # What a run, its training and its sweeps ask of a model's configuration (`model_kinds.AnyModelConfig`).
    @property
    def sites(self) -> tuple[str, ...]:
        """The places of `qfl_interp.sites` that its blocks have."""
        return ("resid_pre", "mlp_pre", "mlp_post", "resid_post")

    @property
    def style(self) -> str:
        """A word for tables of runs."""
        return self.kind

    @property
    def weights(self) -> None:
        """None: the run's seed decides the initial weights."""
        return None

    @property
    def stackable(self) -> bool:
        """Never: stacks know transformers."""
        return False

    @property
    def n_heads(self) -> int:
        """A block is one layer."""
        return 1

    @property
    def d_model(self) -> int:
        """`m`, the width of the first hidden layer."""
        return self.width

    def n_parameters(self, *, d_vocab: int, n_ctx: int) -> int:
        """Weights of all layers."""
        return self.size

    def n_weights(self, *, d_vocab: int) -> int:
        """Weights of all layers."""
        return self.size

    def kept_numbers(self, *, d_vocab: int) -> int:
        """About how many numbers of one token a forward pass keeps: features, slopes and backward vectors."""
        return 3 * sum(self.widths)

    def nominal_flops(self, n_ctx: float) -> float:
        """Training FLOPs of a token, `6 size / n_ctx`: a row of `n_ctx` tokens holds one sample."""
        return 6.0 * self.size / n_ctx

    def matrix_flops(self, *, n_ctx: int, d_vocab: int) -> float:
        """The same: all of it is matrix products."""
        return self.nominal_flops(n_ctx)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, and the kind."""
        return {"kind": self.kind, **super().to_dict()}


def homogeneous_config(*, d_model: int, n_layers: int, **others: Any) -> MLPConfig:
    """The network whose first of `n_layers` hidden layers is `d_model` wide, in a transformer's words.

    Raises:
        ValueError: A value is out of its range.
    """
    return MLPConfig(width=d_model, depth=n_layers + 1, **others)
