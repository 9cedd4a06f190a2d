"""The report's sections on curvature: sharpness beside its edge, the steps taken, soft ranks."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from analyses.lenses.curvature.figure import curvature_figure
from analyses.lenses.curvature.ranks_figure import soft_rank_figure
from qfl_interp.report.page import Section
from qfl_interp.tables import column, distinct


class CurvatureTables(NamedTuple):
    """What the figures on curvature show.

    Attributes:
        rows: Table "curvature", one row a step, with the learning coefficients where they were sampled.
        ranks: Table "soft_ranks", one row a step, layer and position.
    """

    rows: pd.DataFrame
    ranks: pd.DataFrame


def curvature_sections(tables: CurvatureTables | None) -> list[Section]:
    """Sharpness, steps, angles and soft ranks over compute, and the soft ranks of every position.

    Args:
        tables: Of one configuration; None, or without a step after the first: no section.
    """
    if tables is None or not (column(tables.rows, "flops") > 0).any():
        return []
    downloads = {"curvature": tables.rows, "soft_ranks": tables.ranks}
    return [
        Section(
            "Curvature",
            text=_summary(tables.rows),
            figure=curvature_figure(tables.rows, tables.ranks),
            note="The sharpness is the largest eigenvalue of the Hessian of the mean training loss, on the same "
            "examples at every checkpoint. Above the dotted edge a step of the learning rate would grow on a quadratic "
            "of that curvature. The step taken leads from each checkpoint to the next; where Adam's moments were "
            "saved, the single next update is shown too.",
            downloads=downloads,
        ),
        Section(
            "Soft rank by layer and position",
            figure=soft_rank_figure(tables.ranks),
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
    if distinct(rows, "moments") == ["not saved"]:
        text += " Adam's moments were not saved, so there is no preconditioned sharpness (`save_optimizer=True`)."
    return text
