"""PassUntil: the chance that a sampled answer is right, which still improves where greedy exact match is 0.

Hu et al. sample an instance until r samples pass; K tries estimate its chance as r / K, and PU is the mean over
instances. A model whose chance is 1e-6 is then told apart from one of 1e-5, both 0 of 1000 under greedy decoding. Where
the only right answer is the reference, as here, the chance of one try at temperature 1 is the product of the tokens'
probabilities, so one teacher-forced pass gives it exactly (`ExampleScores.success`, logged as val_pass); sampling is
the check, and the way for models whose probabilities cannot be read.

References:
    Hu et al. (2023), Predicting Emergent Abilities with Infinite Resolution Evaluation, arXiv 2310.03262.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from qfl_interp.data.task import Batch
from qfl_interp.models.metrics import scored_span
from qfl_interp.scaling import PowerLaw, fit_power_law


@dataclass(frozen=True, repr=False)
class PassUntil:
    """What sampling until r passes found.

    Attributes:
        passes: Tries of each example that passed, at most r.
        tries: Tries of each example, at most `max_tries`; the last one passed where `passes` is r.
        r: Passes after which an example is done.
    """

    passes: Int[np.ndarray, " example"]
    tries: Int[np.ndarray, " example"]
    r: int

    @property
    def estimate(self) -> Float[np.ndarray, " example"]:
        """Unbiased estimate of each example's chance: (r - 1) / (K - 1) where r passed, passes / K where tries ran out.

        References:
            Girshick, Mosteller and Savage (1946), Unbiased estimates for certain binomial sampling problems.
        """
        done = self.passes == self.r
        return np.where(done, (self.r - 1) / np.maximum(self.tries - 1, 1), self.passes / self.tries)

    @property
    def variance(self) -> Float[np.ndarray, " example"]:
        """Unbiased estimate of the variance of `estimate` p: p (1 - p) / (K - 2), or / (K - 1) where tries ran out.

        References:
            Finney (1949), On a method of estimating frequencies.
        """
        p = self.estimate
        return p * (1 - p) / np.maximum(self.tries - 1 - (self.passes == self.r), 1)

    @property
    def rate(self) -> float:
        """PU: the mean over examples of `estimate`."""
        return float(self.estimate.mean())

    @property
    def standard_error(self) -> float:
        """Of `rate`, for these examples: what sampling the tries anew would change, in standard deviations."""
        return float(np.sqrt(self.variance.sum())) / len(self.tries)

    @property
    def paper_rate(self) -> float:
        """PU as the paper estimates it, the mean of passes / K; for rare passes too high by a factor of r / (r - 1)."""
        return float(np.mean(self.passes / self.tries))

    def __repr__(self) -> str:
        short = int(np.sum(self.passes < self.r))
        return (
            f"PassUntil({self.rate:.4g} +- {self.standard_error:.2g}, r={self.r}, {len(self.tries)} examples, "
            f"{int(self.tries.sum())} tries, {short} ran out)"
        )


@dataclass(frozen=True, repr=False)
class PassLaw:
    """PU = exp(-a C^-b), the paper's task scaling law with compute C for model size.

    Attributes:
        law: The power law of -log PU.
    """

    law: PowerLaw

    def predict(self, budget: Shaped[np.ndarray, " at"]) -> Float[np.ndarray, " at"]:
        """PU at budgets in FLOPs."""
        return np.exp(-self.law.predict(budget))

    def __repr__(self) -> str:
        b = self.law.exponent
        return f"PassLaw(-log PU = {self.law.amplitude.estimate:.3g} C^-{b.estimate:.3g} [{b.low:.3g}, {b.high:.3g}])"


@torch.no_grad()
def pass_until(
    forward: Callable[[Tensor], Tensor],
    batch: Batch,
    rng: torch.Generator,
    *,
    r: int = 2,
    max_tries: int = 10_000,
    given_equals: bool = False,
    rows: int = 4096,
) -> PassUntil:
    """Sample each example's scored tokens at temperature 1, one after the other, until `r` samples are the reference.

    A try ends at its first wrong token, so a hopeless example costs little more than one pass over the prompt a try.

    Args:
        forward: Tokens to logits at every position (a `HookedTransformer`).
        batch: The prompts are the tokens that are not scored.
        rng: On the CPU.
        r: Passes after which an example is done; the paper takes 1 or 2, an unbiased estimate needs 2.
        max_tries: Tries after which an example is left.
        given_equals: Leave each example's first scored token, `=`, in the prompt.
        rows: Tries at a time; bounds the memory.

    Raises:
        ValueError: `r` is below 2, `max_tries` below `r` or `rows` below 1.
    """
    if r < 2 or max_tries < r or rows < 1:
        raise ValueError(
            f"r must be at least 2 and max_tries at least r, rows at least 1, got r={r}, max_tries={max_tries}, "
            f"rows={rows}. With one pass the chance has no useful unbiased estimate."
        )
    free = batch.loss_mask.clone()
    if given_equals:
        free[torch.arange(len(free)), free.int().argmax(dim=1)] = False
    n_examples = len(free)
    passes, tries = np.zeros(n_examples, dtype=np.int64), np.zeros(n_examples, dtype=np.int64)
    pending = np.arange(n_examples)
    while pending.size:
        examples = pending[:rows]
        left = max_tries - int(tries[examples].max())
        repeats = max(1, min(rows // examples.size, left))
        passed = _try(forward, batch.tokens, free, np.repeat(examples, repeats), rng).reshape(examples.size, repeats)
        so_far = passes[examples, None] + np.cumsum(passed, axis=1)
        # Tries after the r-th pass were not needed: they are not counted.
        needed = 1 + np.sum(so_far < r, axis=1)
        counted = np.minimum(needed, np.minimum(repeats, max_tries - tries[examples]))
        passes[examples] = so_far[np.arange(examples.size), counted - 1]
        tries[examples] += counted
        pending = np.flatnonzero((passes < r) & (tries < max_tries))
    return PassUntil(passes, tries, r)


def fit_pass_law(
    budget: Shaped[np.ndarray, " budget"], rate: Shaped[np.ndarray, "budget ..."], *, level: float = 0.95
) -> PassLaw:
    """The law PU = exp(-a C^-b), a straight line of log(-log PU) in log C.

    A curve that bends down from it (`scaling.lack_of_fit` on -log PU) is what the paper calls accelerated emergence.

    Args:
        budget: Training FLOPs, each once.
        rate: PU, in (0, 1); with a seed axis, NaN where a run is missing.
        level: Nominal coverage of the intervals.

    Raises:
        ValueError: A rate is not inside (0, 1), or `fit_power_law` refuses the data.

    References:
        Hu et al. (2023), arXiv 2310.03262, equation 3.
    """
    values = np.asarray(rate, dtype=np.float64)
    bad = values[~np.isnan(values) & ((values <= 0) | (values >= 1))]
    if bad.size:
        raise ValueError(
            f"rate must lie in (0, 1), got {bad[0]:g}: -log PU has no logarithm there. "
            "Leave out budgets at which the task is solved, and those whose tries never passed."
        )
    return PassLaw(fit_power_law(budget, -np.log(values), level=level))


def _try(
    forward: Callable[[Tensor], Tensor],
    tokens: Int[Tensor, "batch pos"],
    free: Shaped[Tensor, "batch pos"],
    examples: Int[np.ndarray, " try"],
    rng: torch.Generator,
) -> Shaped[np.ndarray, " try"]:
    """Whether one sample of each of these examples is its reference."""
    chosen = torch.from_numpy(examples).to(tokens.device)
    reference, sampled = tokens[chosen], free[chosen]
    span = scored_span(free)
    drawn = reference.clone()
    alive = torch.arange(len(chosen), device=tokens.device)
    for at in range(span.start + 1, span.stop + 1):
        now = alive[sampled[alive, at]]
        if not len(now):
            continue
        logits = forward(drawn[now, :at])[:, -1]
        chance = logits.double().softmax(dim=-1).cpu()
        drawn[now, at] = torch.multinomial(chance, 1, generator=rng)[:, 0].to(drawn)
        alive = alive[drawn[alive, at] == reference[alive, at]]
    passed = torch.zeros(len(chosen), dtype=torch.bool)
    passed[alive.cpu()] = True
    return passed.numpy()
