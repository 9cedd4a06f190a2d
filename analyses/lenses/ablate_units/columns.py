"""What the columns of table "ablate_units" are: one row a checkpoint, layer and unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import ANALYSIS, COUNT, FRACTION, LOSS_UNIT, RUN, Column, Columns, how_far, with_interval

ABLATE_UNITS: Final[Columns] = {
    "layer": Column("block, from 0"),
    "unit": Column("head or neuron, from 0"),
    "loss_answer": Column("mean loss a token of the answer without the unit", LOSS_UNIT),
    "exact_answer": Column("share of examples with every token of the answer right without the unit", FRACTION),
    **with_interval("loss_increase", "loss_answer less that of the intact model", LOSS_UNIT),
    "p_value_paired": Column("two-sided sign-flip test over examples of that increase"),
    "n_examples": Column("test examples", COUNT),
    "p_value_holm": Column("p_value_paired, Holm-corrected over all units of the step"),
    "intact_loss_answer": Column("mean loss a token of the answer of the intact model", LOSS_UNIT),
    "intact_exact_answer": Column("share of examples that the intact model answers rightly", FRACTION),
    "name": Column('the activation: "z" of heads, "mlp_post" of neurons'),
    "method": Column('what takes a unit\'s place at every token: "zero", "mean" or "resample"'),
    **how_far(),
    **ANALYSIS,
    **RUN,
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {"ablate_units": ABLATE_UNITS}
RESULT: Final[Mapping[str, Columns]] = {"rows": ABLATE_UNITS}
