"""What names a homogeneous network and its training: frozen configurations, checked on creation.

Marks: [A] said in an abstract of the source, [S] in a third-party summary, [R] our reconstruction, [M] measured by us.

References:
    D. Terjék, Feature Learning Beyond the Edge of Stability (arXiv 2502.13110).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from qfl_interp.config import _Config, _require

Loss = Literal["cross_entropy", "mse"]
Schedule = Literal["constant", "warmup", "geometry_aware"]
SoftRank = Literal["stable_rank", "participation_ratio", "entropy_rank", "gradient_weighted"]

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
    def n_parameters(self) -> int:
        """Weights of all layers."""
        return sum(m * n for m, n in zip(self.widths[:-1], self.widths[1:], strict=True))


# The rules of the source's experiments as fields of `MLPTrainConfig`: by name in figures and scripts.
RULES: dict[str, dict[str, int | bool]] = {
    "none": {"norm_power": 0, "residual_power": 0, "depth_normalise": False},
    "s=0": {"norm_power": 2, "residual_power": 0, "depth_normalise": True},
    "s=1": {"norm_power": 2, "residual_power": 1, "depth_normalise": True},
    "s=2": {"norm_power": 2, "residual_power": 2, "depth_normalise": True},
    "norm_power=1": {"norm_power": 1, "residual_power": 0, "depth_normalise": False},
}


@dataclass(frozen=True)
class MLPTrainConfig(_Config):
    """How a homogeneous network is trained: minibatch SGD with depthwise gradient scaling.

    Exactly one of `lr` and `edge_multiple` sets the learning rate. What is unknown about the source's rule is one field
    each: `norm_power`, `residual_power`, `depth_normalise`, `max_u`, `schedule`, `soft_rank` [R]; `RULES` names usual
    combinations.

    Args:
        n_steps: Updates.
        lr: Learning rate.
        edge_multiple: The learning rate in units of the edge: `q = lr lambda_P / 2` with the preconditioned sharpness
            at initialisation.
        loss: "cross_entropy" (softmax) or "mse" (`|f - y|^2 / 2` an example, against one-hot targets).
        batch_size: Examples an update, drawn without replacement; 2 at least. All of them in order where it is the
            number of training examples.
        seed: Weights, batches and the sample of the sharpness derive from it.
        norm_power: 2 cancels the squares of forward and backward norms (the default rule), 1 the norms, 0 neither.
        residual_power: `s`: the power of the root mean squared residual.
        depth_normalise: Divide by the depth.
        max_u: Cap on the relative change of a hidden layer's preactivations by its own update, ours; None for none, 0.1
            is a good value [M].
        schedule: "constant"; "warmup" (linear over the first half); "geometry_aware" (`kappa |c1| / c2` of the current
            batch, the configured rate where `c2 <= 0`; not measured, [R]).
        kappa: Of "geometry_aware": 1/2 minimises the quadratic model, 1 is the edge, above 1 holds the catapult.
        log_every: Steps between two measurements on the batch: Taylor coefficients, relative updates, soft ranks.
        eval_every: Steps between two measurements of sharpness, loss and accuracy; 0 for the first and last step alone.
        n_sharpness: Training examples of the sharpness and of the evaluated soft rank. That of few exceeds that of all.
        soft_rank: Which soft rank is the one called so in the evaluations.
        divergence_loss: A batch loss above this ends the run as "diverged".
        n_checkpoints: About how many checkpoints are kept where the run is saved.

    Raises:
        ValueError: A value is out of its range.
    """

    n_steps: int
    lr: float | None = None
    edge_multiple: float | None = None
    loss: Loss = "cross_entropy"
    batch_size: int = 128
    seed: int = 0
    norm_power: int = 2
    residual_power: int = 1
    depth_normalise: bool = True
    max_u: float | None = None
    schedule: Schedule = "constant"
    kappa: float = 0.5
    log_every: int = 1
    eval_every: int = 0
    n_sharpness: int = 128
    soft_rank: SoftRank = "stable_rank"
    divergence_loss: float = 1e12
    n_checkpoints: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.n_steps >= 1, "n_steps must be at least 1", self.n_steps, "")
        _require(
            (self.lr is None) != (self.edge_multiple is None),
            "exactly one of lr and edge_multiple must be given",
            (self.lr, self.edge_multiple),
            "edge_multiple=4 is four times the edge of stability at initialisation.",
        )
        for name in ("lr", "edge_multiple", "kappa", "divergence_loss", "max_u"):
            value = getattr(self, name)
            good = value is None or (math.isfinite(value) and value > 0)
            _require(good, f"{name} must be positive and finite", value, "")
        for name in ("batch_size", "n_sharpness"):
            advice = "Of one example every soft rank is 1, and the centred ones do not exist."
            _require(getattr(self, name) >= 2, f"{name} must be at least 2 examples", getattr(self, name), advice)
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")
        for name in ("norm_power", "residual_power"):
            _require(getattr(self, name) in (0, 1, 2), f"{name} must be 0, 1 or 2", getattr(self, name), "")
        for name, values in (("loss", Loss), ("schedule", Schedule), ("soft_rank", SoftRank)):
            _require(getattr(self, name) in get_args(values), f"{name} must be one of {get_args(values)}",
                     getattr(self, name), "")  # fmt: skip
        _require(self.log_every >= 1, "log_every must be at least 1", self.log_every, "")
        _require(self.eval_every >= 0, "eval_every must not be negative", self.eval_every, "")
        _require(self.n_checkpoints >= 2, "n_checkpoints must be at least 2", self.n_checkpoints, "First and last.")
