"""The training loop of a stack: as `training_loop`, for several runs at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from qfl_interp.config import ModelConfig
from qfl_interp.data.examples import ExampleStream, examples_of_all, validation_examples
from qfl_interp.data.task import Batch, Task
from qfl_interp.errors import QflError, StorageError
from qfl_interp.models.build import build_model, load_parameters, parameters_to_save
from qfl_interp.models.metrics import ExampleScores, evaluate, scored_span, targets
from qfl_interp.progress import progress_bar
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import RunConfig
from qfl_interp.runs.writer import RunWriter
from qfl_interp.training.footprint import require_room
from qfl_interp.training.interrupt import deferred_interrupt
from qfl_interp.training.schedule import scheduled_rate
from qfl_interp.training.session import LOG_EVERY, RunSession, Update
from qfl_interp.training.stacked.forward import Shape, member_losses, stack_shape, stacked_logits
from qfl_interp.training.stacked.grouping import faster_alone, max_members, stack_key
from qfl_interp.training.stacked.parameters import StackedParameters
from qfl_interp.training.train import train_planned

# Examples of a validation pass, of all members together.
_EVALUATED = 256

# A run's place in the caller's list, its configuration and its directory.
_Indexed = tuple[int, RunConfig, Path]


def train_stacked(
    task: Task,
    runs: Sequence[tuple[RunConfig, Path]],
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
    resume_seconds: float = 30.0,
    memory_share: float = 1.0,
) -> list[Exception | None]:
    """Train runs of one shape together; each directory is an ordinary run afterwards, as if trained alone by `train`.

    A run that was begun is continued, a finished one left as it is. Every member has its own examples, validation set,
    initial weights, learning rates, clipping and AdamW, so that it equals its run alone within float32 rounding. On a
    CPU its bits do not depend on the other members either, where the task scores the same positions of every example;
    so neither a kill nor a member that diverges changes them.

    The metrics' seconds and tokens per second are those of the whole stack's time. Memory grows with the members of a
    stack (`bytes_per_member`); more runs than `max_members` train as several stacks of as equal a size as can be, one
    after the other. Runs of a shape that is faster alone (a large model with a small batch on a CPU) train one by one,
    as `train` would, bit for bit.

    Args:
        task: What is learned.
        runs: Configurations as `plan_run` gives them, with one `stack_key`, and their directories.
        device: Where to train.
        progress: Draw a live bar on standard error.
        resume_seconds: As in `train`.
        memory_share: As in `max_members`.

    Returns:
        For each run None, where it is finished, or what ended it alone: a `DivergedError`, a directory that another
        process trains into or that holds another run.

    Raises:
        ValueError: The runs cannot be stacked, or are another task's.
        StorageError: The disk is full; what was saved is intact.
        KeyboardInterrupt: Ctrl-C; every run in training has a resume point.
    """
    keys = {stack_key(config) for config, _ in runs}
    if len(keys) > 1:
        raise ValueError(
            f"runs of a stack must differ in learning rate and seed alone, got {len(keys)} different kinds. "
            "Group them by stack_key."
        )
    for config, path in runs:
        same = (config.task, config.length, config.task_options) == (task.name, task.length, task.options)
        if not same or config.start or config.train.compile or config.n_train is not None:
            raise ValueError(
                f"{path} must be a run of fresh examples of {task!r}, no fork and not compiled, got {config.run_id}."
            )
    errors: list[Exception | None] = [None] * len(runs)
    if not runs:
        return errors
    config = runs[0][0]
    sizes = {"batch_size": config.batch_size, "n_ctx": config.n_ctx, "d_vocab": config.d_vocab, "device": device}
    indexed = [(index, *run) for index, run in enumerate(runs)]
    with progress_bar(enabled=progress) as bar:
        if faster_alone(config.model, **sizes):
            shown = bar.add_task("training one by one", total=len(runs), detail="")
            for index, (config, path) in enumerate(runs):
                try:
                    train_planned(task, config, path, device=device, resume_seconds=resume_seconds)
                except StorageError:
                    raise
                except QflError as error:
                    errors[index] = error
                bar.advance(shown)
            return errors
        for part in _equal_parts(len(runs), max_members(config.model, **sizes, memory_share=memory_share)):
            _train_together(task, indexed[part], errors, torch.device(device), resume_seconds, bar)
    return errors


def _equal_parts(n_runs: int, most: int) -> list[slice]:
    """As few parts of a list as hold at most so many each; sizes differ by one at most."""
    n_parts = -(-n_runs // most)
    bounds = [n_runs * part // n_parts for part in range(n_parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


class _Member(NamedTuple):
    """One run of a stack."""

    index: int
    session: RunSession
    stream: ExampleStream
    validation: Batch


def _train_together(
    task: Task,
    runs: Sequence[_Indexed],
    errors: list[Exception | None],
    device: torch.device,
    resume_seconds: float,
    bar: Progress,
) -> None:
    """Open the directories, and train those that stand at one step as one stack each; errors go to their index."""
    with ExitStack() as held:
        by_step: dict[int, list[tuple[_Member, ckpt.Checkpoint | None]]] = defaultdict(list)
        for index, config, path in runs:
            try:
                require_room(config, device)
                writer = RunWriter(path, config, task, resume=True, resume_seconds=resume_seconds)
                session = RunSession(config, held.enter_context(writer))
                if session.is_complete():
                    writer.finish()
                    continue
                state, refused = writer.resume_point()
                step = config.first_step if state is None else state.step
                train = config.train
                examples = validation_examples(task, config.n_val, train.seed)
                stream = ExampleStream(task, train.seed, config.batch_size)
                session.begin(step, device)
            except StorageError:
                raise
            except QflError as error:
                errors[index] = error
                continue
            for reason in refused:
                bar.console.print("passed over:", reason, markup=False)
            by_step[step].append((_Member(index, session, stream, task.encode(examples)), state))
        for step, opened in sorted(by_step.items()):
            members, states = [member for member, _ in opened], [state for _, state in opened]
            _StackedLoop(task, members, states, step, errors, device).run(bar)


class _StackedLoop:
    """Runs that stand at one step, trained to their last."""

    def __init__(
        self,
        task: Task,
        members: list[_Member],
        states: Sequence[ckpt.Checkpoint | None],
        step: int,
        errors: list[Exception | None],
        device: torch.device,
    ) -> None:
        self.task, self.members, self.step, self.errors, self.device = task, members, step, errors, device
        self.run_config = members[0].session.run_config
        self.config = self.run_config.train
        self.parameters, self.shape = _stacked_models(task, members, states, device)
        self.pending: list[tuple[int, list[float], Tensor, Tensor, list[float]]] = []

    def run(self, bar: Progress) -> None:
        """All remaining updates, with what is due after each; Ctrl-C leaves resume points between two of them."""
        run = self.run_config
        title = f"training {len(self.members)} runs, step"
        shown = bar.add_task(title, total=run.last_step, completed=self.step, detail="")
        with deferred_interrupt() as interrupted:
            if self.step == run.first_step:
                validation = self._validation()
                self._each(lambda at, member: member.session.start_row(validation[at]))
                self._save()
            while self.members and self.step < run.last_step:
                session = self.members[0].session
                self._update()
                evaluation, saved = session.evaluates_at(self.step), self.step in session.to_save
                if evaluation or saved or len(self.pending) >= LOG_EVERY:
                    self._flush(self._validation() if evaluation else None)
                    bar.update(shown, completed=self.step)
                if saved:
                    self._save()
                if interrupted():
                    self._flush()
                    for member, state in zip(self.members, self._states(), strict=True):
                        member.session.writer.save_resume_point(state)
                    raise KeyboardInterrupt
        self._each(lambda _, member: member.session.writer.finish())

    def _each(self, do: Callable[[int, _Member], None]) -> None:
        """Do something for every member; one that it ends leaves the stack."""
        kept = []
        for at, member in enumerate(self.members):
            try:
                do(at, member)
                kept.append(at)
            except StorageError:
                raise
            except QflError as error:
                self.errors[member.index] = error
        if len(kept) < len(self.members):
            self.members = [self.members[at] for at in kept]
            self.parameters.keep(kept)

    def _update(self) -> None:
        """One optimiser update of every member on its own fresh examples."""
        n_members = len(self.members)
        batch = self.task.encode(examples_of_all([member.stream for member in self.members], self.step))
        span = scored_span(batch.loss_mask)
        target = targets(batch.wanted, batch.loss_mask, span).to(self.device)
        tokens = batch.tokens.to(self.device).unflatten(0, (n_members, -1))
        losses = member_losses(
            stacked_logits(self.parameters.weights, self.shape, tokens, span), target.unflatten(0, (n_members, -1))
        )
        self.parameters.differentiate(losses.sum())
        norms = self.parameters.clip(self.config.max_norm)
        lrs = [scheduled_rate(member.session.run_config, self.step) for member in self.members]
        self.step += 1
        self.parameters.update(lrs, self.step, self.config)
        seconds = [member.session.seconds for member in self.members]
        self.pending.append((self.step, lrs, losses.detach(), norms, seconds))

    def _flush(self, validation: list[dict[str, float]] | None = None) -> None:
        """Check the losses since the last flush and write them; members that diverged leave the stack."""
        if not self.pending:
            return
        losses = torch.stack([losses for _, _, losses, _, _ in self.pending]).tolist()
        norms = torch.stack([norms for _, _, _, norms, _ in self.pending]).tolist()
        pending, self.pending = self.pending, []

        def log(at: int, member: _Member) -> None:
            updates = [
                Update(step, lrs[at], loss[at], norm[at], seconds[at])
                for (step, lrs, _, _, seconds), loss, norm in zip(pending, losses, norms, strict=True)
            ]
            member.session.log(updates, validation[at] if validation else {})

        self._each(log)

    def _states(self) -> list[ckpt.Checkpoint]:
        """What every member saves now."""
        return self.parameters.states(self.step, [member.session.run_config.digest for member in self.members])

    def _save(self) -> None:
        """A checkpoint of every member."""
        states = self._states()
        self._each(lambda at, member: member.session.save(states[at]))

    @torch.no_grad()
    def _validation(self) -> list[dict[str, float]]:
        """Loss, exact match and success of every member on its own validation set."""
        by_size: dict[int, list[int]] = defaultdict(list)
        for at, member in enumerate(self.members):
            by_size[len(member.validation.tokens)].append(at)
        found: dict[int, dict[str, float]] = {}
        for chosen in by_size.values():
            scores = self._scores(chosen)
            found |= {at: own.means() for at, own in zip(chosen, scores, strict=True)}
        return [{f"val_{name}": value for name, value in found[at].items()} for at in range(len(self.members))]

    def _scores(self, chosen: Sequence[int]) -> list[ExampleScores]:
        """Scores of members whose validation sets are equally large, some examples of each in every pass."""
        weights = self.parameters.views(self.parameters.values[list(chosen)])
        sets = [self.members[at].validation for at in chosen]
        n_examples, n_members = len(sets[0].tokens), len(chosen)
        each = max(self.run_config.batch_size, _EVALUATED // n_members)
        # [member, example] as rows of one batch, in the order of the passes.
        rows = np.arange(n_members * n_examples).reshape(n_members, n_examples)
        order = np.concatenate([rows[:, start : start + each].ravel() for start in range(0, n_examples, each)])
        tokens, masks = torch.cat([own.tokens for own in sets]), torch.cat([own.loss_mask for own in sets])
        together = Batch(tokens, masks, sets[0].prompt_end).rows(torch.from_numpy(order))

        def forward(tokens: Tensor, positions: slice, _rows: slice) -> Tensor:
            stacked = tokens.to(self.device).unflatten(0, (n_members, -1))
            return stacked_logits(weights, self.shape, stacked, positions).flatten(0, 1).cpu()

        scores = evaluate(forward, together, chunk=each * n_members)
        back = np.argsort(order).reshape(n_members, n_examples)
        return [ExampleScores(*(values[own] for values in scores)) for own in back]


def _stacked_models(
    task: Task, members: Sequence[_Member], states: Sequence[ckpt.Checkpoint | None], device: torch.device
) -> tuple[StackedParameters, Shape]:
    """Initial or saved weights and optimisers of all members on the device."""
    models = []
    for member, state in zip(members, states, strict=True):
        config = member.session.run_config
        models.append(build_model(config.model, task, seed=config.train.seed))
        if state is not None:
            load_parameters(models[-1], state.model)
    parameters = StackedParameters([parameters_to_save(model) for model in models], device)
    for at, state in enumerate(states):
        if state is not None and state.optimizer is not None:
            parameters.load_moments(at, state.optimizer)
    config = members[0].session.run_config.model
    assert isinstance(config, ModelConfig)  # others are not stackable
    shape = stack_shape(config, models[0])
    return parameters, shape._replace(turn=shape.turn.to(device))
