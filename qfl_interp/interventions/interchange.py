"""Interchange interventions: swap one feature's subspace between two runs, and see whether the output follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.errors import QflError
from qfl_interp.interventions.edits import edit_at
from qfl_interp.interventions.pairs import PairScores, PatchPairs, logit_difference, normalise, score_pairs
from qfl_interp.interventions.planes import affine_projection, cut_to
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import HookedModel, model_device
from qfl_interp.models.forward import rows_logits
from qfl_interp.models.hooks import Intervention, Site, read_activations

# About what is kept of a pair under one condition: two scores and their answers.
_BYTES_SCORED = 40
Condition = Literal["none", "feature", "mean_shift", "random", "whole"]


def swap_subspace(
    site: Site,
    directions: Float[Tensor, "*label k d_model"],
    source: Float[Tensor, "batch label d_model"],
    positions: Int[Tensor, "batch label"],
) -> Intervention:
    """Give an activation another run's component in a subspace: `x <- x + P (source - x)`, P the projector on the span.

    Args:
        site: A site without heads.
        directions: Rows that span the subspace: `[k, d_model]` for all labels, or `[label, k, d_model]`.
        source: The other run's activation at each label.
        positions: Token index of each label in each example; negative where an example has no such label.

    Raises:
        ValueError: The directions are zero, not finite or dependent; shapes do not fit; two labels of an example share
            a position.

    References:
        Geiger et al. 2021 (arXiv 2106.02997); Geiger et al. 2023 (arXiv 2303.02536), equation 2.
    """
    if directions.shape[-1] != source.shape[-1] or (directions.ndim == 3 and len(directions) != source.shape[1]):
        raise ValueError(
            f"directions must be [k, d_model] or [label, k, d_model] of source {tuple(source.shape)}, "
            f"got {tuple(directions.shape)}."
        )
    basis, _ = affine_projection(directions, torch.zeros_like(directions[..., 0]))
    basis = basis.expand(source.shape[1], -1, -1)

    def swap(x: Tensor) -> Tensor:
        rows = basis.to(x)
        along = torch.einsum("b l d, l k d -> b l k", source.to(x) - x, rows)
        return x + torch.einsum("b l k, l k d -> b l d", along, rows)

    return edit_at(site, swap, positions, label="swap_subspace")


class SwapScores(NamedTuple):
    """Scores of one condition, for every pair that counts.

    Attributes:
        logit_diff: Logit of the clean token minus that of the corrupted one at the pair's deciding position.
        flipped: Whether the clean token is the most likely one there; its mean is the interchange accuracy.
        answer: Scores of the whole clean answer, in the run that reads it behind the corrupted prompt.
    """

    logit_diff: Float[np.ndarray, " pair"]
    flipped: Bool[np.ndarray, " pair"]
    answer: PairScores


@dataclass(frozen=True)
class InterchangeScores:
    """What the output does when part of one activation is swapped.

    Attributes:
        none: The base run, untouched.
        feature: The feature's subspace swapped.
        mean_shift: The other guess at that subspace swapped, where one was given.
        random: Random subspaces of the same dimension, one entry a draw.
        whole: The whole activation swapped; no upper bound, as parts of it can work against one another.
        clean: The source run, untouched.
        pair: Which of the given pairs count, along every pair axis.
        n_undecided: Pairs left out: no such label, or no scored token at or after it differs.
    """

    none: SwapScores
    feature: SwapScores
    mean_shift: SwapScores | None
    random: tuple[SwapScores, ...]
    whole: SwapScores
    clean: SwapScores
    pair: Int[np.ndarray, " pair"]
    n_undecided: int

    def normalised(self, condition: Condition) -> float:
        """Mean logit difference where the base run is 0 and the source run 1 (`pairs.normalise`); over all draws."""
        runs = self.random if condition == "random" else (getattr(self, condition),)
        if not runs or runs[0] is None:
            return float("nan")
        low = self.none.logit_diff.mean()
        change = np.mean([run.logit_diff.mean() for run in runs]) - low
        return float(normalise(np.array(change), np.array(self.clean.logit_diff.mean() - low)))


class _Deciding(NamedTuple):
    """The pairs that count, where they are decided, and between which tokens."""

    pair: Int[Tensor, " kept"]
    at: Int[Tensor, " kept"]
    towards: Int[Tensor, " kept"]
    away: Int[Tensor, " kept"]


def _deciding(pairs: PatchPairs, positions: Int[Tensor, " pair"]) -> _Deciding:
    """For each pair the first scored position from the label on whose next token differs between the answers."""
    if pairs.targets is not None:
        raise QflError("interchange decides between two token ids, and this task is real-valued. Use patching (patch).")
    following = torch.arange(1, pairs.clean.shape[1])
    differs = pairs.loss_mask[:, 1:] & (pairs.clean != pairs.corrupted_answer)[:, 1:]
    # The prompt is not scored, `=` is the same in both: what differs is in the answer.
    after = differs & (following - 1 >= positions[:, None]) & (positions >= 0)[:, None]
    pair = after.any(dim=1).nonzero().flatten()
    if len(pair) == 0:
        raise ValueError(
            f"at least one pair must differ in a scored token at or after its label, got none of {len(pairs)}. "
            "The feature is read where nothing that it decides is left to predict; choose another position or label."
        )
    at = after.int().argmax(dim=1)[pair]
    return _Deciding(pair, at, pairs.clean[pair, at + 1], pairs.corrupted_answer[pair, at + 1])


class _Runs:
    """Base and source runs of the pairs that count."""

    def __init__(
        self,
        model: HookedModel,
        pairs: PatchPairs,
        found: _Deciding,
        site: Site,
        where: Tensor,
        read: Tensor,
        chunk: int,
    ) -> None:
        self.model, self.pairs, self.found, self.site, self.chunk = model, pairs, found, site, chunk
        self.device = model_device(model)
        self.where = where[found.pair, None].to(self.device)
        sources = []
        for part in self._parts():
            pair = found.pair[part]
            activation = read_activations(model, pairs.clean[pair].to(self.device), [site])[site]
            sources.append(activation[torch.arange(len(pair)), read[pair]][:, None])
        self.source = torch.cat(sources)

    def _parts(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.found.pair)).split(self.chunk)

    def scores(self, change: Callable[[Tensor, Tensor], list[Intervention]]) -> SwapScores:
        """Scores of the base runs under what `change` makes of source activations and positions."""
        return self._scores(self.pairs.corrupted_answer, self.pairs.corrupted, change)

    def untouched_source(self) -> SwapScores:
        """Scores of the source runs."""
        return self._scores(self.pairs.clean, self.pairs.clean, lambda source, where: [])

    def _scores(
        self, own: Tensor, forced: Tensor, change: Callable[[Tensor, Tensor], list[Intervention]]
    ) -> SwapScores:
        difference, flipped, answers = [], [], []
        for part in self._parts():
            pair, at = self.found.pair[part], self.found.at[part]
            swap = change(self.source[part], self.where[part])
            logits = self._logits(own[pair], swap)[torch.arange(len(pair)), at - self.pairs.span.start]
            towards = self.found.towards[part]
            difference.append(logit_difference(logits, towards, self.found.away[part]).cpu())
            flipped.append(logits.argmax(dim=-1).cpu() == towards)
            answers.append(score_pairs(self._logits(forced[pair], swap), self.pairs, pair))
        answer = PairScores(*(np.concatenate(column) for column in zip(*answers, strict=True)))
        return SwapScores(torch.cat(difference).numpy(), torch.cat(flipped).numpy(), answer)

    def _logits(self, tokens: Tensor, swap: list[Intervention]) -> Tensor:
        span = self.pairs.span
        return rows_logits(self.model, tokens[:, : span.stop].to(self.device), span, swap)


def interchange_scores(
    model: HookedModel,
    pairs: PatchPairs,
    *,
    layer: int,
    positions: Int[Tensor, " pair"],
    directions: Float[Tensor, "k d_model"],
    rng: np.random.Generator,
    mean_shift: Float[Tensor, "j d_model"] | None = None,
    name: str = "resid_post",
    source_positions: Int[Tensor, " pair"] | None = None,
    n_random: int = 10,
    chunk: int = 256,
) -> InterchangeScores:
    """Does the output move to what the swapped feature implies? One label's subspace, against its controls.

    The base run reads the corrupted prompt with *its own* answer, the source run the clean prompt with its own. At the
    label's position the base run gets the source run's component in the subspace. It is scored at the deciding
    position, the first at or after the label whose next token differs between the answers. (Behind the clean
    answer that `PatchPairs.corrupted` holds, prompt and answer so far contradict each other: no good base for a label
    read there. `SwapScores.answer` scores that run all the same.)

    Args:
        model: Any hooked model.
        pairs: From `patch_pairs`, made to differ in this label.
        layer: Block of the site.
        positions: Where the label is read in each base run; negative where there is no such label.
        directions: Rows that span the feature's subspace. A probe's weights say how to read a feature, not along what
            the model writes it: try the difference of class means too (Haufe et al. 2014, section 2).
        rng: Draws the random subspaces, spans of Gaussian vectors.
        mean_shift: Rows of another guess at it (`probes.mean_shift`), to be compared.
        name: A site without heads.
        source_positions: The same in each source run; `positions` by default.
        n_random: Random subspaces.
        chunk: Pairs of a forward pass.

    Raises:
        ValueError: No pair is decided at or after its label; directions that are zero, not finite or dependent.
        QflError: The model has no such hook point, or so many subspaces do not fit into memory.

    References:
        Geiger et al. 2021 (arXiv 2106.02997), interchange interventions; Geiger et al. 2023 (arXiv 2303.02536),
        distributed ones.
    """
    needed = n_random * (4 * 8 * directions.numel() + _BYTES_SCORED * len(pairs))
    what = f"{n_random:,} random subspaces of {len(directions)} directions on {len(pairs):,} pairs"
    require_memory(needed, available_bytes(), what, "Take a smaller n_random.")
    found = _deciding(pairs, positions)
    read = positions if source_positions is None else source_positions
    runs = _Runs(model, pairs, found, Site(layer, name), positions, read, chunk)
    width = runs.source.shape[-1]
    directions = cut_to(directions, width)
    mean_shift = None if mean_shift is None else cut_to(mean_shift, width)
    drawn = rng.standard_normal((n_random, *directions.shape))

    def swapped(rows: Tensor) -> SwapScores:
        return runs.scores(lambda source, where: [swap_subspace(runs.site, rows, source, where)])

    return InterchangeScores(
        none=runs.scores(lambda source, where: []),
        feature=swapped(directions),
        mean_shift=None if mean_shift is None else swapped(mean_shift),
        random=tuple(swapped(torch.from_numpy(rows).to(directions)) for rows in drawn),
        whole=runs.scores(lambda source, where: [edit_at(runs.site, lambda _: source, where, label="swap")]),
        clean=runs.untouched_source(),
        pair=found.pair.numpy(),
        n_undecided=len(pairs) - len(found.pair),
    )
