"""Loss, exact match and success when sampling, each two ways: as the paper counts (`=` scored), over the answer alone.

Exact match under greedy decoding needs no decoding: an example's greedy continuation equals the reference exactly where
every scored token is the most likely one *given the reference before it* (by induction over the answer). One
teacher-forced pass therefore gives both loss and exact match, under interventions at fixed token indices too;
`generate` is the check.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from qfl_interp.data.task import Batch
from qfl_interp.models.losses import (
    IGNORED,
    TokenLosses,
    cross_entropies,
    is_scored,
    squared_errors,
    token_losses_of,
)
from qfl_interp.shapes import LossMask, Targets
from qfl_interp.threads import on_every_core

# (tokens of a chunk, positions to predict at, rows of the chunk in the batch) -> logits at those positions
Forward = Callable[[Tensor, slice, slice], Tensor]
# Whether each example is right; NaN where there is no such thing.
Exact = Bool[np.ndarray, " example"] | Float[np.ndarray, " example"]


def scored_span(loss_mask: LossMask) -> slice:
    """Positions whose predictions are scored for some example: those before a scored token, first to last.

    Raises:
        ValueError: Nothing is scored.
    """
    scored = torch.nonzero(loss_mask.any(dim=0)).flatten()
    if len(scored) == 0 or int(scored[0]) == 0:
        raise ValueError(
            "loss_mask must keep at least one token, and not the first, which nothing predicts; "
            f"got {int(loss_mask.sum())} kept tokens of shape {tuple(loss_mask.shape)}."
        )
    return slice(int(scored[0]) - 1, int(scored[-1]))


def targets(wanted: Tensor, loss_mask: LossMask, span: slice) -> Targets:
    """What each position of `span` should predict; `IGNORED`, or NaN, where it is not scored.

    `wanted` is what stands for each token (`Batch.wanted`).
    """
    following = slice(span.start + 1, span.stop + 1)
    left_out, found = ~loss_mask[:, following], wanted[:, following]
    return (
        found.masked_fill(left_out[..., None], math.nan) if wanted.ndim == 3 else found.masked_fill(left_out, IGNORED)
    )


def masked_loss(
    logits: Float[Tensor, "batch scored d_vocab"], target: Targets, loss: str = "cross_entropy"
) -> Float[Tensor, ""]:
    """Mean loss, by default cross-entropy in nats, over the scored tokens of the whole batch (not per example)."""
    if loss == "cross_entropy" and not target.is_floating_point():
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)
    return token_losses_of(loss)(logits.flatten(0, 1), target.flatten(0, 1)).sum() / is_scored(target).sum()


class ExampleScores(NamedTuple):
    """Scores of single examples, float64 on the CPU.

    Attributes:
        loss: Mean cross-entropy over the example's scored tokens, nats (`=` scored, where the batch says so); half the
            squared error, of a real-valued task.
        loss_answer: The same over the answer alone.
        exact: Whether every scored token is the most likely one (greedy exact match, `=` scored likewise); NaN of a
            real-valued task, which has no such thing.
        exact_answer: The same over the answer alone.
        n_scored: Scored tokens of each example, `=` included likewise.
        n_answer: Those of them in its answer.
    """

    loss: Float[np.ndarray, " example"]
    loss_answer: Float[np.ndarray, " example"]
    exact: Exact
    exact_answer: Exact
    n_scored: Int[np.ndarray, " example"]
    n_answer: Int[np.ndarray, " example"]

    @property
    def success(self) -> Float[np.ndarray, " example"]:
        """The chance that sampling at temperature 1 writes all scored tokens: exp(-sum of their losses), exactly.

        Unlike `exact` it tells apart models that are never right under greedy decoding. NaN where that is.
        """
        return np.exp(-self.loss * self.n_scored) + 0 * self.exact

    @property
    def success_answer(self) -> Float[np.ndarray, " example"]:
        """The same over the answer alone, given `=`."""
        return np.exp(-self.loss_answer * self.n_answer) + 0 * self.exact_answer

    def means(self) -> dict[str, float]:
        """Means over the examples, each value twice: `=` scored, and over the answer alone.

        `loss` and `loss_answer` are means over tokens, in nats; `exact` and `exact_answer` fractions of examples;
        `pass` and `pass_answer` means over examples of `success` and `success_answer`. A real-valued task has the two
        losses alone, half squared errors.
        """
        losses = {
            "loss": float(np.average(self.loss, weights=self.n_scored)),
            "loss_answer": float(np.average(self.loss_answer, weights=self.n_answer)),
        }
        if self.exact.dtype != np.bool_:
            return losses
        return losses | {
            "exact": float(self.exact.mean()),
            "exact_answer": float(self.exact_answer.mean()),
            "pass": float(self.success.mean()),
            "pass_answer": float(self.success_answer.mean()),
        }


def score_logits(
    logits: Float[Tensor, "batch scored d_vocab"],
    target: Targets,
    answer: Targets,
    token_losses: TokenLosses | None = None,
) -> ExampleScores:
    """Scores of each example from the logits at the scored positions; `answer` is `target` over the answer alone.

    A tie between tokens counts as correct only where the reference has the lowest id, as greedy decoding picks it. The
    loss is by default the cross-entropy, or half the squared error of real-valued targets.
    """
    real = target.is_floating_point()
    token_losses = token_losses or (squared_errors if real else cross_entropies)
    losses = token_losses(logits.flatten(0, 1).double(), target.flatten(0, 1)).view(target.shape[:2])
    right = torch.full_like(losses, math.nan) if real else logits.argmax(dim=-1) == target

    def over(kept: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = kept.sum(dim=1)
        exact = right.sum(dim=1) if real else (right | ~kept).all(dim=1)
        found = ((losses * kept).sum(dim=1) / n, exact, n)
        loss, exact, n = (values.cpu().numpy() for values in found)
        return loss, exact, n

    loss, exact, n_scored = over(is_scored(target))
    loss_answer, exact_answer, n_answer = over(is_scored(answer))
    return ExampleScores(loss, loss_answer, exact, exact_answer, n_scored, n_answer)


def validation_scores(forward: Forward, batch: Batch, loss: str) -> dict[str, float]:
    """What a validation logs: `evaluate`'s means under a loss of this name, for every count of them.

    Only the cross-entropy gives the chance of writing an example rightly: `pass` and `pass_answer` are left out else.

    Raises:
        ValueError: An example has no scored answer.
    """
    means = evaluate(forward, batch, token_losses=token_losses_of(loss)).means()
    return {name: value for name, value in means.items() if loss == "cross_entropy" or not name.startswith("pass")}


@torch.no_grad()
def evaluate(
    forward: Forward,
    batch: Batch,
    *,
    chunk: int = 256,
    together: bool = False,
    token_losses: TokenLosses | None = None,
) -> ExampleScores:
    """Teacher-forced scores of every example of `batch`.

    Args:
        forward: `(tokens, positions, rows) -> logits` at those positions; `rows` says which examples of the batch the
            chunk holds, for interventions that differ by example.
        batch: What is scored.
        chunk: Examples per forward pass; bounds the memory.
        together: Whether `forward` may run on several threads at once, each pass on one core.
        token_losses: What the scores call the loss, by default the cross-entropy, in nats, or half the squared error of
            a real-valued task. `success` means something under the former alone.

    Raises:
        ValueError: An example has no scored answer, so that its mean loss does not exist.
    """
    span = scored_span(batch.loss_mask)
    n_answer = batch.answer_mask.sum(dim=1)
    if int(n_answer.min()) < 1:
        example = int(n_answer.argmin())
        raise ValueError(
            f"loss_mask must keep {'`=` and ' if batch.prompt_end else ''}at least one answer token of every example, "
            f"got {int(batch.loss_mask[example].sum())} kept tokens in example {example}. Leave such examples out."
        )
    target, answer = (targets(batch.wanted, mask, span) for mask in (batch.loss_mask, batch.answer_mask))

    def score(start: int) -> ExampleScores:
        rows = slice(start, min(start + chunk, len(batch.tokens)))
        return score_logits(forward(batch.tokens[rows], span, rows), target[rows], answer[rows], token_losses)

    starts = range(0, len(batch.tokens), chunk)
    parts = [*(on_every_core(score, starts) if together else map(score, starts))]
    return ExampleScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))
