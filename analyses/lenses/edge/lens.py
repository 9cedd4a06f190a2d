"""Homogeneous networks at and beyond the edge of stability: the loss along the next step, sharpness, soft ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lenses.edge.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.edge.figure import edge_figure, edge_panels
from qfl_interp.analyses.models_at import models_at
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.analyses.stored import rows_of_one_call
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel
from qfl_interp.plots.lines import finite
from qfl_interp.plots.panels import Panel
from qfl_interp.report.page import Section
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints
from qfl_interp.runs.series import Steps as WhichSteps

LAYERS: Final = "edge_layers"
_SUMMARY: Final = (
    "step", "train_loss", "train_accuracy", "test_accuracy", "edge_ratio", "lambda_h", "lambda_p", "edge_ratio_p",
    "soft_rank", "gradient_weighted",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class EdgeResult(Result):
    """A homogeneous network's training, one row a checkpoint, with the columns of docs/edge_of_stability.md.

    Attributes:
        layers: One row a step and weight matrix: `xi`, `u`, `rho`, `cumulative_cosine`, `weight_norm`, and soft ranks
            of the features that it reads.
    """

    layers: pd.DataFrame = field(repr=False)


@dataclass(frozen=True)
class Edge(PartLens[Any, HookedModel]):
    """A part a checkpoint; a piece's key `measured` says whether its sharpness is."""

    name = "edge"
    question = "Is a step beyond the edge of stability, and what do the features do meanwhile?"
    tables, result = TABLES, RESULT
    order = 110

    n_sharpness: int = 128
    soft_rank: str = "stable_rank"

    def part(self, piece: Piece) -> str:
        return f"{piece.at}-{digest(repr((self.n_sharpness, self.soft_rank, piece.key['measured'])))}"

    def share(self) -> Any:
        from qfl_interp.analyses.lenses.edge.measure import shared_of  # with the networks, which pages do not need

        return shared_of(_homogeneous(self.run), self.n_sharpness)

    def rows(self, shared: Any, view: HookedModel, piece: Piece) -> pd.DataFrame:
        """The checkpoint's row; its layers have a table of their own."""
        from qfl_interp.analyses.lenses.edge.measure import measure

        run = _homogeneous(self.run)
        row, layers = measure(run, shared, view, piece.at.step, piece.key["measured"], self.soft_rank)
        # Before the row, which says that the checkpoint is done.
        where = run.identity() | self.columns(piece)
        run.table(LAYERS).write(self.part(piece), pd.DataFrame(layers).assign(**where), steps=self.sources(piece))
        return pd.DataFrame([row])

    @classmethod
    def panels_of(cls, rows: pd.DataFrame) -> list[Panel]:
        return edge_panels(rows)

    @classmethod
    def sections_of(cls, rows: pd.DataFrame) -> list[Section]:
        shown = rows_of_one_call(rows, ["run_id"])
        note = (
            "Above 1 a step is beyond the edge: along itself (lr S / 2), or by the largest eigenvalue that the rule "
            "sees (lr λ_P / 2)."
        )
        return [Section("At the edge of stability", note=note, figure=edge_figure(shown), downloads={"edge": shown})]


def edge(
    run: Checkpoints,
    steps: WhichSteps = "all",
    *,
    sharpness: WhichSteps = "all",
    n_sharpness: int = 128,
    soft_rank: str = "stable_rank",
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> EdgeResult:
    """Measure a homogeneous network's training against the edge of stability, checkpoint by checkpoint.

    The lens takes the step that training took from the checkpoint: it draws the batch again, scales and learning rate
    follow. It measures exact Taylor coefficients of the loss along that step, the sharpness of the Hessian and of the
    one that the rule sees, relative updates, alignments and soft ranks.

    Example:
        `qfl edge runs/digits --out edge.html`

    Args:
        run: A run of style "homogeneous" with the optimiser "depthwise" (whose norm_power 0 is plain descent).
        steps: The checkpoints, as in `probe`.
        sharpness: Those of them whose sharpness is measured: some dozen gradients each.
        n_sharpness: Training samples that it is measured on; that of few exceeds that of many.
        soft_rank: Which rank of the last hidden features is the one called so: "stable_rank", "participation_ratio",
            "entropy_rank" or "gradient_weighted".
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, and a row a step and layer in `layers`. The step's columns are NaN at the last checkpoint, which
        none follows.

    Raises:
        QflError: The run is of another model or optimiser, or a step is unknown.
        ValueError: `soft_rank` is unknown, or fewer than 2 samples.

    References:
        arXiv 2502.13110; what of it is reconstructed is marked in docs/edge_of_stability.md.
    """
    _homogeneous(run)
    known = ("stable_rank", "participation_ratio", "entropy_rank", "gradient_weighted")
    if soft_rank not in known:
        raise ValueError(f"soft_rank must be one of {known}, got {soft_rank!r}.")
    if n_sharpness < 2:
        raise ValueError(f"n_sharpness must be at least 2 samples, got {n_sharpness}. Of one every soft rank is 1.")
    measured = set(run.resolve_steps(sharpness))
    pieces = [Piece(at, {"measured": at.step in measured}) for at in models_at(run, steps)]
    lens = Edge(run, device, n_sharpness, soft_rank)
    rows = lens.compute(pieces, label="measuring the edge", jobs=jobs, progress=progress)
    layers = run.table(LAYERS).read([lens.part(piece) for piece in pieces])
    beyond = finite(rows["edge_ratio"]) if "edge_ratio" in rows else []
    n_beyond = int((np.asarray(beyond) > 1).sum())
    title = f"Edge of stability in {run.run_id}: {n_beyond} of {len(beyond)} steps beyond it along themselves"
    return EdgeResult(
        title,
        rows.filter(list(_SUMMARY)),
        rows,
        edge_figure,
        layers,
        columns=RESULT,
        cube=Cube(("step",)),
        of=run.label,
    )


def _homogeneous(run: Checkpoints) -> Run:
    """The run, of a homogeneous network under the depthwise rule; else `QflError`."""
    if not isinstance(run, Run) or run.config.model.kind != "homogeneous":
        raise QflError(f"edge needs a run of style 'homogeneous', as `qfl train digits` makes one, got {run!r}.")
    if run.config.train.optimizer != "depthwise":
        raise QflError(
            f"edge needs the optimiser 'depthwise', got {run.config.train.optimizer!r} in {run.path}. Plain descent is "
            "its norm_power 0, residual_power 0 and depth_normalise false; for others take the lens curvature."
        )
    return run
