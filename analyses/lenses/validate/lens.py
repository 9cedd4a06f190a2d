"""Loss and exact match of checkpoints on held-out examples: what training logs, where nothing of it is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import torch
from plotly.graph_objects import Figure
from torch import Tensor

from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.lenses.validate.columns import RESULT, TABLES
from qfl_interp.analyses.models_at import models_at
from qfl_interp.analyses.pages.timeline_figure import timeline_figure
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.result import Result
from qfl_interp.data.examples import validation_examples
from qfl_interp.data.task import Batch
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel
from qfl_interp.models.forward import training_forward
from qfl_interp.models.metrics import validation_scores
from qfl_interp.plots.panels import mark_step
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.tables import column, records, select

LENS = "validate"


@dataclass(frozen=True)
class Validate(PartLens[Batch, HookedModel]):
    """One row a checkpoint.

    Attributes:
        n_examples: At most so many of the validation split.
        seed: Draws them.
        loss: The loss's name.
    """

    name = LENS
    question = "How well does the model do on held-out examples?"
    tables, result = TABLES, RESULT
    order = 5
    methods = """
    - **Validation** of checkpoints whose training kept no log is what a training of this library logs: the same
      function on the same number of examples of the validation split, at each checkpoint.
    """

    n_examples: int = 0
    seed: int = 0
    loss: str = "cross_entropy"

    @classmethod
    def draw_at(cls, rows: pd.DataFrame, step: int) -> Figure:
        return mark_step(timeline_figure(rows), step, records(select(rows, step=step))[0])

    @classmethod
    def of(cls, run: Checkpoints, n: int | None, device: str | torch.device) -> Validate:
        """The lens, with what the series itself says of its validation."""
        own = run.validation
        return cls(run, device, own.n_examples if n is None else n, own.seed, own.loss)

    def part(self, piece: Piece) -> str:
        return f"{piece.at}-{digest(repr((self.n_examples, self.seed, self.loss)))}"

    def share(self) -> Batch:
        task = self.run.task
        return task.encode(validation_examples(task, self.n_examples, self.seed))

    def rows(self, shared: Batch, view: HookedModel, piece: Piece) -> pd.DataFrame:
        forward = training_forward(view)

        @torch.no_grad()
        def answers(tokens: Tensor, positions: slice, _rows: slice) -> Tensor:
            return forward(tokens.to(self.device), positions).cpu()

        found = validation_scores(answers, shared, self.loss)
        row = {f"val_{name}": value for name, value in found.items()}
        for name, value in row.items():
            if not math.isfinite(value):
                raise QflError(
                    f"{name} of {self.run.path} at step {piece.at.step} is {value}: the weights diverged or are "
                    "damaged. Leave this step out; those measured before are kept."
                )
        return pd.DataFrame([row | {"n_val": len(shared.tokens)}])


def validate(
    run: Checkpoints,
    steps: Steps = "all",
    *,
    n: int | None = None,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Result:
    """Measure loss and exact match at checkpoints on held-out examples, as training does in its validations.

    A suite of checkpoints has no log of its training; this gives it a loss curve. `emergence`, `timeline` and `report`
    compute the curve where it is missing, and go on from what is there. Of a run the numbers are those that it logged
    at these steps (of a fork under an intervention, those without it).

    Example:
        `qfl validate my.suite --out losses.html`

    Args:
        run: What to look at.
        steps: Which checkpoints.
        n (--examples): At most so many examples of the validation split; by default as many as the run's own
            validations have, 1,000 of a suite.
        jobs: Checkpoints at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw a bar on standard error.

    Returns:
        One row a step: `val_loss`, `val_exact`, `val_pass` (`=` scored, where the task has it) and `val_loss_answer`,
        `val_exact_answer`, `val_pass_answer`, as in `Run.metrics`, with `n_val`, the number of examples.

    Raises:
        QflError: Unknown step, an empty validation split, or a loss that is not finite (names the step).
        ValueError: `n` is below 1.
    """
    if n is not None and n < 1:
        raise ValueError(
            f"n, the number of validation examples, must be at least 1, got {n}. More examples give a sharper loss."
        )
    lens = Validate.of(run, n, device)
    pieces = [Piece(at) for at in models_at(run, steps)]
    rows = lens.compute(pieces, label="validating", jobs=jobs, progress=progress)
    count = int(column(rows, "n_val")[0])
    summary = rows.filter(["step", "val_loss", "val_exact", "val_loss_answer", "val_exact_answer"])
    title = f"validation of {run.run_id} on {count:,} held-out examples, {run.loss_unit} a token"
    cube = Cube(("step",))
    return Result(title, summary, rows, timeline_figure, of=run.label, columns=RESULT, cube=cube)
