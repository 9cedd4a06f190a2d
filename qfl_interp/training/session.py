"""What training keeps of one run, however it is computed: metrics, checkpoints, resume points, whether it diverged."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from qfl_interp.errors import QflError
from qfl_interp.recipes import loss_unit
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import RunConfig
from qfl_interp.runs.run import Run
from qfl_interp.runs.steps import evaluation_steps
from qfl_interp.runs.writer import RunWriter
from qfl_interp.training.loggers import Logger

# Losses are checked and written at least this often, in updates.
LOG_EVERY = 10


class TrainingStopped(QflError):
    """Training cannot go on; the run keeps its good checkpoints.

    Attributes:
        status: Why, in a word: "diverged", "converged" (a batch is fitted exactly, which leaves no direction) or "dead"
            (a layer's features or backward vectors are all zero).
        step: Updates completed.
    """

    def __init__(self, message: str, status: str, step: int = -1) -> None:
        super().__init__(message)
        self.status, self.step = status, step


class DivergedError(TrainingStopped):
    """Training stopped at a loss that is not finite or far too high; the run keeps its good checkpoints."""


class Update(NamedTuple):
    """What one optimiser update is logged with.

    `step` counts the updates done, this one included; the loss in nats is of the weights before it, the gradient's
    global norm from before clipping, and `seconds` the training time until then. None: not measured.
    """

    step: int
    lr: float | None
    loss: float | None
    grad_norm: float | None
    seconds: float


class RunSession:
    """One training session's records on a run directory.

    Its `loggers` are told of every row beside the metrics file; `latest` is the latest value of every metric.
    """

    def __init__(self, run: RunConfig, writer: RunWriter) -> None:
        self.run_config, self.config, self.writer = run, run.train, writer
        self.to_save = {*run.steps_to_save}
        self._to_evaluate = evaluation_steps(run.n_steps, run.train.eval_fraction)
        self.loggers: list[Logger] = []
        self.latest: dict[str, float] = {}
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time of this session and those before it."""
        return time.monotonic() - self._started

    def is_complete(self) -> bool:
        """Whether the final checkpoint is there and whole, and the metrics to its step; else it is trained again."""
        run = Run(self.writer.path, self.run_config)
        last = self.run_config.last_step
        try:
            logged = [row["step"] for row in run.read_metrics().rows[-1:]]
            return logged == [last] and run.finished and bool(run.load_checkpoint(last))
        except QflError:
            return False

    def begin(self, step: int, device: str | torch.device) -> None:
        """Record the session and drop the metrics that will be logged again after `step`."""
        self.writer.record_session(device)
        anew = step == self.run_config.first_step
        self._started = time.monotonic() - self.writer.truncate_metrics(step - anew)

    def evaluates_at(self, step: int) -> bool:
        """Whether a validation follows the update that ends at `step`."""
        run = self.run_config
        return step == run.last_step or step - run.first_step in self._to_evaluate

    def start_row(self, validation: Mapping[str, float]) -> None:
        """Write the row of the initial weights."""
        self._write([self._row(self.run_config.first_step, 0.0, **validation)])

    def log(self, updates: Sequence[Update], validation: Mapping[str, float] = MappingProxyType({})) -> None:
        """Check updates and write their rows; `validation` belongs to the last of them.

        Raises:
            DivergedError: A loss or a gradient norm is not finite, or a loss too high; the rows before it are written.
        """
        for number, update in enumerate(updates):
            loss, norm = update.loss, update.grad_norm
            assert loss is not None
            assert norm is not None
            assert update.lr is not None
            if not (math.isfinite(loss) and math.isfinite(norm) and loss <= self.config.divergence_loss):
                self._write([self._update_row(before) for before in updates[:number]])
                what = f"training loss {loss:.4g}, gradient norm {norm:.4g}"
                raise self._diverged(update.step, update.step - 1, update.lr, what)
        self.record(updates, validation)
        if not all(math.isfinite(value) for value in validation.values()):
            last = updates[-1]
            assert last.lr is not None
            raise self._diverged(last.step, last.step, last.lr, f"validation {dict(validation)}")

    def record(self, updates: Sequence[Update], validation: Mapping[str, float] = MappingProxyType({})) -> None:
        """Write the rows of updates as they are; `validation` belongs to the last of them."""
        rows = [self._update_row(update) for update in updates]
        rows[-1] |= validation
        self._write(rows)

    def save(self, state: ckpt.Checkpoint) -> None:
        """Save a checkpoint."""
        self.writer.save(state, keep_optimizer=self.config.save_optimizer)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the metrics and to the loggers."""
        self.writer.append_metrics(rows)
        for row in rows:
            self.latest |= row
            for logger in self.loggers:
                logger.log(row["step"], {name: value for name, value in row.items() if name != "step"})

    def _diverged(self, step: int, lost: int, lr: float, what: str) -> DivergedError:
        """The error that names the place and what is left; `lost` is the step of the weights that diverged.

        The loss of an update is that of the weights before it, a validation of those after it.
        """
        saved = [s for s in Run(self.writer.path, self.run_config).steps if s < lost]
        kept = f"step {saved[-1]}" if saved else "none"
        unit = loss_unit(self.config.loss_name)
        return DivergedError(
            f"training diverged at step {step}: {what}, learning rate {lr:.3g} (losses must stay finite and below "
            f"{self.config.divergence_loss:g} {unit}). Last good checkpoint in {self.writer.path}: {kept}. "
            "Try a lower lr or a longer warm-up.",
            "diverged",
            lost,
        )

    def _update_row(self, update: Update) -> dict[str, Any]:
        """The row of an update."""
        measured = {"lr": update.lr, "train_loss": update.loss, "grad_norm": update.grad_norm}
        known = {name: value for name, value in measured.items() if value is not None}
        return self._row(update.step, update.seconds, **known)

    def _row(self, step: int, seconds: float, **values: float) -> dict[str, Any]:
        """One row of metrics; what was not measured is not in it."""
        tokens = (step - self.run_config.first_step) * self.run_config.tokens_per_step
        return {
            "step": step,
            "flops": step * self.run_config.flops_per_step,
            "actual_flops": step * self.run_config.actual_flops_per_step,
            "seconds": round(seconds, 3),
            "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
            **values,
        }
