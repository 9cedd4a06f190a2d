"""What the columns of table "patch" are: one row a checkpoint, feature, label, component, layer, head and position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import ANALYSIS, COUNT, FRACTION, LOSS_UNIT, RUN, Column, Columns, how_far

_METRICS: Final = {
    "logit_diff": (
        "logit of the clean token less the corrupted one's, at the first token from the label on that differs",
        "logits",
    ),
    "loss": ("mean loss a token of the clean answer from there on", LOSS_UNIT),
    "exact": ("share of pairs in which all of the clean answer comes out from there on", FRACTION),
}


def _metrics() -> dict[str, Column]:
    """Each metric with the patch, on the scale of both runs, and of both runs."""
    found = {}
    for name, (text, unit) in _METRICS.items():
        found[name] = Column(f"{text}; with the patch", unit)
        found[f"{name}_normalised"] = Column(f"{name} with the corrupted run at 0 and the clean one at 1; NaN if equal")
        found |= {
            f"{name}_{run}": Column(f"{name} of the {run} run, unpatched", unit) for run in ("clean", "corrupted")
        }
    return found


PATCH: Final[Columns] = {
    **how_far(),
    "feature": Column("name of the task's feature"),
    "label": Column("the label in which a pair differs, from 0"),
    "component": Column("the activation that is written, by TransformerLens' name"),
    "layer": Column("block, from 0"),
    "head": Column("head, from 0; -1 where the component has none"),
    "position": Column("token position, from 0"),
    "token": Column("the token there; several where pairs differ"),
    **_metrics(),
    "logit_diff_low": Column("lower end of the 95 % bootstrap over pairs, of logit_diff_normalised"),
    "logit_diff_high": Column("upper end of the 95 % bootstrap over pairs, of logit_diff_normalised"),
    "n_pairs": Column("pairs of a clean and a corrupted example", COUNT),
    "n_dropped": Column("pairs left out: their prompts differ in length or their answers are equal", COUNT),
    "attribution": Column("estimate of logit_diff_normalised by gradients between the runs; NaN where not asked for"),
    "attribution_r": Column("correlation of attribution and logit_diff_normalised over the map"),
    "attribution_n": Column("entries of the map that this is over: where a patch changes something", COUNT),
    **ANALYSIS,
    **RUN,
}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {"patch": PATCH}
RESULT: Final[Mapping[str, Columns]] = {"rows": PATCH}
