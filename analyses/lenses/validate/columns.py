"""What the columns of table "validate" are: one row a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import ANALYSIS, COUNT, RUN, Column, Columns, how_far
from qfl_interp.runs.metric_columns import validation_columns

VALIDATE: Final[Columns] = {
    **validation_columns(),
    "n_val": Column("validation examples", COUNT),
    **how_far(),
    **ANALYSIS,
    **RUN,
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {"validate": VALIDATE}
RESULT: Final[Mapping[str, Columns]] = {"rows": VALIDATE}
