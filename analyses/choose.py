"""What a call looks at: features and labels by name or by default, sites that it can change, runs with losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qfl_interp.data.task import Feature
from qfl_interp.errors import QflError
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints
from qfl_interp.sites import HEAD_SITES


def chosen_features(run: Checkpoints, features: str | Sequence[str] | None) -> list[Feature]:
    """The run's features of these names; by default those the task has `by_default`.

    Raises:
        QflError: The task has no such feature, or none at all.
    """
    default = [f.name for f in run.task.features.values() if f.by_default]
    names = [features] if isinstance(features, str) else list(default if features is None else features)
    if not names:
        raise QflError(f"task {run.task.name!r} has no features to analyse.")
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


def require_one_a_token(site: str, what: str, advice: str) -> None:
    """Raise `ValueError` where a site's activation is one a head instead of one a token."""
    if site in HEAD_SITES:
        raise ValueError(
            f"site of {what} must have one activation a token, got {site!r}, which has one a head. {advice}"
        )


def with_loss_curve(run: Checkpoints) -> Run:
    """The run; `QflError` for a series of checkpoints without the losses of its training."""
    if not isinstance(run, Run):
        raise QflError(
            f"emergence, timeline and report need the loss curve that a Run has logged, got a {type(run).__name__}. "
            "Use probe, transfer, mdl, patch, interchange or ablate, and draw their rows over steps."
        )
    return run
