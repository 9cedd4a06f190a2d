"""Changing an activation at tokens that differ from example to example: the one place that gathers and writes back."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from qfl_interp.errors import QflError
from qfl_interp.models.hooks import Intervention, Site

# Which examples of a batch: a slice, or their indices.
BatchRows = slice | Int[Tensor, " batch"]
# Some examples of a batch -> what is installed for the pass over them, aligned with each example's positions.
RowInterventions = Callable[[BatchRows], list[Intervention]]


def edit_at(
    site: Site,
    change: Callable[[Tensor], Tensor],
    positions: Int[Tensor, "#batch label"] | None = None,
    *,
    label: str = "edit",
) -> Intervention:
    """An intervention that changes an activation `[batch, pos, ...]` at some tokens and leaves the others as they are.

    Args:
        site: Where.
        change: With `positions`: the activation there, `[batch, label, ...]`, to its replacement of the same shape;
            what it returns for a label that is not there is dropped. Without: that at `site.positions` (all where
            None).
        positions: Token index of each label in each example, or `[1, label]` for the same ones in every example;
            negative where an example has no such label, and passed over where the run is shorter.
        label: What the intervention's repr says.

    Raises:
        ValueError: Two labels of an example share a position, where one change would overwrite the other.
    """
    if positions is not None:
        _require_apart(positions)

    def everywhere(activation: Tensor) -> Tensor:
        if site.positions is None:
            return change(activation)
        if max(site.positions) >= activation.shape[1]:
            raise QflError(
                f"positions of {site.hook_name} must lie in [0, {activation.shape[1]}), the tokens of this pass, got "
                f"{max(site.positions)}."
            )
        changed = activation.clone()
        changed[:, list(site.positions)] = change(activation[:, list(site.positions)])
        return changed

    def aligned(activation: Tensor) -> Tensor:
        assert positions is not None
        index = positions.to(activation.device).expand(len(activation), -1)
        # A position beyond a generated prefix is not there yet.
        there = (index >= 0) & (index < activation.shape[1])
        batch, column = torch.nonzero(there, as_tuple=True)
        rows = torch.arange(len(activation), device=activation.device)[:, None]
        replaced = change(activation[rows, index.clamp(0, activation.shape[1] - 1)])
        changed = activation.clone()
        changed[batch, index[batch, column]] = replaced[batch, column]
        return changed

    return Intervention(site, everywhere if positions is None else aligned, label)


def require_strength(epsilon: float) -> None:
    """Raise `ValueError` unless an intervention's strength is a finite number."""
    if not math.isfinite(epsilon):
        raise ValueError(f"epsilon must be a finite number, got {epsilon}. 1 replaces or removes, 0 changes nothing.")


def _require_apart(positions: Tensor) -> None:
    """Raise unless the labels of every example lie at different positions."""
    ordered = positions.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if bool(twice.any()):
        example, column = (int(i) for i in twice.nonzero()[0])
        raise ValueError(
            f"positions of an example must differ between labels, got {int(ordered[example, column])} twice "
            f"in example {example}. Change one label after the other, or both as one."
        )
