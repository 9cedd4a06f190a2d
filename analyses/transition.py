"""The transition of a loss curve: what verdicts are measured against, and what figures shade."""

from __future__ import annotations

import math

from qfl_interp.analyses.loss_curve import LOSS, LossCurve, known_loss_curve
from qfl_interp.data.task import Task
from qfl_interp.emergence.transition import Transition, find_transition, no_transition
from qfl_interp.plots.panels import Shade
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import column

# Validations after step 0 that the search for a transition needs.
_FEWEST = 3
NO_BASELINE = "the task has no random baseline: the whole curve was searched"


def base_rate(task: Task, unit: str) -> float:
    """The loss of the best constant guess over the answer alone; NaN where it is not known in this unit.

    A task knows it in its own unit, nats or half squared errors, and a loss in another one cannot be held against it.
    """
    return task.baselines.get("base_rate", math.nan) if unit == task.loss_unit else math.nan


def known(level: float) -> float | None:
    """A level as `find_transition` takes it: None for NaN."""
    return None if math.isnan(level) else level


def loss_transition(curve: LossCurve, task: Task) -> Transition:
    """The transition of the loss over the answer alone, along the curve's axis and in its unit.

    Without the task's random baseline ("base_rate") the whole curve is searched, which `reason` says. Checkpoints too
    few for a search have none.

    Raises:
        ValueError: The loss is not finite, or training validated it fewer than 3 times after step 0.
    """
    rows = curve.validated
    places, chance = column(rows, curve.axis.column), known(base_rate(task, curve.unit))
    after = int((places > 0).sum())
    if not curve.logged and after < _FEWEST:
        return no_transition(f"{after} checkpoints after step 0, and a transition needs at least {_FEWEST}")
    found = find_transition(places, column(rows, LOSS), chance_loss=chance)
    return found if chance is not None else found.with_reason(f"{found.reason}; {NO_BASELINE}")


def shaded_transition(run: Checkpoints) -> Shade | None:
    """What a figure over training shades; None where the loss has no transition, or is not known yet."""
    curve = known_loss_curve(run)
    if curve is None:
        return None
    try:
        found = loss_transition(curve, run.task)
    except ValueError:
        return None
    return Shade(found.start_flops, found.end_flops, "loss transition") if found.found else None
