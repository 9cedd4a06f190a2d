"""The local learning coefficient at a point of weight space, by chains of stochastic gradient Langevin dynamics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qfl_interp.curvature.config import SgldConfig
from qfl_interp.curvature.ordered_sums import ordered_sums
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.seeding import generator, torch_generator
from qfl_interp.shapes import compact_repr

# (parameters, rows of the sample) -> mean loss of those examples, in nats an example; differentiable.
MeanLoss = Callable[[Tensor, Tensor], Tensor]


class LearningCoefficient(NamedTuple):
    """An estimated local learning coefficient; NaN where no two chains stayed finite.

    Attributes:
        estimate: Mean over the finite chains.
        std: Standard deviation between them.
        n_finite: Chains whose losses and parameters are all finite. Where these are not all, `step_size` is too large.
        drift: How much higher the estimate is from the second half of the draws than from the first. Much above the
            standard deviation, the chains have not settled: more draws, a larger `step_size` or `localization`.
        start_loss: Mean loss of the whole sample at the start.
        by_chain: The estimate of each chain.
        losses: Loss of each chain's batch before each of its steps, the burn-in first.
    """

    estimate: float
    std: float
    n_finite: int
    drift: float
    start_loss: float
    by_chain: Float[Tensor, " chain"]
    losses: Float[Tensor, "chain step"]

    __repr__ = compact_repr


def estimate_learning_coefficient(
    mean_loss: MeanLoss, start: Float[Tensor, " parameter"], n: int, config: SgldConfig
) -> LearningCoefficient:
    """`n beta (E[L_n(w)] - L_n(w*))` with `beta = 1 / log n`, the expectation over the posterior near the start w*.

    The posterior `exp(-n beta L_n(w) - gamma |w - w*|^2 / 2)` is sampled by `w <- w - (eps / 2) (n beta grad L_B(w) +
    gamma (w - w*)) + N(0, eps)`, with fresh batches B without replacement. Losses of the batches stand for `L_n(w)`. At
    a regular minimum of d parameters the coefficient is d / 2, and below that where the loss has flat directions; its
    value depends on gamma and n, so that curves compare within one setting. Away from a minimum chains may find lower
    losses, and the estimate falls below 0.

    Args:
        mean_loss: Of parameters on some rows of the sample.
        start: w*.
        n: Examples in the sample.
        config: Step size, localisation, chains, draws.

    Raises:
        ValueError: The sample has fewer than 2 examples, or the loss at the start is not finite.
        QflError: So many losses do not fit into memory.

    References:
        The Local Learning Coefficient: A Singularity-Aware Complexity Measure (arXiv 2308.12108), equation 6 and
        section 4.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2 examples, got {n}: log n is the inverse temperature.")
    needed = 8 * config.n_chains * (config.n_burn_in + config.n_draws) + 40 * len(start)
    what = f"losses of {config.n_chains:,} chains of {config.n_burn_in + config.n_draws:,} steps"
    require_memory(needed, available_bytes(), what, "Take fewer n_chains or n_draws.")
    n_beta = n / math.log(n)
    size = min(config.batch_size, n)
    start = start.detach()
    parts = torch.arange(n).split(size)
    with torch.no_grad():
        start_loss = sum(float(mean_loss(start, rows)) * len(rows) for rows in parts) / n
    if not math.isfinite(start_loss):
        raise ValueError(f"the loss at the start must be finite, got {start_loss}. Did the run diverge?")
    losses = torch.stack([_chain(mean_loss, start, n, n_beta, size, config, chain) for chain in range(config.n_chains)])
    draws = losses[:, config.n_burn_in :]
    by_chain = n_beta * (draws.mean(dim=1) - start_loss)
    finite = torch.isfinite(losses).all(dim=1)
    by_chain = by_chain.masked_fill(~finite, math.nan)
    n_finite, kept, half = int(finite.sum()), by_chain[finite], config.n_draws // 2
    if n_finite < 2:
        return LearningCoefficient(math.nan, math.nan, n_finite, math.nan, start_loss, by_chain, losses)
    drift = n_beta * float(draws[finite, half:].mean() - draws[finite, :half].mean())
    return LearningCoefficient(float(kept.mean()), float(kept.std()), n_finite, drift, start_loss, by_chain, losses)


def _chain(
    mean_loss: MeanLoss,
    start: Float[Tensor, " parameter"],
    n: int,
    n_beta: float,
    size: int,
    config: SgldConfig,
    chain: int,
) -> Float[Tensor, " step"]:
    """The losses of one chain in float64; NaN from where its loss or its parameters are not finite."""
    noise = torch_generator(config.seed, f"sgld/noise_{chain}")
    batches = generator(config.seed, "sgld/batches", chain)
    losses = torch.full((config.n_burn_in + config.n_draws,), math.nan, dtype=torch.float64)
    w = start.clone()
    for index in range(len(losses)):
        rows = torch.from_numpy(batches.choice(n, size, replace=False))
        loss, gradient = _value_and_gradient(mean_loss, w, rows)
        if not (math.isfinite(loss) and bool(torch.isfinite(gradient).all())):
            break
        losses[index] = loss
        pull = n_beta * gradient + config.localization * (w - start)
        kick = torch.randn(len(w), generator=noise, dtype=torch.float64).to(w)
        w = w - config.step_size / 2 * pull + math.sqrt(config.step_size) * kick
    return losses


def _value_and_gradient(
    mean_loss: MeanLoss, parameters: Float[Tensor, " parameter"], rows: Int[Tensor, " example"]
) -> tuple[float, Float[Tensor, " parameter"]]:
    """The loss of a batch and its gradient."""
    with torch.enable_grad():
        at = parameters.detach().requires_grad_()
        loss = mean_loss(at, rows)
        with ordered_sums(at.device):
            (gradient,) = torch.autograd.grad(loss, at)
    return float(loss.detach()), gradient
