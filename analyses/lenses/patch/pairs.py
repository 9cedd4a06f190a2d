"""The pairs of runs that are patched, which features have some that change the answer, and the tokens they share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qfl_interp.analyses.choose import chosen_features, chosen_labels
from qfl_interp.data.examples import held_out_pairs
from qfl_interp.data.task import Feature, Task
from qfl_interp.errors import QflError
from qfl_interp.interventions.pairs import PatchPairs, patch_pairs
from qfl_interp.runs.series import Checkpoints

# What stands for a token that differs between examples.
VARIES = "·"
# As a component: the output of one head, at every position at once.
HEADS = "heads"
# Pairs that are drawn to see whether they change the answer.
_N_TRIED = 16


def pairs_of(run: Checkpoints, feature: str, label: int, *, n_pairs: int, seed: int) -> PatchPairs:
    """The clean and corrupted runs of a label, the clean examples of the split "test"."""
    drawn = held_out_pairs(run.task, "test", n_pairs, feature, label, seed=seed, stream="patch")
    return patch_pairs(run.task, drawn, run.task.feature(feature).positions(drawn.clean)[:, label])


def deciding_features(
    run: Checkpoints, features: str | Sequence[str] | None, labels: int | Sequence[int] | None, seed: int
) -> tuple[list[Feature], str]:
    """The features to patch (where none is named, all whose pairs change the answer), and what to say of the others.

    Raises:
        QflError: Unknown feature, or none is left.
        ValueError: A label that a feature does not have.
    """
    chosen = chosen_features(run, features)
    if features is not None:
        return chosen, ""
    kept = [feature for feature in chosen if _decides(run, feature, chosen_labels(feature, labels), seed)]
    if not kept:
        raise QflError(
            f"no feature of {run.task!r} has pairs whose answers differ: there is nothing to patch. "
            "`probe` and `ablate` need no pairs."
        )
    left_out = [feature.name for feature in chosen if feature not in kept]
    return kept, f"; left out, as their pairs leave the answer alone: {', '.join(left_out)}" if left_out else ""


def _decides(run: Checkpoints, feature: Feature, labels: Sequence[int], seed: int) -> bool:
    """Whether the answer hangs on the labels as the feature's pairs change them."""
    try:
        for label in labels:
            pairs_of(run, feature.name, label, n_pairs=_N_TRIED, seed=seed)
    except ValueError:
        return False
    return True


def tokens_at(task: Task, pairs: PatchPairs, positions: Sequence[int]) -> list[str]:
    """What a person reads at each position; `VARIES` where it is not the same in all runs, and for all at once."""
    both = torch.cat([pairs.clean, pairs.corrupted])
    same = (both == both[:1]).all(dim=0).view(both.shape[1], -1).all(dim=1)
    first = task.str_tokens(both[0])
    return [first[position] if position >= 0 and same[position] else VARIES for position in positions]
