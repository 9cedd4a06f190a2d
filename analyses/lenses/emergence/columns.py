"""What the columns of the tables of emergence are: verdicts, curves, and the steps that `auto` chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qfl_interp.columns import (
    ANALYSIS,
    COUNT,
    DECADES,
    FRACTION,
    LOSS_UNIT,
    PROBES,
    RUN,
    STEP,
    Column,
    Columns,
    how_far,
)
from qfl_interp.plots.axes import TRAINING_AXES

_BOOTSTRAP: Final = "95 % bootstrap over the probes' test examples"


def _place(stem: str, text: str) -> dict[str, Column]:
    """A place on the axis of training, whose column is named by the axis."""
    only = "over {}, the first of FLOPs, tokens and steps that is known"
    return {
        f"{stem}_{axis.column}": Column(f"{text}; NaN without one", axis.unit, only.format(axis.unit))
        for axis in TRAINING_AXES
    }


VERDICTS: Final[Columns] = {
    "feature": Column("name of the task's feature"),
    "metric": Column('the probes\' loss: "log_loss" in nats, "mse" of numbers'),
    "third": Column('which labels: "beginning", "middle", "end" of those with a probe, or "all"'),
    "verdict": Column(
        '"quiet": learned before the loss moved; "loud": as it moved or after; "not learned"; or why there is none'
    ),
    "certain": Column("whether the lead's range leaves no other verdict"),
    "reason": Column("how the verdict came about, in words"),
    **_place("onset", "where the third's probe loss falls below `ratio` times the baseline for good"),
    "onset_step_before": Column("the checkpoint before the onset", COUNT),
    "onset_step_after": Column("the checkpoint after it", COUNT),
    "lead_log10": Column("how far the onset lies before the transition's start; below 0: behind it", DECADES),
    "lead_low": Column(
        "lower end of the lead's range: spacing of checkpoints and validations, and the bootstrap", DECADES
    ),
    "lead_high": Column("upper end of that range", DECADES),
    "bootstrap_low": Column(f"lower end of the {_BOOTSTRAP}, of lead_log10", DECADES),
    "bootstrap_high": Column(f"upper end of the {_BOOTSTRAP}, of lead_log10", DECADES),
    "learned_share": Column("share of the resamples in which there is an onset", FRACTION),
    "baseline": Column("the untrained models' probe loss, mean over them"),
    "best": Column("lowest probe loss at any checkpoint"),
    "fraction_at_start": Column("probe loss at the transition's start over the baseline", "ratio"),
    "fraction_low": Column(f"lower end of the {_BOOTSTRAP}, of fraction_at_start", "ratio"),
    "fraction_high": Column(f"upper end of the {_BOOTSTRAP}, of fraction_at_start", "ratio"),
    "ratio": Column("a feature is learned once its probe loss stays below this share of the baseline", "ratio"),
    "transition_found": Column("whether the validation loss leaves a plateau and falls"),
    **_place("transition_start", "where 5 % of the loss's fall is done"),
    **_place("transition_end", "where 95 % of it is done"),
    **_place("plateau_start", "where the plateau before it begins"),
    "plateau_loss": Column("validation loss over the answer alone on the plateau", LOSS_UNIT),
    "final_loss": Column("validation loss over the answer alone after the fall", LOSS_UNIT),
    "transition_reason": Column("what was found of the transition, in words"),
    "n_bootstrap": Column("resamples of the bootstrap; 0 where there is none", COUNT),
    **RUN,
    **PROBES,
    **ANALYSIS,
}
CURVES: Final[Columns] = {
    "feature": Column("name of the task's feature"),
    "metric": Column('the probes\' loss: "log_loss" in nats, "mse" of numbers'),
    "third": Column('which labels: "beginning", "middle", "end" of those with a probe, or "all"'),
    **how_far(),
    "geometric": Column(
        "test loss of each label's best layer by training loss, geometric mean over the third's labels"
    ),
    "arithmetic": Column("the same, arithmetic mean"),
    "baseline_geometric": Column("geometric of the untrained models, mean over them; NaN without any"),
    "baseline_arithmetic": Column("arithmetic of the untrained models, mean over them; NaN without any"),
    "shuffled_geometric": Column("geometric of probes fitted on shuffled labels; NaN without that control"),
    "n_labels": Column("labels of the third with a probe", COUNT),
    **RUN,
    **PROBES,
    **ANALYSIS,
}
CHOSEN: Final[Columns] = {**STEP, **RUN}
# The tables beside a run.
TABLES: Final[Mapping[str, Columns]] = {
    "emergence": VERDICTS,
    "emergence_curve": CURVES,
    "emergence_steps": CHOSEN,
}
RESULT: Final[Mapping[str, Columns]] = {"rows": VERDICTS}
