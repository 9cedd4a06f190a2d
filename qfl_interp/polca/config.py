"""How a run's hidden breakthroughs are looked for: basis, accuracy, examples; checked on creation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from qfl_interp.checked import _Config, _require

Basis = Literal["hessian", "shuffled", "random", "parameters", "gradient", "trajectory", "probe"]
Accuracy = Literal["path", "trapezoid", "second", "paper", "first"]


@dataclass(frozen=True)
class PolcaConfig(_Config):
    """Along which directions of weight space losses are followed, how exactly, and on which examples.

    Args:
        basis: Where the directions come from. "hessian": the top eigenvectors of the loss's Hessian at each basis
            checkpoint, orthogonal to those found before (the paper's Algorithm 1). "shuffled": the same with the basis
            checkpoints in random order. "random": orthonormal, without looking at the model. "parameters": the
            parameters of largest magnitude at the last basis checkpoint, one a direction (loss change allocation).
            "gradient": the loss's gradient at each basis checkpoint. "trajectory": principal directions of the way the
            parameters took. "probe": the gradient, at each basis checkpoint, of the loss of a feature's probes.
        basis_steps: The basis checkpoints, as analyses name steps: "all", "log:16", "100,200".
        per_checkpoint: Eigenvectors taken at each of them ("hessian" and "shuffled"); the paper takes 1.
        n_directions (--directions): Directions of "random", "parameters" and "trajectory" (the last has one less than
            basis checkpoints at most). The others have as many as their checkpoints give.
        feature: The feature whose probes give directions ("probe" only).
        accuracy: How a token's loss change along a direction is computed: along the "path" between checkpoints, along
            it from both its ends alone ("trapezoid", for the price of "first"), to "second" order, to second order as
            in the "paper", or to "first" order. See `qfl_interp.polca.decomposition`.
        n_panels (--panels): Simpson panels of "path" in each interval: `2 n_panels - 1` points between two checkpoints.
        n_examples: Held-out examples whose answer tokens are followed.
        n_hessian: Training examples of the Hessian, the gradient and the probes' loss.
        n_probe: Examples on which the probes of "probe" are fitted.
        tol: Relative residual at which an eigenvector counts as converged.
        max_products: Hessian-vector products that a basis checkpoint may cost; at least `4 per_checkpoint + 6`.
        seed: Draws examples, random directions, the shuffled order and the eigensolver's start.
        double: Compute in float64.
        hessian_prompt: Count the prompt's tokens too in the loss whose Hessian or gradient gives directions.

    Raises:
        ValueError: A value is out of its range, or "probe" has no feature.

    References:
        Hidden Breakthroughs in Language Model Training (arXiv 2506.15872): 1,250 examples in both sets, a basis vector
        every 200 of 10,000 steps.
    """

    basis: Basis = "hessian"
    basis_steps: str = "log:16"
    per_checkpoint: int = 1
    n_directions: int = 16
    feature: str = ""
    accuracy: Accuracy = "path"
    n_panels: int = 1
    n_examples: int = 500
    n_hessian: int = 500
    n_probe: int = 10_000
    tol: float = 1e-3
    max_products: int = 300
    seed: int = 0
    double: bool = False
    hessian_prompt: bool = False

    _later = ("hessian_prompt",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in (("basis", get_args(Basis)), ("accuracy", get_args(Accuracy))):
            _require(getattr(self, name) in kinds, f"{name} must be one of {kinds}", getattr(self, name), "")
        for name in ("per_checkpoint", "n_directions", "n_panels", "n_examples", "n_hessian", "n_probe"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "")
        _require(
            math.isfinite(self.tol) and 0 < self.tol < 1,
            "tol must lie between 0 and 1",
            self.tol,
            "It is relative to the eigenvalue; try 1e-3.",
        )
        fewest = 4 * self.per_checkpoint + 6
        _require(
            self.max_products >= fewest,
            f"max_products must be at least 4 per_checkpoint + 6 = {fewest}",
            self.max_products,
            "With fewer nothing converges.",
        )
        _require(0 <= self.seed < 2**63, "seed must lie in [0, 2**63)", self.seed, "")
        _require(
            (self.basis == "probe") == bool(self.feature),
            "feature must be given with basis='probe' and only then",
            (self.basis, self.feature),
            "It names one of the task's features.",
        )
