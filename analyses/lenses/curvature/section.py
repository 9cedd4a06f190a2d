"""The report's sections on curvature: sharpness beside its edge, the steps taken, soft ranks."""

from __future__ import annotations

import pandas as pd

from qfl_interp.analyses.lenses.curvature.figure import curvature_figure
from qfl_interp.analyses.lenses.curvature.measure import NOT_SAVED
from qfl_interp.analyses.lenses.curvature.ranks_figure import soft_rank_figure
from qfl_interp.plots.panels import Shade
from qfl_interp.report.page import Section
from qfl_interp.tables import column, distinct


def curvature_sections(rows: pd.DataFrame, ranks: pd.DataFrame, *, transition: Shade | None = None) -> list[Section]:
    """Sharpness, steps, angles and soft ranks over compute, and the soft ranks of every position.

    Args:
        rows: Table "curvature" of one configuration, with a step after the first; learning coefficients too.
        ranks: Table "soft_ranks", likewise.
        transition: Of the validation loss, shaded; None for none.
    """
    return [
        Section(
            "Curvature",
            text=_summary(rows),
            figure=curvature_figure(rows, ranks, transition=transition),
            note="The sharpness is the largest eigenvalue of the Hessian of the mean training loss, on the same "
            "examples at every checkpoint. Above the dotted edge a step of the learning rate would grow on a quadratic "
            "of that curvature. The step taken leads from each checkpoint to the next; where Adam's moments were "
            "saved, the single next update is shown too.",
            downloads={"curvature": rows, "soft_ranks": ranks},
        ),
        Section(
            "Soft rank by layer and position",
            figure=soft_rank_figure(ranks),
            note="Over how many directions the residual stream spreads at each position of held-out examples, their "
            "mean subtracted. A cross: all examples have the same tokens so far.",
        ),
    ]


def _summary(rows: pd.DataFrame) -> str:
    """Where the sharpness was highest, against its edge, and what a run lacks."""
    sharpness = column(rows, "sharpness")
    top = int(sharpness.argmax())
    text = f"The sharpness is highest at step {int(column(rows, 'step')[top]):,}: {sharpness[top]:.3g}."
    for name, what in (("sharpness_over_edge", "2/lr"), ("preconditioned_over_edge", "Adam's edge")):
        shares = column(rows.dropna(subset=[name]), name)
        if len(shares):
            text += f" Relative to {what} it reaches {shares.max():.2g} and is above 1 at {int((shares > 1).sum())} of "
            text += f"{len(shares)} checkpoints."
    n_loose = int((column(rows, "sharpness_converged") == 0).sum())
    if n_loose:
        text += f" At {n_loose} checkpoints the eigenvalue did not converge: see `curvature.csv`."
    if distinct(rows, "moments") == [NOT_SAVED]:
        text += " Adam's moments were not saved, so there is no preconditioned sharpness (`save_optimizer=True`)."
    return text
