"""Rows that lenses wrote before: where several calls had other settings, those of one."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import select


def stored_rows(
    run: Checkpoints, lens: str, by: Sequence[str], *, step: str = "step", **equals: object
) -> pd.DataFrame:
    """A lens' rows with these values; for each value of the columns `by`, the rows of one call.

    Of several calls with other settings, it is the one with most steps, and of those the one with most rows: a curve
    never mixes settings.

    Args:
        run: Whose table.
        lens: Its name.
        by: Columns that tell apart what is shown, such as feature and label.
        step: The column that counts a call's steps.
        **equals: Columns with the value that a row must have.
    """
    rows = select(run.table(lens).read(), **equals)
    if rows.empty:
        return rows
    calls = rows.groupby([*by, "analysis"], as_index=False).agg(n_steps=(step, "nunique"), n_rows=(step, "size"))
    largest = calls.sort_values(["n_steps", "n_rows"], ascending=False, kind="stable").drop_duplicates(list(by))
    return rows.merge(largest[[*by, "analysis"]])
