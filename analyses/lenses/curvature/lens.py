"""Curvature of a run's loss and the soft rank of its residual stream, checkpoint by checkpoint.

What is measured at one checkpoint is in `measure` and `ranks`; here a run's checkpoints are gone through.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from plotly.graph_objects import Figure
from torch import Tensor

from qfl_interp.analyses.at_step import View
from qfl_interp.analyses.checkpoints import n_processes
from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.lenses.curvature.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.curvature.figure import curvature_figure, curvature_panels
from qfl_interp.analyses.lenses.curvature.measure import (
    NOT_ADAM,
    NOT_SAVED,
    UNKNOWN,
    UNREADABLE,
    Shared,
    load,
    measure,
    shared_of,
    trained_loss,
)
from qfl_interp.analyses.lenses.curvature.ranks import rank_rows
from qfl_interp.analyses.lenses.curvature.ranks_figure import soft_rank_figure
from qfl_interp.analyses.lenses.curvature.section import curvature_sections
from qfl_interp.analyses.lenses.curvature.tables import COEFFICIENTS, LENS, RANKS, stored, stored_at, with_coefficients
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.analyses.step_table import StepTable
from qfl_interp.analyses.transition import shaded_transition
from qfl_interp.curvature import CurvatureConfig, SgldConfig, estimate_learning_coefficient
from qfl_interp.curvature.eigenpairs import solver_vectors
from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.data.examples import fitted_split
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import HookedModel
from qfl_interp.plots.panels import Panel, mark_step
from qfl_interp.report.page import Section
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import distinct, records, select

_MIN_CHECKPOINTS = 2
_SUMMARY = (
    "step", "loss", "sharpness", "sharpness_over_edge", "preconditioned_sharpness", "preconditioned_over_edge",
    "step_sharpness", "cos_gradient_step", "cos_step_cumulative", "weight_norm", "learning_coefficient",
    "learning_coefficient_std", "n_finite_chains",
)  # fmt: skip
_WITHOUT = {
    NOT_SAVED: "no preconditioned sharpness: Adam's moments were not saved (train with save_optimizer=True)",
    NOT_ADAM: "no preconditioned sharpness and no next update: the optimiser is not AdamW",
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


@dataclass(frozen=True)
class Curvature(PartLens[Shared, HookedModel]):
    """What `curvature` measures at a checkpoint; a piece's key `to` is the next saved step, None after the last."""

    name = LENS
    question = "How sharply does the loss bend, and how do the steps that were taken lie in it?"
    tables, result = TABLES, RESULT
    order = 100

    config: CurvatureConfig = field(default_factory=CurvatureConfig)

    def part(self, piece: Piece) -> str:
        to = piece.key["to"]
        return f"{piece.at}{'' if to is None else f'_to_{to:08d}'}-{self.config.digest()}"

    def ranks_part(self, at: ModelAt) -> str:
        """The table part of a checkpoint's soft ranks."""
        return f"{at}-{self.config.digest()}"

    def fetch(self, missing: Mapping[ModelAt, Sequence[Piece]], *, jobs: int, progress: bool) -> None:
        """Computes nothing; raises `QflError` where the vectors of a checkpoint's work do not fit into memory."""
        n_parameters = len(ParameterSpace.of(self.run.load_model(next(iter(missing)).step)))
        # Of float64: the eigensolver's, and where training began, the point, its gradient, steps and moments.
        vectors, together = solver_vectors(1) + 12, n_processes(jobs, len(missing))
        what = f"{vectors} vectors of {n_parameters:,} parameters in each of {together} processes"
        needed = 8 * vectors * n_parameters * together
        require_memory(needed, available_bytes(self.device), what, "Take fewer jobs, a smaller max_products or model.")

    def share(self) -> Shared:
        return shared_of(self.run, self.config)

    def view(self, shared: Shared, at: ModelAt) -> HookedModel:
        with self._at(at.step):
            return load(self.run, shared, at.step, self.device)

    def rows(self, shared: Shared, view: HookedModel, piece: Piece) -> Any:
        """The checkpoint's row; its soft ranks have a table of their own."""
        with self._at(piece.at.step):
            row = measure(self.run, shared, view, piece.at.step, piece.key["to"])
            ranks = rank_rows(view, shared.rank_batch)
        where = self.run.identity() | self.columns(piece)
        # Before the row, which says that the checkpoint is done.
        self.run.table(RANKS).write(self.ranks_part(piece.at), ranks.assign(**where), steps=self.sources(piece))
        return pd.DataFrame([where | row])

    def sources(self, piece: Piece) -> tuple[int, ...]:
        """Also where its step leads, and where training began."""
        to = piece.key["to"]
        return (self.run.steps[0], piece.at.step, *(() if to is None else (to,)))

    def columns(self, piece: Piece) -> dict[str, Any]:
        """Without the key, which the row itself has."""
        return {**self.where(piece), "analysis": self.analysis(piece)}

    @contextmanager
    def _at(self, step: int) -> Iterator[None]:
        """Name the checkpoint in errors."""
        try:
            yield
        except ValueError as error:
            raise QflError(
                f"curvature of {self.run.path} stopped at step {step}: {error} Checkpoints measured before are kept; "
                "leave out steps at which the run diverged."
            ) from error

    @classmethod
    def views(cls, run: Checkpoints) -> list[View]:
        """The curves with the step marked, and the soft ranks of every layer and position at it."""
        curves, ranks = StepTable(run.table(LENS)), StepTable(run.table(RANKS))
        if not curves.steps:
            return []

        def draw(_: pd.DataFrame, step: int) -> Figure:
            found = stored_at(run, step)
            if found is None:
                raise QflError(
                    f"the curvature of {run.path} is measured at step 0 alone, which has no place on a logarithmic "
                    "axis. Measure a later step too."
                )
            return mark_step(curvature_figure(*found), step, {"step": step, **run.how_far(step)})

        def draw_ranks(rows: pd.DataFrame, step: int) -> Figure:
            return soft_rank_figure(rows, step=step, slider=False)

        about = "Over how many directions does the residual stream spread at each layer and position?"
        found = [curves.view(cls.name, cls.question, draw)]
        if ranks.steps:
            found.append(ranks.view("curvature/soft_ranks", about, draw_ranks, title="Soft ranks"))
        return found

    @classmethod
    def panels(cls, page: Page) -> list[Panel]:
        found = stored(page.run)
        return [] if found is None else curvature_panels(*found)

    @classmethod
    def sections(cls, page: Page) -> list[Section]:
        found = stored(page.run)
        return [] if found is None else curvature_sections(*found, transition=shaded_transition(page.run))


