"""What the columns of table "ablate" are: one row a checkpoint, feature and condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import (
    ANALYSIS,
    COUNT,
    FRACTION,
    LOSS_UNIT,
    PROBES,
    RUN,
    Column,
    Columns,
    how_far,
    with_interval,
)

_TEST: Final = "of exact match over the answer (the loss, negated, of a real-valued task)"

ABLATE: Final[Columns] = {
    "condition": Column('"intact", "ablated", or a control: "random", "random_feature", "same_norm"'),
    "n_examples": Column("test examples", COUNT),
    "n_trials": Column("random draws of the condition; 1 of intact and ablated", COUNT),
    "difference": Column("exact match of the ablated model less this control's; below 0 the feature matters more"),
    "p_value_paired": Column(f"two-sided sign-flip test over examples, ablated against the control's mean, {_TEST}"),
    "p_value_trials": Column(f"one-sided rank of the ablated model among the control's trials, {_TEST}"),
    **with_interval("loss", "mean loss a scored token, the `=` sign included as the paper counts", LOSS_UNIT),
    **with_interval("loss_answer", "mean loss a token of the answer alone", LOSS_UNIT),
    **with_interval("exact", "share of examples with every scored token right, the `=` sign included", FRACTION),
    **with_interval("exact_answer", "share of examples with every token of the answer right", FRACTION),
    **how_far(),
    "feature": Column('what is taken out; "a+b" together; "..._without_next_token" without labels given away'),
    "site": Column("the activation that is changed, by TransformerLens' name"),
    "method": Column('what is taken out of it: "written", "project_out", "zero", "mean" or "resample"'),
    "top_k": Column("layers of each label that are changed, those of its best probes first", COUNT),
    "epsilon": Column("strength; 1 removes the component, 0 changes nothing"),
    "labels": Column('the labels that are taken out, by number; "all"'),
    "pooled": Column("whether the probes are one for all labels"),
    **PROBES,
    **ANALYSIS,
    **RUN,
}
_TESTS: Final[Columns] = {
    "p_value_holm": Column("p_value_paired, Holm-corrected over the features of the call within a step and condition")
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {"ablate": ABLATE}
# What a call gives, beside its table.
RESULT: Final[Mapping[str, Columns]] = {"rows": {**ABLATE, **_TESTS}}
