"""A training loop of the user's own, written down as a run of this library: checkpoints, validations, metrics."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TypeVar

import torch
from torch import Tensor, nn

from qfl_interp.config import TrainConfig
from qfl_interp.data.examples import validation_examples
from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.files import local_path
from qfl_interp.models.build import model_device
from qfl_interp.models.metrics import evaluate
from qfl_interp.models.undisturbed import undisturbed
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import CONFIG_FILE, Recorded, RunConfig
from qfl_interp.runs.run import Run
from qfl_interp.runs.writer import RunWriter
from qfl_interp.training.optimizers import named_state
from qfl_interp.training.recorded_model import recorded_model
from qfl_interp.training.session import LOG_EVERY, RunSession, Update
from qfl_interp.training.train import mean_real_tokens

# Optimisers whose state a fork can go on from.
_KNOWN = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)

_Own = TypeVar("_Own", bound="Recorder")


class Recorder:
    """Writes a run directory while a loop of the user's own trains a model; call `step` after every update.

    Checkpoints and validations follow this library's schedule: the first and the last step, and log-spaced ones
    between. A validation is the one that `train` makes: the loss and exact match of the task's validation set. The
    loop does not notice: weights, gradients, modes and random generators are as before, and so are its bits. The
    directory opens with `Run.open(out, task=task)`, during training too, and every lens takes it.

    It closes itself after the last step; a loop that may end earlier uses it as a context manager, or calls `close`.

    Args:
        out: The run directory to make.
        model: What is trained: a `HookedTransformer`, or a causal language model of transformers, whose run opens in
            a bridge (`hooked_from_hf`). Half-precision weights are kept as float32, number for number.
        task: What it is examined on.
        n_steps: Updates of the whole training.
        step: Updates that the model has had already: where the loop goes on from a checkpoint of its own.
        resume: Go on with the recording in `out` if there is one: it must be of this model, which must have the weights
            that were recorded at `step`, where they were. What was recorded after `step` is dropped.
        tokens_per_step: Tokens that one update reads, for FLOPs and tokens a second; unknown by default: NaN.
        n_checkpoints: As in `TrainConfig`.
        save_every: As in `TrainConfig`.
        n_val: Examples in the validation set.
        seed: Draws the validation set, and what lenses draw.
        save_optimizer: Keep the optimiser's state beside every checkpoint, for forks: of torch's AdamW, Adam or SGD.

    Raises:
        QflError: The model could not be opened again, or does not take the task's tokens; `out` is taken, or holds a
            recording of another model, task or setting; another process writes there. Nothing was changed.
        ValueError: A number is out of its range.

    Example:
        >>> import torch, tempfile, qfl_interp as qfl
        >>> task = qfl.load_task("addition", 4)
        >>> model = qfl.build_model(qfl.ModelConfig(d_model=8, n_layers=1, n_heads=1), task)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> out = tempfile.mkdtemp()
        >>> recorder = Recorder(out, model, task, n_steps=2, n_val=8)
        >>> for step in (1, 2):
        ...     loss = model(torch.zeros(1, 3, dtype=torch.long)).logsumexp(-1).mean()
        ...     loss.backward(); optimizer.step()
        ...     recorder.step(step, optimizer, loss=loss)
        >>> qfl.Run.open(out).steps
        [0, 1, 2]
    """

    def __init__(
        self,
        out: str | Path,
        model: nn.Module,
        task: Task,
        *,
        n_steps: int,
        step: int = 0,
        resume: bool = False,
        tokens_per_step: int | None = None,
        n_checkpoints: int = 40,
        save_every: int | None = None,
        n_val: int = 500,
        seed: int = 0,
        save_optimizer: bool = False,
    ) -> None:
        path = local_path(out)
        _require_range(n_steps, step, tokens_per_step)
        self._model, self._recorded = model, recorded_model(model, task)
        found = RunConfig.read(path) if resume and (path / CONFIG_FILE).exists() else None
        train = {"n_checkpoints": n_checkpoints, "save_every": save_every, "n_val": n_val, "seed": seed}
        first = step if found is None else found.first_step
        if not first <= step <= n_steps or first == n_steps:
            raise ValueError(
                f"step must lie between the recording's first step {first} and n_steps {n_steps}, got {step}."
            )
        shape = self._recorded.config
        if found is not None and found.model.weights is not None and hasattr(shape, "weights"):
            # Those of now are compared with the recorded ones of their step below.
            shape = dataclasses.replace(shape, weights=found.model.weights)  # pyright: ignore[reportArgumentType]
        self.config = RunConfig(
            task=task.name, length=task.length, model=shape,
            train=TrainConfig(n_steps=n_steps - first, save_optimizer=save_optimizer, **train),
            first_step=first, last_step=n_steps, n_ctx=task.n_ctx, n_ctx_real=mean_real_tokens(task, seed),
            d_vocab=task.d_vocab, task_options=task.options, d_out=task.d_out,
            recorded=Recorded(None if tokens_per_step is None else operator.index(tokens_per_step)),
        )  # fmt: skip
        self._validation = task.encode(validation_examples(task, n_val, seed))
        self._writer = RunWriter(path, self.config, task, resume=resume)
        self._session = RunSession(self.config, self._writer)
        self._pending: list[tuple[int, float | None, float | Tensor | None, float]] = []
        self._at, self._is_open = step, True
        self._writer.__enter__()
        try:
            self._begin()
        except BaseException as error:
            self._writer.__exit__(type(error))
            raise

    def step(
        self,
        step: int,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        loss: float | Tensor | None = None,
        lr: float | None = None,
    ) -> None:
        """Write down an update: call it after the optimiser's step, and before the scheduler's.

        Args:
            step: Updates done, this one included: 1 after the first.
            optimizer: Its learning rate is written down, and its state with `save_optimizer`.
            loss: Of the update's batch, in nats, before the update. A tensor is read later, so that no device waits.
            lr: The update's learning rate, where the optimiser has another by now.

        Raises:
            ValueError: It is not the step after the last one, or beyond `n_steps`.
            QflError: The disk is full, the recorder is closed, or the optimiser's state is to be kept and is missing or
                of an optimiser that no fork knows.
        """
        self._require_next(operator.index(step))
        state = self._state(optimizer) if self.config.train.save_optimizer else None
        if lr is None and optimizer is not None:
            lr = float(optimizer.param_groups[0]["lr"])
        kept = loss.detach().clone() if isinstance(loss, Tensor) else loss
        self._at = step
        self._pending.append((step, lr, kept, self._session.seconds))
        evaluation = self._session.evaluates_at(step)
        if evaluation or step in self._session.to_save or len(self._pending) >= LOG_EVERY:
            self._flush(self._scores() if evaluation else {})
        if step in self._session.to_save:
            self._save(state)
        if step == self.config.last_step:
            self.close()

    def close(self) -> None:
        """Write what is pending and let go of the directory; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            try:
                self._flush()
            finally:
                self._writer.__exit__()

    def __enter__(self: _Own) -> _Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        """Bring the directory to `step`: the first row and checkpoint, or what was recorded until then."""
        run, step = Run(self._writer.path, self.config), self._at
        rows = run.read_metrics().rows if run.steps else []
        if rows:
            self._require_recorded(run, rows[-1]["step"])
        self._writer.forget_after(step)
        # The first row is written again with its checkpoint.
        self._session.begin(step, model_device(self._model))
        if step == self.config.first_step:
            self._session.start_row(self._scores())
            self._save(None)
        elif rows[-1]["step"] < step:
            lost = range(rows[-1]["step"] + 1, step + 1)
            self._session.record([Update(at, None, None, None, self._session.seconds) for at in lost])
        if step == self.config.last_step:
            self.close()

    def _require_recorded(self, run: Run, last: int) -> None:
        """Raise `QflError` unless the recording goes on at this step with these weights."""
        step = self._at
        missed = [s for s in self.config.steps_to_save if last < s <= step]
        if missed:
            raise QflError(
                f"{run.path} was recorded to step {last}, and the loop goes on after step {step}: the checkpoint of "
                f"step {missed[0]} between them is lost. Start the loop from an earlier checkpoint of its own, or "
                "record into another directory; nothing was changed."
            )
        if step in run.steps:
            saved, now = run.load_checkpoint(step).model, self._recorded.tensors()
            same = saved.keys() == now.keys() and all(torch.equal(saved[n], t.cpu()) for n, t in now.items())
            if not same:
                raise QflError(
                    f"the model does not have the weights that {run.path} recorded at step {step}: it is of another "
                    "training, or at another step. Load the loop's own checkpoint first, say its step (step=...), or "
                    "record into another directory; nothing was changed."
                )

    def _require_next(self, step: int) -> None:
        """Raise unless `step` is the one after the last."""
        if not self._is_open:
            raise QflError(
                f"the recorder of {self._writer.path} is closed after step {self._at} of {self.config.last_step}. "
                "Give n_steps as many updates as the loop makes."
            )
        if step != self._at + 1:
            first = self.config.first_step + 1
            raise ValueError(
                f"step must be {self._at + 1}, the update after the last one recorded, got {step}. It counts updates "
                f"done: call step({first}) after the first update, and once after each."
            )

    def _state(self, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
        """The optimiser's state by the names of the model's parameters."""
        if (
            optimizer is None
            or type(optimizer) not in _KNOWN
            or any(group.get("amsgrad") for group in optimizer.param_groups)
        ):
            found = "none" if optimizer is None else type(optimizer).__name__
            raise QflError(
                "save_optimizer=True keeps the state of torch's AdamW, Adam (without amsgrad) or SGD at every step, "
                f"got {found}. Call step(step, optimizer), or record without save_optimizer."
            )
        return named_state(optimizer, self._model.named_parameters())

    def _save(self, state: Mapping[str, Tensor] | None) -> None:
        """Save a checkpoint of the weights as they are."""
        optimizer = None if state is None else dict(state)
        saved = ckpt.Checkpoint(self._at, self.config.digest, self._recorded.tensors(), optimizer)
        self._writer.save(saved, keep_optimizer=True)

    def _flush(self, validation: Mapping[str, float] = MappingProxyType({})) -> None:
        """Write the rows since the last flush; `validation` belongs to the last of them."""
        if not self._pending:
            return
        rows = [Update(s, lr, None if loss is None else float(loss), None, t) for s, lr, loss, t in self._pending]
        self._pending.clear()
        self._session.record(rows, validation)

    def _scores(self) -> dict[str, float]:
        """Loss and exact match on the fixed validation set, as `train` logs them."""
        device = model_device(self._model)
        with undisturbed(self._model):
            scores = evaluate(lambda t, at, _: self._recorded.logits(t.to(device), at).cpu(), self._validation)
        return {f"val_{name}": value for name, value in scores.means().items()}


def _require_range(n_steps: int, step: int, tokens_per_step: int | None) -> None:
    """Raise `ValueError` where a number is out of its range."""
    rules = {"n_steps": (n_steps, 1), "step": (step, 0), "tokens_per_step": (tokens_per_step, 1)}
    for name, (value, least) in rules.items():
        if value is not None and operator.index(value) < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
