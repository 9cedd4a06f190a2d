"""Clean and corrupted runs side by side: what patching starts from, and the scores that say which one a run resembles.

A corrupted run reads the corrupted prompt and then the *clean* answer, from where the two answers are told apart. Every
scored position of both runs is then defined by one forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.data.task import Pairs, Task
from qfl_interp.models.build import HookedModel, model_device
from qfl_interp.models.forward import rows_logits
from qfl_interp.models.losses import squared_errors
from qfl_interp.models.metrics import score_logits, scored_span, targets
from qfl_interp.shapes import LossMask, Targets, Tokens

Metric = Literal["logit_diff", "loss", "exact"]

# A clean and a corrupted mean closer than this (logits, nats, or a fraction of pairs) leave nothing to normalise by:
# single precision alone moves a mean by about 1e-6.
MIN_GAP = 1e-4


@dataclass(frozen=True)
class PatchPairs:
    """Tokens of pairs whose prompts are equally long and whose answers differ.

    Attributes:
        clean: Clean prompt, clean answer.
        corrupted: Corrupted prompt; its own answer up to `contrast`, the clean one's from there on.
        corrupted_answer: Corrupted prompt with the answer that is right for it.
        loss_mask: True on the scored tokens of the clean answer, behind `contrast` where positions were given.
        contrast: The position whose next token decides between the two answers: the first that differs, of those from
            a label's position on where such positions were given.
        n_dropped: Pairs left out because their prompts differ in length or their answers are equal there.
        targets: Of a real-valued task: the numbers of the clean run, by token; None where its ids are the targets.
        corrupted_targets: Those that are right for the corrupted prompt.
    """

    clean: Tokens
    corrupted: Tokens
    corrupted_answer: Tokens
    loss_mask: LossMask
    contrast: Int[Tensor, " batch"]
    n_dropped: int
    targets: Float[Tensor, "batch pos d_out"] | None = None
    corrupted_targets: Float[Tensor, "batch pos d_out"] | None = None

    def __len__(self) -> int:
        return len(self.clean)

    @cached_property
    def span(self) -> slice:
        """Positions whose predictions are scored for some pair; a patch behind them changes no score."""
        return scored_span(self.loss_mask)

    @cached_property
    def target(self) -> Targets:
        """What the clean run has where each position of `span` predicts, `losses.IGNORED` or NaN where not scored."""
        return targets(self.clean if self.targets is None else self.targets, self.loss_mask, self.span)


class PairScores(NamedTuple):
    """Scores of one run of each pair.

    Attributes:
        logit_diff: Logit of the clean token minus that of the corrupted one, where the answers first differ. Of a
            real-valued task half the squared distance from the corrupted target less that from the clean one: like
            the other a difference of two log likelihoods, of unit normals here, and linear in what the model gives.
        loss: Mean cross-entropy of the clean answer without `=`, nats; half the squared error, of a real-valued task.
        exact: Whether every token of the clean answer, without `=`, is the most likely one; NaN of a real-valued task.
    """

    logit_diff: Float[np.ndarray, " pair"]
    loss: Float[np.ndarray, " pair"]
    exact: Bool[np.ndarray, " pair"] | Float[np.ndarray, " pair"]

    def mean(self, metric: Metric) -> float:
        """A metric's mean over pairs."""
        return float(getattr(self, metric).mean())


