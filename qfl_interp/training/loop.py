"""The training loop: batches, updates; metrics, checkpoints and resume points on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from rich.progress import Progress
from torch import Tensor

from qfl_interp.data.examples import validation_examples
from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.models.forward import training_forward
from qfl_interp.models.hooks import Intervention
from qfl_interp.models.metrics import validation_scores
from qfl_interp.progress import FIELDS, progress_bar
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import RunConfig
from qfl_interp.runs.run import Run
from qfl_interp.runs.writer import RunWriter
from qfl_interp.training.interrupt import deferred_interrupt
from qfl_interp.training.loggers import Logger
from qfl_interp.training.session import LOG_EVERY, RunSession, TrainingStopped, Update
from qfl_interp.training.trainee import Trainee
from qfl_interp.training.watch import LensWatch

# The mirrors of a run's metrics, made once its directory is.
MakeLoggers = Callable[[Run], Sequence[Logger]]


class TrainingLoop:
    """One training session on a run directory, which need not be there before `run`.

    Raises:
        QflError: What it needs does not fit into memory, or the task has too few problems; nothing was written.
    """

    def __init__(
        self,
        task: Task,
        run: RunConfig,
        writer: RunWriter,
        device: str | torch.device,
        make_loggers: MakeLoggers,
        initial: ckpt.Checkpoint | None = None,
        watch: LensWatch | None = None,
    ) -> None:
        self.run_config, self.config, self.writer = run, run.train, writer
        self.session = RunSession(run, writer)
        self.make_loggers, self.watch = make_loggers, watch
        self.trainee = Trainee(task, run, device)
        self.initial = initial
        self.val_batch = task.encode(validation_examples(task, run.n_val, self.config.seed))
        # Fields of `Update`; the tensors are read later, not to wait for the device.
        self.pending: list[tuple[int, float, Tensor, Tensor, float]] = []

    @property
    def step(self) -> int:
        """Updates made."""
        return self.trainee.step

    def run(self, *, progress: bool) -> None:
        """Train from where the directory stands to the last step."""
        if self.session.is_complete():
            self.writer.finish()
            return
        with progress_bar(enabled=progress) as bar:
            for refused in self._restore():
                bar.console.print("passed over:", refused, markup=False)
            self.session.begin(self.step, self.trainee.device)
            if self.config.compile:
                self.trainee.compile()
            self.session.loggers.extend(self.make_loggers(Run(self.writer.path, self.run_config)))
            try:
                if self.watch is not None:  # what was saved before a stop, and is not looked at yet
                    for step in Run(self.writer.path, self.run_config).steps:
                        self._mirror(self.watch.saved(step))
                with deferred_interrupt() as interrupted:
                    self._updates(bar, interrupted)
                if self.watch is not None:
                    self._mirror(self.watch.finish())
            finally:
                for logger in self.session.loggers:
                    logger.close()
        self.writer.finish()

    def _restore(self) -> list[str]:
        """Load the latest resume point, or the initial weights; returns why later points were passed over."""
        state, refused = self.writer.resume_point()
        state = state or self.initial
        if state is None and self.run_config.start is not None:
            raise QflError(
                f"{self.writer.path} is a fork of {self.run_config.start.run_id} and has no resume point yet. "
                "Call fork(...) again with resume=True."
            )
        if state is None and self.run_config.model.weights is not None:
            raise QflError(
                f"{self.writer.path} was begun with weights that were given and has no checkpoint yet. Call train(...) "
                "again with the model and resume=True."
            )
        if state is not None:
            self.trainee.load(state)
        return refused

    def _updates(self, bar: Progress, interrupted: Callable[[], bool]) -> None:
        """All remaining updates, with what is due after each; Ctrl-C leaves a resume point between two of them."""
        run = self.run_config
        shown = bar.add_task("training step", total=run.last_step, completed=self.step, detail="")
        if self.step == run.first_step:
            self.session.start_row(self._validation())
            self._save()
        while self.step < run.last_step:
            self._update()
            evaluation = self.session.evaluates_at(self.step)
            if evaluation or self.step in self.session.to_save or len(self.pending) >= LOG_EVERY:
                self._flush(self._validation() if evaluation else {})
                bar.update(shown, completed=self.step, detail=self._detail())
            if self.step in self.session.to_save:
                self._save()
            if interrupted():
                self._flush()
                self.writer.save_resume_point(self.trainee.state())
                raise KeyboardInterrupt

    def _save(self) -> None:
        """Save a checkpoint, and have the lenses look at it."""
        self.session.save(self.trainee.state())
        if self.watch is not None:
            self._mirror(self.watch.saved(self.step))

    def _mirror(self, found: Mapping[int, Mapping[str, float]]) -> None:
        """Give the loggers what lenses found."""
        for step, numbers in found.items():
            for logger in self.session.loggers:
                logger.log(step, numbers)

    def _update(self) -> None:
        """One update on the batch of this step."""
        try:
            done = self.trainee.update()
        except TrainingStopped as stopped:
            self._flush()
            stopped.step = self.step
            raise
        self.pending.append((self.step, done.lr, done.loss, done.grad_norm, self.session.seconds))

    def _flush(self, validation: Mapping[str, float] = MappingProxyType({})) -> None:
        """Check the losses since the last flush and write them; `validation` belongs to the last of them."""
        if not self.pending:
            return
        steps, lrs, losses, norms, seconds = zip(*self.pending, strict=True)
        self.pending.clear()
        read = (torch.stack(tensors).tolist() for tensors in (losses, norms))
        self.session.log([Update(*update) for update in zip(steps, lrs, *read, seconds, strict=True)], validation)

    def _validation(self) -> dict[str, float]:
        """Loss and exact match on the fixed validation set, both ways of counting."""
        interventions = self.trainee.interventions
        if interventions is None:
            return self._scores("val", lambda _: ())
        interventions.refit(self.step)
        installed = interventions.on(self.val_batch, self.step)
        return self._scores("val", installed) | self._scores("val_free", lambda _: ())

    def _scores(self, name: str, installed: Callable[[slice], Sequence[Intervention]]) -> dict[str, float]:
        """The validation scores with what is installed for some of the examples."""

        def forward(tokens: Tensor, positions: slice, rows: slice) -> Tensor:
            trainee = self.trainee
            with trainee.with_installed(installed(rows)):
                # Never the compiled one: validations have other shapes.
                return training_forward(trainee.model)(tokens.to(trainee.device), positions).cpu()

        found = validation_scores(forward, self.val_batch, self.config.loss_name)
        return {f"{name}_{key}": value for key, value in found.items()}

    def _detail(self) -> str:
        """What the progress bar says."""
        seen = {
            "loss": "train_loss",
            "val": "val_loss",
            "exact": "val_exact",
            "FLOPs": "flops",
            "tok/s": "tokens_per_s",
        }
        latest = self.session.latest
        return FIELDS.join(f"{short} {latest[name]:.3g}" for short, name in seen.items() if name in latest)
