"""What the columns of table "transfer" are: one row a feature and pair of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import ANALYSIS, COUNT, PROBES, RUN, Column, Columns, how_far

TRANSFER: Final[Columns] = {
    "feature": Column("name of the task's feature"),
    "metric": Column('what losses are: "log_loss" in nats, "mse" of numbers'),
    **how_far("fit_{}", of="the checkpoint that the probes were fitted at"),
    **how_far("eval_{}", of="the checkpoint whose activations they read"),
    "test_loss": Column("test loss at eval_step of the probes of fit_step; mean over labels, each at its best layer"),
    "test_score": Column("their test score, accuracy or R2; mean over labels"),
    "cosine": Column("mean absolute cosine between the directions of both steps' probes, at the same places"),
    "n_labels": Column("labels with a probe at fit_step", COUNT),
    "refit_loss": Column("test loss at eval_step of that step's own probes"),
    **PROBES,
    **ANALYSIS,
    **RUN,
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {"transfer": TRANSFER}
RESULT: Final[Mapping[str, Columns]] = {"rows": TRANSFER}