@dataclass(frozen=True)
class Chains(Curvature):
    """Sampling near the minimum that a checkpoint lies in: its learning coefficient, and the chains' losses."""

    name = COEFFICIENTS

    sgld: SgldConfig = field(default_factory=SgldConfig)

    def part(self, piece: Piece) -> str:
        return f"{piece.at}-{digest(json.dumps([self.config.digest(), self.sgld.digest()]))}"

    def rows(self, shared: Shared, view: HookedModel, piece: Piece) -> Any:
        def mean_loss(parameters: Tensor, rows: Tensor) -> Tensor:
            loss = trained_loss(self.run, view, shared.batch.rows(rows))
            return loss(shared.space.unflatten(parameters)).sum() / len(rows)

        with self._at(piece.at.step):
            start = shared.space.flatten(trained_loss(self.run, view, shared.batch).parameters())
            found = estimate_learning_coefficient(mean_loss, start, len(shared.batch.tokens), self.sgld)
        row = {
            "learning_coefficient": found.estimate,
            "learning_coefficient_std": found.std,
            "learning_coefficient_drift": found.drift,
            "n_chains": self.sgld.n_chains,
            "n_finite_chains": found.n_finite,
        }
        return pd.DataFrame([self.run.identity() | self.columns(piece) | row]), {"losses": found.losses}


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

    A call skips what the run's tables have already; one that was stopped goes on where it was.

    Examples:
        `qfl curvature runs/add16`,
        `qfl curvature runs/add16 --steps log:20 --learning-coefficient --out c.html`

    Args:
        run: What to look at.
        steps: The checkpoints, as in `probe`. The step taken from each leads to the next *saved* checkpoint, whichever
            are asked for here.
        config: Examples and accuracy.
        sgld (--learning-coefficient): Estimate the local learning coefficient too, with these chains. Not by default,
            for it costs `n_chains (n_burn_in + n_draws)` gradients a checkpoint.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step. Columns that need what a run does not have are NaN: edges and updates need a `Run`, whose
        learning rate and data are known; the preconditioner and updates need Adam's moments, which training keeps with
        `save_optimizer=True`. Column `moments` says which it is, and the result's title does where they are missing.

    Raises:
        QflError: Unknown step, fewer than 2 saved checkpoints, too little memory, or something at a checkpoint that is
            not finite (names the step; what was computed before is kept).

    References:
        arXiv 2103.00065, arXiv 2207.14484 (edges); arXiv 2502.13110 (soft rank, sharpness along the step: its formulas
        are this library's reconstruction); arXiv 2308.12108 (learning coefficient).
    """
    saved, at = run.steps, run.resolve_steps(steps)
    if len(saved) < _MIN_CHECKPOINTS:
        raise QflError(
            f"curvature along the steps taken needs at least {_MIN_CHECKPOINTS} saved checkpoints, got {len(saved)} of "
            f"{run.path}: {saved}. Train with a larger n_checkpoints, or open a suite of several steps."
        )
    config = config or CurvatureConfig()
    following = dict(zip(saved, [*saved[1:], None], strict=True))
    pieces = [Piece(ModelAt(step), {"to": following[step]}) for step in at]
    lens = Curvature(run, device, config)
    rows = lens.compute(pieces, label="measuring curvature", jobs=jobs, progress=progress)
    if sgld is not None:
        chains = Chains(run, device, config, sgld)
        sampled = chains.compute(pieces, label="sampling near minima", jobs=jobs, progress=progress)
        rows = with_coefficients(rows, sampled)
    ranks = run.table(RANKS).read([lens.ranks_part(piece.at) for piece in pieces])
    examples = {"train": "training", "val": "held-out"}[fitted_split(run.task)]
    return CurvatureResult(
        "; ".join([f"curvature of {run.run_id} on {rows['n_examples'].iloc[0]} {examples} examples", *_notes(rows)]),
        rows.filter(list(_SUMMARY)).dropna(axis="columns", how="all"),
        rows,
        functools.partial(curvature_figure, ranks=ranks, transition=shaded_transition(run)),
        ranks,
        columns=RESULT,
        cube=Cube(("step",)),
        of=run.label,
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
