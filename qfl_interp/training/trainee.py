"""A model in training: one update after another, the same bits from the same state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from qfl_interp.data.task import Task
from qfl_interp.data.training_stream import make_stream
from qfl_interp.models.build import build_model, load_parameters, model_on, parameters_to_save
from qfl_interp.models.forward import training_forward
from qfl_interp.models.hooks import Intervention, interventions_on
from qfl_interp.models.losses import token_losses_of
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import RunConfig
from qfl_interp.training.footprint import require_room
from qfl_interp.training.intervene import TrainingInterventions
from qfl_interp.training.schedule import scheduled_rate
from qfl_interp.training.updates import Done, freeze, make_updates


class Trainee:
    """The model of a run as it trains, with its optimiser, its batches and what is installed meanwhile.

    It begins with the run's initial weights, and knows nothing of files.

    Args:
        task: What is learned.
        run: Decides everything.
        device: Where to train.

    Attributes:
        step: Updates made.

    Raises:
        QflError: What it needs does not fit into memory, the task has too few problems, or the loss is not known here.
    """

    def __init__(self, task: Task, run: RunConfig, device: str | torch.device) -> None:
        self.run, self.device = run, torch.device(device)
        token_losses_of(run.train.loss_name)  # one that is not known is refused before anything is written
        require_room(run, self.device)
        self.stream = make_stream(task, run.train)
        self.model = model_on(build_model(run.model, task, seed=run.train.seed), self.device)
        self.interventions: TrainingInterventions | None = None
        if run.fork is not None:
            freeze(self.model, run.fork.frozen)
            if run.fork.intervene is not None:
                self.interventions = TrainingInterventions(self.model, task, run.fork.intervene, run.first_step)
        self.forward = training_forward(self.model, hooked=self.interventions is not None)
        self.updates = make_updates(self.model, task, run, lambda tokens, span: self.forward(tokens, span), self.device)
        self.step = run.first_step

    def load(self, state: ckpt.Checkpoint) -> None:
        """Go on from a state."""
        assert state.optimizer is not None
        load_parameters(self.model, state.model)
        self.updates.load(state.optimizer)
        if self.interventions is not None:
            self.interventions.load(state.optimizer)
        self.step = state.step

    def compile(self) -> None:
        """Train through a compiled forward pass, where nothing is installed in it."""
        if self.interventions is None:
            self.forward = training_forward(self.model, compiled=True)

    def update(self) -> Done:
        """One update on the batch of this step; raises what the update does, and then counts nothing."""
        batch = self.stream.batch(self.step)
        installed: Sequence[Intervention] = ()
        if self.interventions is not None:
            self.interventions.refit(self.step)
            installed = self.interventions.on(batch, self.step)(slice(None))
        with self.with_installed(installed):
            rate = scheduled_rate(self.run, self.step, peak=self.updates.peak_lr)
            done = self.updates.apply(batch, rate)
        self.step += 1
        return done

    def with_installed(self, installed: Sequence[Intervention]) -> AbstractContextManager[Any]:
        """Interventions on the model; the fast forward pass runs where there are none."""
        return interventions_on(self.model, installed) if installed else nullcontext()

    def state(self) -> ckpt.Checkpoint:
        """Weights and optimiser as they are: the model's own tensors, which the next update changes."""
        state = self.updates.tensors()
        if self.interventions is not None:
            state |= self.interventions.tensors()
        return ckpt.Checkpoint(self.step, self.run.digest, parameters_to_save(self.model), state)
