"""How curvature is measured over a run's checkpoints, and how its learning coefficients are sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qfl_interp.checked import _Config, _require


@dataclass(frozen=True)
class CurvatureConfig(_Config):
    """On what, and how exactly, curvature and soft ranks of a checkpoint are measured.

    Args:
        n_examples: Training examples of the loss whose gradient and Hessian are taken, the same at every checkpoint.
            The sharpness of few examples exceeds that of many.
        n_rank_examples: Held-out examples of the residual stream's soft ranks. The rank of a position cannot exceed
            their number.
        tol: Relative residual at which an eigenvalue counts as converged; its own error is of the order of the square.
        max_products: Hessian-vector products that an eigenvalue may cost; at least 6.
        seed: Draws the examples and the eigensolver's start.
        double: Compute in float64.

    Raises:
        ValueError: A value is out of its range.
    """

    n_examples: int = 128
    n_rank_examples: int = 256
    tol: float = 1e-2
    max_products: int = 100
    seed: int = 0
    double: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_examples", "n_rank_examples"):
            _require(
                getattr(self, name) >= 2,
                f"{name} must be at least 2",
                getattr(self, name),
                "One example has neither a rank nor a mean worth its curvature.",
            )
        _require(math.isfinite(self.tol) and 0 < self.tol < 1, "tol must lie between 0 and 1", self.tol, "Try 1e-2.")
        _require(self.max_products >= 6, "max_products must be at least 6", self.max_products, "Try 100.")
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")


@dataclass(frozen=True)
class SgldConfig(_Config):
    """How the local learning coefficient is sampled.

    Args:
        step_size: Epsilon of the Langevin steps. Chains go to infinity where it is above about
            `4 / (n_beta lambda_H + localization)` and hardly leave the start where it is far below.
        localization: Gamma, the strength of the pull back to the start.
        n_chains (--chains): Independent chains, at least 2: their spread is the estimate's uncertainty.
        n_draws (--draws): Steps of each chain whose losses are averaged.
        n_burn_in (--draws): Steps before them; the command takes as many.
        batch_size: Examples of a step's gradient.
        seed: Draws batches and noise.

    Raises:
        ValueError: A value is out of its range.

    References:
        The Local Learning Coefficient (arXiv 2308.12108), section 4.
    """

    step_size: float = 1e-5
    localization: float = 100.0
    n_chains: int = 4
    n_draws: int = 200
    n_burn_in: int = 200
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("step_size", "localization"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, f"{name} must be positive and finite", value, "")
        _require(self.n_chains >= 2, "n_chains must be at least 2", self.n_chains, "One chain shows no uncertainty.")
        _require(self.n_draws >= 2, "n_draws must be at least 2", self.n_draws, "")
        _require(self.n_burn_in >= 0, "n_burn_in must not be negative", self.n_burn_in, "")
        _require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size, "")
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")