def patch_pairs(task: Task, pairs: Pairs, positions: Int[np.ndarray, " pair"] | None = None) -> PatchPairs:
    """The tokens of pairs, without those that cannot be patched position by position or show no difference.

    Args:
        task: Encodes them.
        pairs: Clean and corrupted examples, as `task.sample_pairs` gives them.
        positions: Where the label in which they differ is read, negative where there is none. The answer is then scored
            from the first token on that differs at or after it. Tokens before it may differ for other reasons (a bit
            that is flipped changes its own column of a sum as well as the carry out of it); both runs read their own.
            By default the whole answer is scored. Of a real-valued task, where what follows a target is another
            problem, one target is: the first at or after the label, and the last of all without positions.

    Raises:
        ValueError: No pair is left.
    """
    clean, corrupted = task.encode(pairs.clean), task.encode(pairs.corrupted)
    begins, other = (batch.answer_mask.int().argmax(dim=1) for batch in (clean, corrupted))
    index = torch.arange(clean.tokens.shape[1])
    differs = clean.answer_mask & corrupted.answer_mask & _differ(clean.wanted, corrupted.wanted)
    if positions is not None:
        read = torch.from_numpy(np.array(positions))[:, None]
        differs &= (index > read) & (read >= 0)
    aligned, decided = begins == other, differs.any(dim=1)
    kept = aligned & decided
    if not bool(kept.any()):
        raise ValueError(
            f"at least one pair must have prompts of equal length and answers that differ, got {len(kept)} pairs: "
            f"{int((~aligned).sum())} of unequal length, {int((aligned & ~decided).sum())} with equal answers"
            + (". " if positions is None else " from the label's position on. ")
            + "A feature whose pairs leave the answer alone cannot be patched; choose another feature or label."
        )
    if clean.targets is not None and positions is None:
        differs &= differs.flip(1).cumsum(dim=1).flip(1) == 1
    contrast = differs.int().argmax(dim=1) - 1
    # Without positions the answers agree up to the contrast, so that this is the whole clean answer.
    behind = index > contrast[:, None]
    forced = torch.where(behind.view(*behind.shape, *[1] * (clean.tokens.ndim - 2)), clean.tokens, corrupted.tokens)
    scored = clean.answer_mask if positions is None else clean.answer_mask & behind
    if clean.targets is not None and corrupted.targets is not None:
        scored = clean.answer_mask & (index == contrast[:, None] + 1)
        wanted = {"targets": clean.targets[kept], "corrupted_targets": corrupted.targets[kept]}
    else:
        wanted = {}
    return PatchPairs(
        clean.tokens[kept],
        forced[kept],
        corrupted.tokens[kept],
        scored[kept],
        contrast[kept],
        int((~kept).sum()),
        **wanted,
    )


def _differ(one: Tensor, other: Tensor) -> Bool[Tensor, "batch pos"]:
    """Where ids, or vectors, are not the same."""
    unequal = one != other
    return unequal.any(dim=-1) if unequal.ndim == 3 else unequal


def logit_difference(
    logits: Float[Tensor, "row d_vocab"], towards: Int[Tensor, " row"], away: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Logit of token `towards` minus that of token `away`, in float64; differentiable."""
    pair = torch.stack([towards, away], dim=1).to(logits.device)
    chosen = logits.double().gather(1, pair)
    return chosen[:, 0] - chosen[:, 1]


def contrast_logit_diff(
    logits: Float[Tensor, "row scored d_vocab"], pairs: PatchPairs, rows: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """`PairScores.logit_diff` of logits at `pairs.span`, one row for each pair of `rows`; differentiable."""
    at = pairs.contrast[rows]
    there = logits[torch.arange(len(rows)), at - pairs.span.start]
    if pairs.targets is not None and pairs.corrupted_targets is not None:
        wanted, other = (t[rows, at + 1].to(logits.device) for t in (pairs.targets, pairs.corrupted_targets))
        return squared_errors(there.double(), other.double()) - squared_errors(there.double(), wanted.double())
    return logit_difference(there, pairs.clean[rows, at + 1], pairs.corrupted_answer[rows, at + 1])


@torch.no_grad()
def score_pairs(
    logits: Float[Tensor, "row scored d_vocab"], pairs: PatchPairs, rows: Int[Tensor, " row"]
) -> PairScores:
    """Scores in float64 of logits at `pairs.span`.

    `rows` says which pair each row of logits belongs to; a pair may occur more than once.
    """
    target = pairs.target[rows].to(logits.device)
    scores = score_logits(logits, target, target)
    difference = contrast_logit_diff(logits, pairs, rows)
    return PairScores(difference.cpu().numpy(), scores.loss_answer, scores.exact_answer)


def normalise(change: Float[np.ndarray, "*place"], gap: Float[np.ndarray, "*#place"]) -> Float[np.ndarray, "*place"]:
    """A change of a mean as a fraction of the gap from the corrupted mean to the clean one: 0 = corrupted, 1 = clean.

    Returns:
        `change / gap`; NaN where `|gap|` is below `MIN_GAP`, as the two runs cannot be told apart there.
    """
    told_apart = np.abs(gap) >= MIN_GAP
    return np.where(told_apart, change / np.where(told_apart, gap, 1.0), np.nan)


def end_scores(model: HookedModel, pairs: PatchPairs, tokens: Tokens, chunk_rows: int) -> PairScores:
    """Scores of every pair's run on `tokens`, untouched: the clean or the corrupted end of the scale."""
    device = model_device(model)
    parts = [
        score_pairs(rows_logits(model, tokens[rows, : pairs.span.stop].to(device), pairs.span), pairs, rows)
        for rows in torch.arange(len(pairs)).split(chunk_rows)
    ]
    return PairScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))
