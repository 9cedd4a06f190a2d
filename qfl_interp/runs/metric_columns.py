"""What the columns of a run's metrics are: one row a logged step."""

from __future__ import annotations

from typing import Final

from qfl_interp.columns import COUNT, FRACTION, LOSS_UNIT, Column, Columns

_VALIDATION: Final = "on steps with a validation; NaN between them"
_CROSS_ENTROPY: Final = "on steps with a validation, where the loss is the cross-entropy"
_OF_TOKENS: Final = "on steps with a validation, of a task of tokens"


# Each is counted twice: the ending of its columns, and over what.
_COUNTS: Final = (
    ("", "over all that is scored, `=` included as the paper counts"),
    ("_answer", "over the answer alone"),
)


def validation_columns(prefix: str = "val", note: str = "", only: str = "") -> dict[str, Column]:
    """Loss, exact match and chance of success on held-out examples, each twice."""
    found = {}
    for ending, over in _COUNTS:
        loss = f"mean validation loss a token, {over}{note}"
        exact = f"share of validation examples with every token right under greedy decoding, {over}{note}"
        chance = f"mean chance of writing a whole validation example rightly at temperature 1, {over}{note}"
        found |= {
            f"{prefix}_loss{ending}": Column(loss, LOSS_UNIT, only or _VALIDATION),
            f"{prefix}_exact{ending}": Column(exact, FRACTION, only or _OF_TOKENS),
            f"{prefix}_pass{ending}": Column(chance, FRACTION, only or _CROSS_ENTROPY),
        }
    return found


METRICS: Final[Columns] = {
    "step": Column("updates completed; 0 is the initial model", COUNT),
    "flops": Column("nominal training compute, as the paper counts it", "FLOPs"),
    "actual_flops": Column("compute of the matrix products, padding and real widths included", "FLOPs"),
    "lr": Column("learning rate of the update that led here; NaN at the first step"),
    "train_loss": Column(
        "mean loss a scored token of that update's batch, before it; NaN at the first step", LOSS_UNIT
    ),
    "grad_norm": Column("norm of that batch's gradient before clipping; NaN at the first step"),
    "seconds": Column("time spent on training so far, over all sessions", "seconds"),
    "tokens_per_s": Column("tokens a second, on the average so far", "tokens/s"),
    **validation_columns(),
    **validation_columns("val_free", ", without the fork's intervention", "of forks under an intervention"),
}
