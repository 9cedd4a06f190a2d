"""Rows of lenses: those of one call where several had other settings; intervals as columns; p-values corrected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from qfl_interp.stats import Interval, holm
from qfl_interp.tables import column, groups


def rows_of_one_call(
    rows: pd.DataFrame, by: Sequence[str], *, step: str = "step", call: str = "analysis"
) -> pd.DataFrame:
    """For each value of the columns `by`, the rows of one call.

    Of several calls with other settings, it is the one with most steps, and of those the one with most rows: a curve
    never mixes settings.

    Args:
        rows: Of any number of calls.
        by: Columns that tell apart what is shown, such as feature and label.
        step: The column that counts a call's steps.
        call: The column that tells calls apart.
    """
    if rows.empty:
        return rows
    calls = rows.groupby([*by, call], as_index=False).agg(n_steps=(step, "nunique"), n_rows=(step, "size"))
    largest = calls.sort_values(["n_steps", "n_rows"], ascending=False, kind="stable").drop_duplicates(list(by))
    return rows.merge(largest[[*by, call]])


def interval_columns(name: str, interval: Interval | None) -> dict[str, float]:
    """An interval as three columns; NaN where there is none."""
    ends = (interval.estimate, interval.low, interval.high) if interval else (math.nan,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def with_holm(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `p_value_holm`: `p_value_paired`, where there is one, corrected within each step and condition."""
    found = rows.assign(p_value_holm=math.nan)
    tested = rows.dropna(subset=["p_value_paired"])
    for _, of_step in groups(tested, "step"):
        for _, part in groups(of_step, "condition"):
            found.loc[part.index, "p_value_holm"] = holm(column(part, "p_value_paired"))
    return found
