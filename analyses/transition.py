"""The transition of a run's validation loss: what verdicts are measured against, and what figures shade."""

from __future__ import annotations

from qfl_interp.emergence.transition import Transition, find_transition
from qfl_interp.plots.panels import Shade
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import column


def loss_transition(run: Run) -> Transition:
    """The transition of the validation loss over the answer alone.

    Raises:
        ValueError: The loss is not finite, or was validated fewer than 3 times after step 0.
    """
    validated = run.metrics.dropna(subset=["val_loss_answer"])
    return find_transition(
        column(validated, "flops"), column(validated, "val_loss_answer"), chance_loss=run.task.baselines["base_rate"]
    )


def shaded_transition(run: Checkpoints) -> Shade | None:
    """What a figure over compute shades; None where the loss has no transition, or there is no loss curve."""
    if not isinstance(run, Run):
        return None
    try:
        found = loss_transition(run)
    except ValueError:
        return None
    return Shade(found.start_flops, found.end_flops, "loss transition") if found.found else None
