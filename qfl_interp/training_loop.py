"""The training loop: fresh examples, masked loss, AdamW; metrics, checkpoints and resume points on the way."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor

from qfl_interp import checkpoint as ckpt
from qfl_interp.compute import actual_flops_per_step, flops_per_step
from qfl_interp.config import TrainConfig
from qfl_interp.data import ExampleStream, held_out
from qfl_interp.errors import QflError
from qfl_interp.fast_forward import compile_fast_logits, fast_logits
from qfl_interp.interrupt import deferred_interrupt
from qfl_interp.loggers import Logger
from qfl_interp.metrics import evaluate, masked_loss, scored_span, targets
from qfl_interp.model import HookedTransformer, build_model, load_parameters, parameters_to_save
from qfl_interp.progress import progress_bar
from qfl_interp.run import Run
from qfl_interp.run_config import RunConfig
from qfl_interp.run_writer import RunWriter
from qfl_interp.schedule import checkpoint_steps, is_evaluation_step, learning_rate
from qfl_interp.task import Task

# Losses are checked and written at least this often, in updates.
_LOG_EVERY = 10

# The mirrors of a run's metrics, made once its directory is.
MakeLoggers = Callable[[Run], Sequence[Logger]]


class DivergedError(QflError):
    """Training stopped at a loss that is not finite or far too high; the run keeps its good checkpoints."""


class _Update(NamedTuple):
    """What one optimiser update left to be logged; the tensors are read later, not to wait for the device."""

    step: int
    lr: float
    loss: Tensor
    grad_norm: Tensor
    seconds: float


class TrainingLoop:
    """One training session on a run directory."""

    def __init__(
        self,
        task: Task,
        run: RunConfig,
        writer: RunWriter,
        device: str | torch.device,
        make_loggers: MakeLoggers,
        initial: ckpt.Checkpoint | None = None,
    ) -> None:
        self.run_config, self.config, self.writer = run, run.train, writer
        self.make_loggers, self.loggers = make_loggers, list[Logger]()
        self.device = torch.device(device)
        self.stream = ExampleStream(task, self.config.seed, self.config.batch_size)
        self.model = build_model(run.model, task, seed=self.config.seed).to(self.device, print_details=False)
        self.forward = functools.partial(fast_logits, self.model)
        self.optimizer = _make_optimizer(self.model, self.config)
        self.step = run.first_step
        self.initial = initial
        self.val_batch = task.encode(
            held_out(task, "val", self.config.n_val, seed=self.config.seed, stream="validation")
        )
        batch, n_ctx = self.config.batch_size, run.n_ctx
        self.flops = flops_per_step(run.model, batch_size=batch, n_ctx=run.n_ctx_real)
        self.actual = actual_flops_per_step(run.model, batch_size=batch, n_ctx=n_ctx, d_vocab=run.d_vocab)
        self.to_save = {run.first_step + s for s in checkpoint_steps(run.n_steps, self.config.n_checkpoints)}
        self.pending: list[_Update] = []
        self.latest: dict[str, float] = {}

    def run(self, *, progress: bool) -> None:
        """Train from where the directory stands to the last step."""
        if self._is_complete():
            self.writer.finish()
            return
        with progress_bar(enabled=progress) as bar:
            for refused in self._restore():
                bar.console.print("passed over:", refused, markup=False)
            self.writer.record_session(self.device)
            anew = self.step == self.run_config.first_step
            self.started = time.monotonic() - self.writer.truncate_metrics(self.step - anew)
            if self.config.compile:
                self.forward = compile_fast_logits(self.model)
            self.loggers.extend(self.make_loggers(Run(self.writer.path, self.run_config)))
            try:
                with deferred_interrupt() as interrupted:
                    self._updates(bar, interrupted)
            finally:
                for logger in self.loggers:
                    logger.close()
        self.writer.finish()

    def _is_complete(self) -> bool:
        """Whether the final checkpoint is there and whole; a damaged one is trained again."""
        run = Run(self.writer.path, self.run_config)
        try:
            return run.finished and bool(run.load_checkpoint(self.run_config.last_step))
        except QflError:
            return False

    def _restore(self) -> list[str]:
        """Load the latest resume point, or the initial weights; returns why later points were passed over."""
        state, refused = self.writer.resume_point()
        state = state or self.initial
        if state is None and self.run_config.start is not None:
            raise QflError(
                f"{self.writer.path} is a branch of {self.run_config.start.run_id} and has no resume point yet. "
                "Call branch(...) again with resume=True."
            )
        if state is not None:
            assert state.optimizer is not None
            load_parameters(self.model, state.model)
            _load_optimizer(self.model, self.optimizer, state.optimizer)
            self.step = state.step
        return refused

    def _updates(self, bar: Progress, interrupted: Callable[[], bool]) -> None:
        """All remaining updates, with what is due after each; Ctrl-C leaves a resume point between two of them."""
        run = self.run_config
        shown = bar.add_task("training", total=run.last_step, completed=self.step, detail="")
        if self.step == run.first_step:
            self._write([self._row(self.step, 0.0, **self._validation())])
            self._checkpoint()
        while self.step < run.last_step:
            self._update()
            evaluation = is_evaluation_step(
                self.step - run.first_step, n_steps=run.n_steps, eval_fraction=self.config.eval_fraction
            )
            if evaluation or self.step in self.to_save or len(self.pending) >= _LOG_EVERY:
                self._flush(self._validation() if evaluation else {})
                bar.update(shown, completed=self.step, detail=self._detail())
            if self.step in self.to_save:
                self._checkpoint()
            if interrupted():
                self._flush()
                self.writer.save_resume_point(self._state())
                raise KeyboardInterrupt

    def _update(self) -> None:
        """One optimiser update on fresh examples."""
        config, run = self.config, self.run_config
        batch = self.stream.batch(self.step)
        span = scored_span(batch.loss_mask)
        target = targets(batch.tokens, batch.loss_mask, span).to(self.device)
        loss = masked_loss(self.forward(batch.tokens.to(self.device), span), target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm, foreach=True)
        lr = learning_rate(config, step=self.step - run.first_step, n_steps=run.n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        self.pending.append(_Update(self.step, lr, loss.detach(), norm.detach(), time.monotonic() - self.started))

    def _flush(self, validation: Mapping[str, float] = MappingProxyType({})) -> None:
        """Check the losses since the last flush and write them; `validation` belongs to the last of them."""
        if not self.pending:
            return
        losses = torch.stack([update.loss for update in self.pending]).tolist()
        norms = torch.stack([update.grad_norm for update in self.pending]).tolist()
        rows = []
        for update, loss, norm in zip(self.pending, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm) and loss <= self.config.divergence_loss):
                self._write(rows)
                raise self._diverged(update.step, update.lr, f"training loss {loss:.4g}, gradient norm {norm:.4g}")
            rows.append(self._row(update.step, update.seconds, lr=update.lr, train_loss=loss, grad_norm=norm))
        rows[-1] |= validation
        self._write(rows)
        if not all(math.isfinite(value) for value in validation.values()):
            raise self._diverged(self.step, self.pending[-1].lr, f"validation {dict(validation)}")
        self.pending.clear()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the metrics and to the loggers."""
        self.writer.append_metrics(rows)
        for row in rows:
            self.latest |= row
            for logger in self.loggers:
                logger.log(row["step"], {name: value for name, value in row.items() if name != "step"})

    def _diverged(self, step: int, lr: float, what: str) -> DivergedError:
        """The error that names the place and what is left."""
        # The loss of an update is that of the weights before it: the checkpoint just before is the one that diverged.
        saved = [s for s in Run(self.writer.path, self.run_config).steps if s < step - 1]
        kept = f"step {saved[-1]}" if saved else "none"
        return DivergedError(
            f"training diverged at step {step}: {what}, learning rate {lr:.3g} (losses must stay finite and below "
            f"{self.config.divergence_loss:g} nats). Last good checkpoint in {self.writer.path}: {kept}. "
            "Try a lower lr or a longer warm-up."
        )

    def _row(self, step: int, seconds: float, **values: float) -> dict[str, Any]:
        """One row of metrics; what was not measured is not in it."""
        tokens = (step - self.run_config.first_step) * self.config.batch_size * self.run_config.n_ctx
        return {
            "step": step,
            "flops": step * self.flops,
            "actual_flops": step * self.actual,
            "seconds": round(seconds, 3),
            "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
            **values,
        }

    def _validation(self) -> dict[str, float]:
        """Loss and exact match on the fixed validation set, both ways of counting."""

        def forward(tokens: Tensor, positions: slice, _rows: slice) -> Tensor:
            return fast_logits(self.model, tokens.to(self.device), positions)

        scores = evaluate(lambda *a: forward(*a).cpu(), self.val_batch)
        return {f"val_{name}": value for name, value in scores.means().items()}

    def _checkpoint(self) -> None:
        """Save this step."""
        self.writer.save(self._state(), keep_optimizer=self.config.save_optimizer)

    def _state(self) -> ckpt.Checkpoint:
        """Weights and optimiser as they are."""
        optimizer = _optimizer_tensors(self.model, self.optimizer)
        return ckpt.Checkpoint(self.step, self.run_config.digest, parameters_to_save(self.model), optimizer)

    def _detail(self) -> str:
        """What the progress bar says."""
        seen = {
            "loss": "train_loss",
            "val": "val_loss",
            "exact": "val_exact",
            "FLOPs": "flops",
            "tok/s": "tokens_per_s",
        }
        return "  ".join(f"{short} {self.latest[name]:.3g}" for short, name in seen.items() if name in self.latest)


def _make_optimizer(model: HookedTransformer, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over every parameter, gains and embeddings included, as in the paper."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _optimizer_tensors(model: HookedTransformer, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """AdamW's state as "<parameter>/<exp_avg, exp_avg_sq or step>"; empty before the first update."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(model: HookedTransformer, optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Put back what `_optimizer_tensors` took."""
    indices = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        state.setdefault(indices[name], {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
