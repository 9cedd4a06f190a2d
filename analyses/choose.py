"""What a call looks at: features and labels by name or by default, sites that it can change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qfl_interp.data.next_token import next_token_labels
from qfl_interp.data.task import Feature
from qfl_interp.errors import QflError
from qfl_interp.runs.series import Checkpoints
from qfl_interp.sites import HEAD_SITES

# Behind a feature's name: without the labels that the very next token gives away.
WITHOUT_NEXT_TOKEN = "_without_next_token"


def chosen_features(run: Checkpoints, features: str | Sequence[str] | None) -> list[Feature]:
    """The run's features of these names; by default those the task has `by_default`.

    Raises:
        QflError: The task has no such feature, or none at all.
    """
    default = [f.name for f in run.task.features.values() if f.by_default]
    names = [features] if isinstance(features, str) else list(default if features is None else features)
    if not names:
        raise QflError(
            f"task {run.task.name!r} has no features to analyse. "
            "Give the task features, or use a lens that needs none, such as `ablate_units`."
        )
    return [run.task.feature(name) for name in names]


def chosen_labels(feature: Feature, labels: int | Sequence[int] | None) -> list[int]:
    """The labels to look at; the middle one by default.

    Raises:
        ValueError: The feature has no such label.
    """
    if labels is None:
        return [feature.n_labels // 2]
    chosen = [int(label) for label in ([labels] if isinstance(labels, (int, np.integer)) else labels)]
    for label in chosen:
        if not 0 <= label < feature.n_labels:
            raise ValueError(
                f"labels of {feature.name!r} must lie in [0, {feature.n_labels}), got {label}. They count from 0."
            )
    return chosen


def features_in(name: str) -> set[str]:
    """The features that a row is about: of several taken together, "a+b"; of one without some of its labels, that."""
    return {*name.removesuffix(WITHOUT_NEXT_TOKEN).split("+")}


def next_token_note(run: Checkpoints, features: Sequence[str]) -> str:
    """Which labels the very next token gives away, as a title goes on; empty where there are none."""
    found = {name: next_token_labels(run.task, name) for name in features}
    listed = [f"{name} {_every(labels, run.task.feature(name).n_labels)}" for name, labels in found.items() if labels]
    return f"; given away by the very next token: {', '.join(listed)}" if listed else ""


def _every(labels: Sequence[int], n: int) -> str:
    """Labels in words."""
    return "(every label)" if len(labels) == n else "label " + " ".join(map(str, labels))


def require_one_a_token(site: str, what: str, advice: str) -> None:
    """Raise `ValueError` where a site's activation is one a head instead of one a token."""
    if site in HEAD_SITES:
        raise ValueError(
            f"site of {what} must have one activation a token, got {site!r}, which has one a head. {advice}"
        )
