"""Whether the checkpoint of step 0 was drawn and not trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from qfl_interp.runs.suite_check.findings import Finding, named

# Standard errors from 0 that a mean of drawn numbers is never off: one in 10^9 tensors.
_ERRORS = 6.0
# How far a spread may be from the drawn ones', as a factor; and of how many standard errors of a spread.
_FACTOR = 1.25
# Numbers from which a tensor is looked at.
_SEVERAL = 64


def fresh_findings(step: int, first: Mapping[str, Tensor], drawn: Sequence[Mapping[str, Tensor]]) -> list[Finding]:
    """What tells the first checkpoint from models that were drawn anew.

    A tensor that is constant in every drawn model (gains, biases) must be constant; a drawn one has the mean 0 within
    `_ERRORS` standard errors, where the others have it. Training breaks both at once, whatever the scale of the draw.
    The standard deviation may differ where a training had an initialisation of its own: that is a note.

    Args:
        step: The first one.
        first: Its parameters.
        drawn: Those of freshly initialised models.
    """
    moved, shifted, scaled = [], [], []
    for name, tensor in first.items():
        others = [model[name].detach().double() for model in drawn if name in model]
        own = tensor.detach().double().cpu()
        if not others or own.numel() < 2:
            continue
        if all(bool((other == other.flatten()[0]).all()) for other in others):
            if not bool((own == own.flatten()[0]).all()):
                moved.append(name)
            continue
        if own.numel() < _SEVERAL:
            continue
        if _errors(own) > _ERRORS > max(map(_errors, others)):
            shifted.append(name)
        spread = sum(float(other.std()) for other in others) / len(others)
        gap = abs(math.log(max(float(own.std()), 1e-30) / spread)) if spread else 0.0
        if gap > max(math.log(_FACTOR), _ERRORS / math.sqrt(2 * own.numel())):
            scaled.append(name)
    found = []
    trained = [*moved, *shifted]
    if trained:
        why = [f"{len(moved)} tensors that a fresh model has constant are not ({named(moved)})"] if moved else []
        why += [f"the numbers of {len(shifted)} have a mean other than 0 ({named(shifted)})"] if shifted else []
        text = (
            f"it is not freshly initialised: {'; '.join(why)}. Is it a later step's, or was the training begun from "
            "weights? Fetch the first checkpoint again."
        )
        found.append(Finding(step, "not fresh", "fault", tuple(trained), text))
    if scaled:
        text = (
            f"{len(scaled)} tensors are spread otherwise than the model's class draws them ({named(scaled)}): an "
            "initialisation of the training's own, or a later step."
        )
        found.append(Finding(step, "not fresh", "note", tuple(scaled), text))
    return found


def _errors(values: Tensor) -> float:
    """How many standard errors the mean is from 0."""
    spread = float(values.std())
    return abs(float(values.mean())) * math.sqrt(values.numel()) / spread if spread else 0.0
