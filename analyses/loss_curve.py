"""The loss over a training: what it logged, or what the checkpoints lose on held-out examples where it kept no log."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import pandas as pd

from qfl_interp.analyses.lenses.validate.lens import LENS, Validate, validate
from qfl_interp.analyses.models_at import models_at
from qfl_interp.analyses.part_lens import Piece
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.plots.axes import TrainingAxis, training_axis
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import column

# What verdicts are measured against: the loss over the answer alone.
LOSS: Final = "val_loss_answer"


class LossCurve(NamedTuple):
    """Losses of a series on held-out examples.

    Attributes:
        rows: As `Run.metrics`: `step`, `flops` (or what else says how far it is), `val_loss` and so on; NaN between
            validations.
        logged: Whether training measured them; if not, the checkpoints were.
        final: Whether they will stay as they are.
        unit: What the losses are counted in.
    """

    rows: pd.DataFrame
    logged: bool
    final: bool
    unit: str

    @property
    def validated(self) -> pd.DataFrame:
        """The rows of validations."""
        return self.rows.dropna(subset=[LOSS])

    @property
    def axis(self) -> TrainingAxis:
        """What all that stands beside it is drawn over and measured along."""
        return training_axis(self.validated)

    @property
    def key(self) -> str:
        """What names it in a result that rests on it; empty of a log, which its run names."""
        if self.logged:
            return ""
        values = (column(self.validated, name) for name in ("step", self.axis.column, LOSS))
        return f" {digest(*(array.tobytes() for array in values))}"


def loss_curve(run: Checkpoints, **how: Any) -> LossCurve:
    """The loss over a training; of checkpoints without a log they are measured, where they are not yet.

    Args:
        run: What to look at.
        **how: `jobs`, `device` and `progress`, as `validate` takes them.

    Raises:
        QflError: As `validate`, or the log is not what was written.
    """
    if logged := _logged(run):
        return logged
    try:
        rows = validate(run, "all", **how).rows
    except QflError as error:
        raise QflError(
            f"{error}\nThe loss of every checkpoint is needed here: to go on without one that cannot be read, move it "
            "out of the folder, or open the suite with the other steps."
        ) from error
    return LossCurve(rows, logged=False, final=True, unit=run.loss_unit)


def known_loss_curve(run: Checkpoints) -> LossCurve | None:
    """As `loss_curve`, without computing anything: None where a checkpoint without a log is not measured yet."""
    found, lens = _logged(run), Validate.of(run, None, "cpu")
    if found is None:
        table, parts = run.table(LENS), [lens.part(Piece(at)) for at in models_at(run, "all")]
        if all(table.has(part) for part in parts):
            found = LossCurve(table.read(parts), logged=False, final=True, unit=run.loss_unit)
    return found


def _logged(run: Checkpoints) -> LossCurve | None:
    """What training logged, if validations are in it."""
    rows = run.metrics
    return (
        None
        if rows is None or LOSS not in rows
        else LossCurve(rows, logged=True, final=run.finished, unit=run.loss_unit)
    )
