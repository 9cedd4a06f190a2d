"""Clean and corrupted examples by editing: draw, change a little, keep what changed the wanted label."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qfl_interp.data.task import NO_POSITION, Pairs, Task
from qfl_interp.shapes import Examples

# Rounds without one pair after which the label counts as one that cannot change.
_PATIENCE = 50


def check_label(task: Task, feature: str, label: int) -> None:
    """Raise `QflError` unless the task has this feature, `ValueError` unless the feature has this label."""
    n_labels = task.feature(feature).n_labels
    if not 0 <= label < n_labels:
        raise ValueError(f"label of {feature} must lie in [0, {n_labels}), got {label}. Labels count from 0.")


def pairs_by_edit(
    task: Task,
    rng: np.random.Generator,
    n: int,
    feature: str,
    label: int,
    edit: Callable[[np.random.Generator, Examples], Examples],
    sample: Callable[[np.random.Generator, int], Examples] | None = None,
) -> Pairs:
    """`n` pairs that differ in the feature's value at `label` and read it at the same position.

    `edit` turns clean examples, which `sample` draws (the task by default), into ones of the same prompt length.

    Raises:
        QflError: Unknown feature.
        ValueError: `label` is out of range, or no edit changes it.
    """
    check_label(task, feature, label)
    found, draw = task.feature(feature), sample or task.sample
    clean_parts, corrupted_parts, n_found, idle = [draw(rng, 0)], [draw(rng, 0)], 0, 0
    while n_found < n and idle < _PATIENCE:
        clean = draw(rng, max(2 * (n - n_found), 64))
        corrupted = edit(rng, clean)
        before, after = found.labels(clean)[:, label], found.labels(corrupted)[:, label]
        differ = (before != after).reshape(len(clean), -1).any(axis=1)
        at = found.positions(clean)[:, label]
        kept = differ & (at == found.positions(corrupted)[:, label]) & (at != NO_POSITION)
        clean_parts.append(clean[kept])
        corrupted_parts.append(corrupted[kept])
        idle = 0 if kept.any() else idle + 1
        n_found += int(kept.sum())
    if n_found < n:
        raise ValueError(
            f"no change that was tried alters label {label} of {feature} of {task!r}: it is constant, or rare. "
            "Choose another label or length."
        )
    return Pairs(np.concatenate(clean_parts)[:n], np.concatenate(corrupted_parts)[:n])
