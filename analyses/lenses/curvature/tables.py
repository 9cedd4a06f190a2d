"""The tables of the curvature lens, and what of them is stored beside a run."""

from __future__ import annotations

from typing import Final, NamedTuple

import pandas as pd

from qfl_interp.analyses.at_step import StepTable
from qfl_interp.analyses.stored import rows_of_one_call
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import column, select

LENS: Final = "curvature"
RANKS: Final = "soft_ranks"
COEFFICIENTS: Final = "learning_coefficient"


class Measured(NamedTuple):
    """What the figures on curvature show.

    Attributes:
        rows: Table "curvature", one row a step, with the learning coefficients where they were sampled.
        ranks: Table "soft_ranks", one row a step, layer and position.
    """

    rows: pd.DataFrame
    ranks: pd.DataFrame


def stored(run: Checkpoints) -> Measured | None:
    """The tables of one configuration, of several the one with most steps; None without a step after the first."""
    tables = (run.table(name).read() for name in (LENS, RANKS, COEFFICIENTS))
    return _together(*tables)


def stored_at(run: Checkpoints, step: int) -> Measured | None:
    """As `stored`, of the steps that a view of one step shows."""
    tables = [StepTable(run.table(name)) for name in (LENS, RANKS, COEFFICIENTS)]
    return _together(*(table.rows(table.at(step), {}) if table.steps else pd.DataFrame() for table in tables))


def _together(rows: pd.DataFrame, ranks: pd.DataFrame, sampled: pd.DataFrame) -> Measured | None:
    """What one call has of three tables."""
    rows = rows_of_one_call(rows, ["run_id"])
    if rows.empty or not (column(rows, "step") > 0).any():
        return None
    # What was the last checkpoint when it was measured, and is not now, has a second row: the one with a next step.
    rows = rows.sort_values(["step", "step_to"], ignore_index=True).drop_duplicates("step", ignore_index=True)
    ranks = select(ranks, analysis=rows["analysis"].iloc[0])
    sampled = rows_of_one_call(sampled, ["run_id"])
    return Measured(with_coefficients(rows, sampled) if len(sampled) else rows, ranks)


def with_coefficients(rows: pd.DataFrame, sampled: pd.DataFrame) -> pd.DataFrame:
    """The rows with the learning coefficients of their steps, NaN where there are none."""
    own = [name for name in sampled if name == "step" or name not in rows]
    return rows.merge(sampled[own], on="step", how="left")
