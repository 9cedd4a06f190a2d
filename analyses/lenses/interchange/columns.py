"""What the columns of table "interchange" are: one row a checkpoint, feature, label, layer and condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import ANALYSIS, COUNT, FRACTION, PROBES, RUN, Column, Columns, how_far, with_interval

INTERCHANGE: Final[Columns] = {
    "layer": Column("block whose activation is changed, from 0"),
    "n_directions": Column("directions of the probe that are swapped", COUNT),
    "condition": Column(
        'what the corrupted run gets of the clean one: "none", "feature" (the probe\'s directions), "mean_shift" '
        '(those of the class means), "random", "whole"'
    ),
    **with_interval(
        "flipped",
        "share of pairs whose next differing token of the answer becomes the clean one",
        FRACTION,
        of="95 % bootstrap over pairs",
    ),
    "logit_diff_normalised": Column("logit of the clean token less the corrupted one's; 0 corrupted run, 1 clean run"),
    "p_value_paired": Column('of "feature" and "mean_shift": two-sided sign-flip test over pairs against "random"'),
    "n_pairs": Column("pairs of a clean and a corrupted example", COUNT),
    "n_undecided": Column("pairs left out: no such label, or no scored token from it on differs", COUNT),
    "n_random": Column("random subspaces that are averaged", COUNT),
    **how_far(),
    "feature": Column("name of the task's feature"),
    "label": Column("the label in which a pair differs, from 0"),
    "site": Column("the activation that is changed, by TransformerLens' name"),
    **PROBES,
    **ANALYSIS,
    **RUN,
}
_TESTS: Final[Columns] = {
    "p_value_holm": Column("p_value_paired, Holm-corrected over features, labels and layers of a step in the call")
}
# The conditions of the printed summary.
_SUMMARY: Final[Columns] = {
    name: Column(f"share of pairs that flip when {what} is swapped", FRACTION)
    for name, what in {
        "nothing": "nothing",
        "probe": "the component along the probe's directions",
        "class means": "the component along the differences of class means",
        "random": "the component along random directions",
        "everything": "the whole activation",
    }.items()
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {"interchange": INTERCHANGE}
RESULT: Final[Mapping[str, Columns]] = {"rows": {**INTERCHANGE, **_TESTS}, "summary": _SUMMARY}
