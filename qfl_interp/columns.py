"""What the columns of tables mean: a definition and a unit each, and those that many tables share.

A lens says which tables it writes and what their columns are (`analyses.lens.Lens.tables`); a test compares that with
what it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

# Units that come again.
LOSS_UNIT: Final = "loss unit"
FRACTION: Final = "fraction"
COUNT: Final = "count"
DECADES: Final = "decades"


class Column(NamedTuple):
    """What a column holds.

    Attributes:
        text: Its definition, as a sentence without a full stop.
        unit: Of its numbers: "nats", "FLOPs", "fraction" (0 to 1), "count"; "loss unit" is `Run.loss_unit` a token,
            nats for the cross-entropy; empty of names and of numbers without one.
        only: When the column is there, where it is not always.
    """

    text: str
    unit: str = ""
    only: str = ""


# The columns of one table by name, in its order.
Columns = Mapping[str, Column]

# Whose row it is.
RUN: Final[Columns] = {
    "run_id": Column("the run or suite: task, length and a digest of its configuration"),
    "config_hash": Column("digest of the run's configuration"),
    "seed": Column("seed of the run: initial weights, data and evaluation sets"),
}
# Of which task, in tables of sweeps.
TASK: Final[Columns] = {
    "task": Column("its name"),
    "length": Column("the task's length"),
}
_ENDS: Final = {"low": "lower", "high": "upper"}
# Which call computed it.
ANALYSIS: Final[Columns] = {"analysis": Column("digest of the call's settings; equal in all rows of one call")}
PROBES: Final[Columns] = {"settings": Column("digest of the probes' configuration")}
STEP: Final[Columns] = {"step": Column("updates completed at the checkpoint; 0 is the initial model", COUNT)}


def how_far(stem: str = "{}", *, step: bool = True, of: str = "the checkpoint") -> dict[str, Column]:
    """The columns that say how far training was, with `{}` in their names' stem for the quantity.

    FLOPs always; tokens where FLOPs are not known and tokens are (`Checkpoints.how_far`).
    """
    text = f"updates completed at {of}; 0 is the initial model"
    first = {stem.format("step"): Column(text, COUNT)} if step else {}
    return first | {
        stem.format("flops"): Column(f"nominal training compute up to {of}; NaN where it is not known", "FLOPs"),
        stem.format("tokens"): Column(
            f"tokens trained on up to {of}", COUNT, "of suites whose FLOPs are not known and tokens are"
        ),
    }


def with_interval(
    name: str, text: str, unit: str = "", *, of: str = "95 % bootstrap over examples"
) -> dict[str, Column]:
    """A column with the ends of its interval."""
    ends = {f"{name}_{end}": Column(f"{where} end of the {of}, of {name}", unit) for end, where in _ENDS.items()}
    return {name: Column(text, unit)} | ends
