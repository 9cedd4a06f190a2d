"""The transition of a run's validation loss: what verdicts are measured against, and what figures shade."""

from __future__ import annotations

import math

from qfl_interp.data.task import Task
from qfl_interp.emergence.transition import Transition, find_transition
from qfl_interp.plots.panels import Shade
from qfl_interp.recipes import loss_unit
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import column


def base_rate(task: Task, loss: str) -> float:
    """The loss of the best constant guess over the answer alone; NaN where it is not known of this loss.

    A task knows it in its own unit, nats or half squared errors, and a loss in another one cannot be held against it.
    """
    return task.baselines["base_rate"] if loss_unit(loss) == task.loss_unit else math.nan


def known(level: float) -> float | None:
    """A level as `find_transition` takes it: None for NaN."""
    return None if math.isnan(level) else level


def loss_transition(run: Run) -> Transition:
    """The transition of the validation loss over the answer alone, in the unit of the loss that was trained.

    Raises:
        ValueError: The loss is not finite, or was validated fewer than 3 times after step 0.
    """
    validated = run.metrics.dropna(subset=["val_loss_answer"])
    chance = known(base_rate(run.task, run.config.train.loss_name))
    return find_transition(column(validated, "flops"), column(validated, "val_loss_answer"), chance_loss=chance)


def shaded_transition(run: Checkpoints) -> Shade | None:
    """What a figure over compute shades; None where the loss has no transition, or there is no loss curve."""
    if not isinstance(run, Run):
        return None
    try:
        found = loss_transition(run)
    except ValueError:
        return None
    return Shade(found.start_flops, found.end_flops, "loss transition") if found.found else None
