"""Which heads and neurons the answer needs: each one ablated on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from plotly.graph_objects import Figure

from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lenses.ablate_units.columns import RESULT, TABLES
from qfl_interp.analyses.lenses.ablate_units.figure import UNITS, units_figure
from qfl_interp.analyses.lenses.ablate_units.findings import findings
from qfl_interp.analyses.models_at import models_at
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.analyses.stored import interval_columns
from qfl_interp.data.examples import held_out
from qfl_interp.data.task import Batch
from qfl_interp.digests import digest
from qfl_interp.interventions.scoring import Method, UnitScores, score_units
from qfl_interp.models.build import HookedModel
from qfl_interp.report.page import Finding, Section
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.seeding import generator
from qfl_interp.stats import bootstrap_mean, holm, paired_sign_flip


@dataclass(frozen=True)
class AblateUnits(PartLens[Batch, HookedModel]):
    """A part a checkpoint."""

    site: str = "z"
    method: str = "mean"
    n: int = 256
    seed: int = 0

    name = "ablate_units"
    question = "Which heads or neurons does the answer need?"
    tables, result = TABLES, RESULT
    order = 80
    methods = """
    - **Single heads and neurons** are replaced one at a time, at every token, by zero, by their mean over examples or
      by their value in another example. The rise of the answer's loss has a bootstrap 95 % interval over
      examples and a p-value (sign flips) corrected for the number of units of a step (Holm).
    """
    by = ("name", "method")

    def part(self, piece: Piece) -> str:
        settings = digest(repr((self.site, self.method, self.n, self.seed)))
        return f"{piece.at}-{self.site}-{self.method}-{settings}"

    def share(self) -> Batch:
        return self.run.task.encode(held_out(self.run.task, "test", self.n, seed=self.seed, stream="units"))

    def rows(self, shared: Batch, view: HookedModel, piece: Piece) -> pd.DataFrame:
        donors, bootstrap = (generator(self.seed, f"units/{use}", piece.at.step) for use in ("donors", "bootstrap"))
        method = cast(Method, self.method)
        return _rows(score_units(view, shared, name=self.site, method=method, rng=donors), bootstrap)

    def columns(self, piece: Piece) -> dict[str, Any]:
        return {"name": self.site, "method": self.method, **super().columns(piece)}

    @staticmethod
    def findings_of(rows: pd.DataFrame) -> list[Finding]:
        return findings(rows)

    @classmethod
    def draw_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        return units_figure(rows, step=step, slider=False)

    @classmethod
    def sections_of(cls, rows: pd.DataFrame) -> list[Section]:
        note = (
            "How much the loss over the answer rises when one unit alone is replaced at every token. Hovering over one "
            "shows the 95 % interval."
        )
        return [
            cls.section_of(f"Single {UNITS.get(values[0], '{0}')}, {{1}}", values, part, units_figure, note)
            for values, part in cls.parts_of(rows)
        ]


def ablate_units(
    run: Checkpoints,
    steps: Steps = "last",
    *,
    site: str = "z",
    method: str = "mean",
    n: int = 256,
    seed: int = 0,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Ablate every head, or every neuron, one at a time: which ones does the answer need?

    A unit is ablated at every token.

    Example:
        `qfl ablate-units runs/add16 --site z --method mean`

    Args:
        run: What to look at.
        steps: As in `probe`; the last checkpoint by default.
        site: "z" for heads, "mlp_post" for neurons.
        method: What takes a unit's place: "zero", its "mean" over the examples at each position, or "resample", its
            value in another example.
        n: Held-out examples of the split "test".
        seed: Draws examples, donors and bootstraps.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step, layer and unit. `loss_increase` is in nats a token of the answer (half squared errors, of a
        real-valued task), its interval a 95 % bootstrap over examples; `p_value_holm` a paired sign-flip test of that
        increase, Holm-corrected over the units of the step.

    Raises:
        QflError: Unknown step or a site that the model does not have.
        ValueError: An unknown method.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2 examples, got {n}. 256 is the default.")
    lens, pieces = AblateUnits(run, device, site, method, n, seed), [Piece(at) for at in models_at(run, steps)]
    rows = lens.compute(pieces, label="ablating units", jobs=jobs, progress=progress)
    columns = ["step", "layer", "unit", "loss_increase", "loss_increase_low", "loss_increase_high", "exact_answer"]
    return Result(
        f"{site} of {run.run_id}, one unit at a time ({method}): the largest increases of the answer's loss "
        f"({run.task.loss_unit})",
        rows.nlargest(12, "loss_increase").filter([*columns, "p_value_holm"]),
        rows,
        units_figure,
        columns=RESULT,
        cube=Cube(("step", "layer", "unit")),
    )


def _rows(scores: UnitScores, rng: np.random.Generator) -> pd.DataFrame:
    """One row a layer and unit."""
    rows = []
    for number, layer in enumerate(scores.layers):
        for index, unit in enumerate(scores.units):
            loss = scores.loss_answer[number, index]
            increase = bootstrap_mean(loss - scores.intact.loss_answer, rng)
            rows.append(
                {
                    "layer": layer,
                    "unit": unit,
                    "loss_answer": float(loss.mean()),
                    "exact_answer": float(scores.exact_answer[number, index].mean()),
                    **interval_columns("loss_increase", increase),
                    "p_value_paired": paired_sign_flip(loss, scores.intact.loss_answer, rng).p_value,
                    "n_examples": len(loss),
                }
            )
    found = pd.DataFrame(rows)
    return found.assign(
        p_value_holm=holm(found["p_value_paired"].to_numpy()),
        intact_loss_answer=float(scores.intact.loss_answer.mean()),
        intact_exact_answer=float(scores.intact.exact_answer.mean()),
    )
