"""A recorder as a callback of `transformers.Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qfl_interp.data.task import Task
from qfl_interp.errors import QflError
from qfl_interp.training.recorder import Recorder


class RecorderCallback(TrainerCallback):
    """Writes a run directory while a `Trainer` trains: `Trainer(..., callbacks=[RecorderCallback(out, task)])`.

    As `Recorder`, whose further settings it takes. A training that `resume_from_checkpoint` goes on with goes on in the
    same directory. The Trainer tells a callback no loss of a single update, so that `train_loss` is not in the metrics.
    Of several processes the first one records.

    Args:
        out: The run directory to make.
        task: What the model is examined on.
        settings: `tokens_per_step`, `n_checkpoints`, `save_every`, `n_val`, `seed`, `save_optimizer` of `Recorder`.

    Raises:
        QflError: When training begins: as `Recorder`, or the weights are spread over processes (FSDP, DeepSpeed).
    """

    def __init__(self, out: str | Path, task: Task, **settings: Any) -> None:
        self.out, self.task, self.settings = out, task, settings
        self._recorder: Recorder | None = None
        self._lr: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the recorder, of the model as it is."""
        if not state.is_world_process_zero:
            return
        if args.fsdp or args.deepspeed:
            raise QflError("a recorder needs the whole model in one process; FSDP and DeepSpeed spread its weights.")
        step = state.global_step
        how = {"n_steps": state.max_steps, "step": step, "resume": step > 0}
        self._recorder = Recorder(self.out, kwargs["model"], self.task, **how, **self.settings)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate: after the step the schedule has moved it."""
        self._lr = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write down the update."""
        if self._recorder is not None:
            wrapped = kwargs["optimizer"]
            self._recorder.step(state.global_step, getattr(wrapped, "optimizer", wrapped), lr=self._lr)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is pending."""
        if self._recorder is not None:
            self._recorder.close()
