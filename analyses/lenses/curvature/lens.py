"""Curvature of a run's loss and the soft rank of its residual stream, checkpoint by checkpoint.

What is measured at one checkpoint is in `curvature_at` and `residual_ranks`; here a run's checkpoints are gone through.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field

import pandas as pd
import torch
from plotly.graph_objects import Figure
from torch import Tensor

from analyses.checkpoints import over_checkpoints
from analyses.lenses.curvature.figure import curvature_figure
from analyses.lenses.curvature.measure import (
    NOT_SAVED,
    UNKNOWN,
    UNREADABLE,
    Shared,
    load,
    measure,
    shared_of,
    trained_loss,
)
from analyses.lenses.curvature.ranks import rank_rows
from analyses.lenses.curvature.ranks_figure import soft_rank_figure
from analyses.lenses.curvature.section import CurvatureTables
from analyses.models_at import trained_at
from analyses.result import Result
from analyses.stored import stored_rows
from qfl_interp.curvature import CurvatureConfig, SgldConfig, estimate_learning_coefficient
from qfl_interp.data.task import Batch
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import distinct, records, select

LENS, RANKS, COEFFICIENTS = "curvature", "soft_ranks", "learning_coefficient"
_MIN_CHECKPOINTS = 2
_SUMMARY = (
    "step", "loss", "sharpness", "sharpness_over_edge", "preconditioned_sharpness", "preconditioned_over_edge",
    "step_sharpness", "cos_gradient_step", "cos_step_cumulative", "weight_norm", "learning_coefficient",
    "learning_coefficient_std", "n_finite_chains",
)  # fmt: skip
_WITHOUT = {
    NOT_SAVED: "no preconditioned sharpness: Adam's moments were not saved (train with save_optimizer=True)",
    UNKNOWN: "no edges and no preconditioned sharpness: learning rate and optimiser are not known",
}


@dataclass(frozen=True, repr=False)
class CurvatureResult(Result):
    """Curvature over a run's checkpoints; `rows` has one row a step, with the columns of docs/curvature.md.

    Attributes:
        ranks: One row a step, layer and position (-1: all scored positions together): `n_samples`, and of the residual
            stream after the layer `stable_rank`, `participation_ratio`, `entropy_rank`, `stable_rank_centred`,
            `participation_ratio_centred`.
    """

    ranks: pd.DataFrame = field(repr=False)

    def plot_ranks(self) -> Figure:
        """The stable rank at every layer and position, with a slider over steps."""
        return soft_rank_figure(self.ranks)


def curvature(
    run: Checkpoints,
    steps: Steps = "all",
    *,
    config: CurvatureConfig | None = None,
    sgld: SgldConfig | None = None,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> CurvatureResult:
    """Measure sharpness, the curvature along the steps taken, and soft ranks over the checkpoints of a run.

    What is in the run's tables already is not computed again; a call that was stopped goes on where it was.

    Args:
        run: What to look at.
        steps: The checkpoints, as in `probe`. The step taken from each leads to the next *saved* checkpoint, whichever
            are asked for here.
        config: Examples and accuracy.
        sgld: Estimate the local learning coefficient too, with these chains; not by default, for it costs
            `n_chains (n_burn_in + n_draws)` gradients a checkpoint.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step. Columns that need what a run does not have are NaN: edges and updates need a `Run`, whose
        learning rate and data are known; the preconditioner and updates need Adam's moments, which training keeps with
        `save_optimizer=True`. Column `moments` says which it is, and the result's title does where they are missing.

    Raises:
        QflError: Unknown step, fewer than 2 saved checkpoints, or something at a checkpoint that is not finite (names
            the step; what was computed before is kept).

    References:
        arXiv 2103.00065, arXiv 2207.14484 (edges); arXiv 2502.13110 (soft rank, sharpness along the step: its formulas
        are this library's reconstruction); arXiv 2308.12108 (learning coefficient).
    """
    config = config or CurvatureConfig()
    saved, at, table = run.steps, run.resolve_steps(steps), run.table(LENS)
    if len(saved) < _MIN_CHECKPOINTS:
        raise QflError(
            f"curvature along the steps taken needs at least {_MIN_CHECKPOINTS} saved checkpoints, got {len(saved)} of "
            f"{run.path}: {saved}. Train with a larger n_checkpoints, or open a suite of several steps."
        )
    following: dict[int, int | None] = dict(zip(saved, [*saved[1:], None], strict=True))
    parts = {step: _part(config, step, following[step]) for step in at}
    missing = [step for step in at if not table.has(parts[step])]
    prepare = functools.partial(shared_of, run, config)
    work = functools.partial(_measure_at, run, device, following)
    over_checkpoints(missing, prepare, work, label="measuring curvature", jobs=jobs, progress=progress)
    rows = table.read([parts[step] for step in at])
    if sgld is not None:
        names = {step: _chains_part(config, sgld, step) for step in at}
        missing = [step for step in at if not run.table(COEFFICIENTS).has(names[step])]
        work = functools.partial(_sample_at, run, device, sgld)
        over_checkpoints(missing, prepare, work, label="sampling near minima", jobs=jobs, progress=progress)
        rows = _with_coefficients(rows, run.table(COEFFICIENTS).read([names[step] for step in at]))
    ranks = run.table(RANKS).read([_ranks_part(config, step) for step in at])
    return CurvatureResult(
        "; ".join([f"curvature of {run.run_id} on {rows['n_examples'].iloc[0]} training examples", *_notes(rows)]),
        rows.filter(list(_SUMMARY)).dropna(axis="columns", how="all"),
        rows,
        lambda: curvature_figure(rows, ranks),
        ranks,
    )


def _notes(rows: pd.DataFrame) -> list[str]:
    """What the rows lack, and why."""
    notes = [_WITHOUT[kind] for kind in distinct(rows, "moments") if kind in _WITHOUT]
    lost = rows["step_to"].notna() & rows["step_norm"].isna()
    for steps, what in (
        (distinct(select(rows, moments=UNREADABLE), "step"), "Adam's moments are damaged (see `qfl verify`) at step"),
        (distinct(pd.DataFrame(rows.loc[lost]), "step"), "the next checkpoint is not finite after step"),
    ):
        if steps:
            notes.append(f"{what} {', '.join(str(step) for step in steps)}")
    if "n_finite_chains" in rows:
        away = pd.DataFrame(rows.loc[rows["n_finite_chains"] < rows["n_chains"]])
        if len(away):
            counts = (f"{row['n_finite_chains']} of {row['n_chains']} at step {row['step']}" for row in records(away))
            notes.append(f"chains that stayed finite: {', '.join(counts)} (take a smaller step size)")
    return notes


def stored_curvature(run: Checkpoints) -> CurvatureTables | None:
    """The tables of one configuration, of several the one with most steps; None without any."""
    rows = stored_rows(run, LENS, ["run_id"])
    if rows.empty:
        return None
    # What was the last checkpoint when it was measured, and is not now, has a second row: the one with a next step.
    rows = rows.sort_values(["step", "step_to"], ignore_index=True).drop_duplicates("step", ignore_index=True)
    ranks = select(run.table(RANKS).read(), analysis=rows["analysis"].iloc[0])
    sampled = stored_rows(run, COEFFICIENTS, ["run_id"])
    return CurvatureTables(_with_coefficients(rows, sampled) if len(sampled) else rows, ranks)


def _part(config: CurvatureConfig, step: int, to: int | None) -> str:
    """The table part of a checkpoint's curvature and of the step to the next one."""
    return f"{trained_at(step)}{'' if to is None else f'_to_{to:08d}'}-{config.digest()}"


def _ranks_part(config: CurvatureConfig, step: int) -> str:
    """The table part of a checkpoint's soft ranks."""
    return f"{trained_at(step)}-{config.digest()}"


def _chains_part(config: CurvatureConfig, sgld: SgldConfig, step: int) -> str:
    """The table part of a checkpoint's learning coefficient."""
    return f"{trained_at(step)}-{digest(json.dumps([config.digest(), sgld.digest()]))}"


def _measure_at(
    run: Checkpoints, device: str | torch.device, following: dict[int, int | None], shared: Shared, step: int
) -> None:
    """Measure one checkpoint and write its rows; the table of curvature last, which says that it is done."""
    to = following[step]
    try:
        row = measure(run, shared, step, to, device)
        ranks = rank_rows(load(run, shared, step, device), shared.rank_batch)
    except ValueError as error:
        raise _stopped(run, step, error) from error
    identity = {**run.identity(), "step": step, "flops": run.flops(step), "analysis": shared.config.digest()}
    run.table(RANKS).write(_ranks_part(shared.config, step), ranks.assign(**identity))
    run.table(LENS).write(_part(shared.config, step, to), pd.DataFrame([identity | row]))


def _sample_at(run: Checkpoints, device: str | torch.device, sgld: SgldConfig, shared: Shared, step: int) -> None:
    """Estimate the learning coefficient at one checkpoint and write it, with the chains' losses."""
    tokens, mask = shared.batch
    try:
        model = load(run, shared, step, device)

        def mean_loss(parameters: Tensor, rows: Tensor) -> Tensor:
            loss = trained_loss(model, Batch(tokens[rows], mask[rows]))
            return loss(shared.space.unflatten(parameters)).sum() / len(rows)

        start = trained_loss(model, shared.batch)
        vector = shared.space.flatten(start.parameters())
        found = estimate_learning_coefficient(mean_loss, vector, len(tokens), sgld)
    except ValueError as error:
        raise _stopped(run, step, error) from error
    row = {
        "learning_coefficient": found.estimate,
        "learning_coefficient_std": found.std,
        "learning_coefficient_drift": found.drift,
        "n_chains": sgld.n_chains,
        "n_finite_chains": found.n_finite,
    }
    part = _chains_part(shared.config, sgld, step)
    where = {**run.identity(), "step": step, "flops": run.flops(step), "analysis": part.rpartition("-")[2]}
    run.table(COEFFICIENTS).write(part, pd.DataFrame([where | row]), {"losses": found.losses})


def _stopped(run: Checkpoints, step: int, error: ValueError) -> QflError:
    """The error that names the checkpoint."""
    return QflError(
        f"curvature of {run.path} stopped at step {step}: {error} Checkpoints measured before are kept; leave out "
        "steps at which the run diverged."
    )


def _with_coefficients(rows: pd.DataFrame, sampled: pd.DataFrame) -> pd.DataFrame:
    """The rows with the learning coefficients of their steps, NaN where there are none."""
    own = [name for name in sampled if name == "step" or name not in rows]
    return rows.merge(sampled[own], on="step", how="left")
