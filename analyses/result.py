"""What an analysis returns: its rows, a figure on demand, and a compact text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from qfl_interp.data.task import Feature
from qfl_interp.errors import QflError
from qfl_interp.runs.series import Checkpoints
from qfl_interp.sites import HEAD_SITES
from qfl_interp.stats import holm
from qfl_interp.tables import column, groups


@dataclass(frozen=True)
class Result:
    """Rows of one analysis of one run.

    Attributes:
        title: What it is.
        summary: A short table a person reads first.
        rows: The tidy table.
    """

    title: str
    summary: pd.DataFrame = field(repr=False)
    rows: pd.DataFrame = field(repr=False)
    draw: Callable[[], Figure] = field(repr=False)

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the tidy table."""
        return self.rows.copy()

    def plot(self) -> Figure:
        """The figure."""
        return self.draw()

    def __repr__(self) -> str:
        """The title and at most twenty lines of the summary, its first and last ones."""
        text = self.summary.to_string(index=False, max_rows=20, float_format=lambda v: f"{v:.4g}")
        return f"{self.title}\n{text}"

    def _repr_html_(self) -> str:
        """The summary, as notebooks show it."""
        return f"<b>{self.title}</b>{self.summary.to_html(index=False, max_rows=20, float_format=lambda v: f'{v:.4g}')}"


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


def with_holm(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `p_value_holm`: `p_value_paired`, where there is one, corrected within each step and condition."""
    found = rows.assign(p_value_holm=math.nan)
    tested = rows.dropna(subset=["p_value_paired"])
    for _, of_step in groups(tested, "step"):
        for _, part in groups(of_step, "condition"):
            found.loc[part.index, "p_value_holm"] = holm(column(part, "p_value_paired"))
    return found


def require_one_a_token(site: str, what: str, advice: str) -> None:
    """Raise `ValueError` where a site's activation is one a head instead of one a token."""
    if site in HEAD_SITES:
        raise ValueError(
            f"site of {what} must have one activation a token, got {site!r}, which has one a head. {advice}"
        )
