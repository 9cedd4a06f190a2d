"""Start and resume training runs; the same seed gives the same bits, however often a run was killed."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import torch

from qfl_interp.config import TrainConfig
from qfl_interp.data.examples import held_out
from qfl_interp.data.task import Task
from qfl_interp.data.training_stream import batch_sizes
from qfl_interp.errors import QflError
from qfl_interp.model_kinds import AnyModelConfig
from qfl_interp.models.given import GivenModel, configured
from qfl_interp.recipes import LOSSES
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import RunConfig, Start
from qfl_interp.runs.flops import flops_per_step, steps_for_budget
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Steps
from qfl_interp.runs.writer import RunWriter
from qfl_interp.training.loop import MakeLoggers, TrainingLoop
from qfl_interp.training.schedule import require_decays
from qfl_interp.training.watch import LensWatch, Watched

# Validation examples over which the mean number of real tokens is taken, as in the paper.
_N_CONTEXT = 128
# Beyond it a float, which metrics and plots count in, does not hold every step.
_MOST_STEPS = 2**53


def mean_real_tokens(task: Task, seed: int) -> float:
    """Mean number of real tokens of a sequence (to its first end of sequence), over the first 128 validation examples.

    Raises:
        QflError: The task has too few problems for a validation or test set.
    """
    examples = held_out(task, "val", _N_CONTEXT, seed=seed, stream="context")
    # A problem so small that nothing is left to test on is refused now rather than by an analysis after training.
    held_out(task, "test", 1, seed=seed, stream="context")
    mask = task.encode(examples).loss_mask
    # Padding after the first end of sequence is not scored, so the last scored token is the last real one.
    real = mask.shape[1] - mask.flip(1).int().argmax(dim=1)
    return float(real.double().mean())


def plan_run(
    task: Task,
    model: AnyModelConfig,
    config: TrainConfig,
    start: Start | None = None,
    *,
    n_ctx_real: float | None = None,
    allow_overshoot: bool = False,
) -> RunConfig:
    """What a training run will be: its steps and sizes, before anything is made.

    `n_ctx_real` is `mean_real_tokens(task, config.seed)`, where the caller has it already. With `allow_overshoot` a
    budget below one update is one update, as in the paper, instead of an error.

    Raises:
        QflError: The budget is smaller than one update or pays for more than 2**53, the task has too few problems for a
            validation or test set, or it lists none where the batches come from a fixed training set; the loss does not
            fit the task; or a schedule's decays are too short.
    """
    if task.train_fraction == 0:
        raise QflError(f"task {task.name!r} has no training split: train_fraction is 0. Give it a larger one.")
    _require_loss_fits(task, config)
    batch_size, n_train = batch_sizes(task, config)
    n_ctx_real = mean_real_tokens(task, config.seed) if n_ctx_real is None else n_ctx_real
    if config.n_steps is not None:
        n_steps = config.n_steps
    else:
        assert config.budget_flops is not None
        one = flops_per_step(model, batch_size=batch_size, n_ctx=n_ctx_real)
        if config.budget_flops < one and not allow_overshoot:
            raise QflError(
                f"budget_flops must pay for at least one update of {one:.3g} FLOPs, got {config.budget_flops:.3g}. "
                "Raise the budget, or use a smaller model or batch."
            )
        n_steps = steps_for_budget(model, budget_flops=config.budget_flops, batch_size=batch_size, n_ctx=n_ctx_real)
        if n_steps > _MOST_STEPS:
            raise QflError(
                f"budget_flops must pay for at most 2**53 updates of {one:.3g} FLOPs, got {config.budget_flops:.3g}. "
                "Lower the budget."
            )
    if start is None:  # a fork's schedule may go on from its parent
        require_decays(config, n_steps)
    first = start.step if start else 0
    return RunConfig(
        task=task.name, length=task.length, model=model, train=config, first_step=first, last_step=first + n_steps,
        n_ctx=task.n_ctx, n_ctx_real=n_ctx_real, d_vocab=task.d_vocab, start=start, task_options=task.options,
        n_train=n_train, d_out=task.d_out,
    )  # fmt: skip


def _require_loss_fits(task: Task, config: TrainConfig) -> None:
    """Raise `QflError` where a loss of token ids is asked for on a real-valued task."""
    if task.d_out is not None and config.loss_name in LOSSES and config.loss_name != "squared_error":
        raise QflError(
            f"loss must be 'squared_error' (or a function of yours) on the real-valued task {task.name!r}, got "
            f"{config.loss_name!r}, which needs token ids to predict."
        )


def train_planned(
    task: Task, run: RunConfig, out: Path, *, device: str | torch.device = "cpu", resume_seconds: float = 30.0
) -> Run:
    """Train, or continue, a run as `plan_run` made it, without a progress bar; for sweeps. Raises as `train` does."""
    writer = RunWriter(out, run, task, resume=True, resume_seconds=resume_seconds)
    loop = TrainingLoop(task, run, writer, device, lambda _: ())
    with writer:
        loop.run(progress=False)
    return Run(out, run, task)


def train(
    task: Task,
    model_config: GivenModel,
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | torch.device = "cpu",
    make_loggers: MakeLoggers = lambda run: (),
    lenses: Watched = MappingProxyType({}),
    at: Steps = "log:20",
    apart: bool = False,
    progress: bool = True,
    resume_seconds: float = 30.0,
) -> Run:
    """Train a model and keep its checkpoints from the first step to the last.

    The same task, configurations, device and thread count give the same bits, however often the run was killed and
    resumed on the way.

    Args:
        task: What is learned.
        model_config: Shape of the model; or a `HookedTransformerConfig` of transformer_lens; or a `HookedTransformer`,
            whose weights are the initial ones and which is not changed (`models.given.configured`).
        config: Length, optimisation, seed.
        out: The run directory to make.
        resume: Continue the run in `out` if there is one; a finished one is returned as it is.
        device: Where to train.
        make_loggers: Gives the mirrors of the metrics, once the run directory is made.
        lenses: Lenses whose tables are computed as checkpoints appear, with the arguments of their functions:
            `{"probe": {"features": "carry"}, "curvature": {}}`. The numbers of their short tables go to the mirrors;
            the run's bits are those without. A lens that fails is named, and training goes on.
        at: At which of the run's checkpoints they look, as in a lens' `steps`.
        apart: Compute them in a second process, so that training does not wait.
        progress: Draw a live bar on standard error.
        resume_seconds: Least time between two resume points; a killed run repeats at most this much, and the stretch
            between two checkpoints.

    Returns:
        The finished run.

    Raises:
        QflError: `out` is taken, a lens is unknown or does not take its arguments, the budget is below one update, the
            disk is full, another process trains into `out`, there is too little memory, or the model cannot be trained
            on this task, which is found before `out` is made.
        DivergedError: The loss is not finite or above `config.divergence_loss`; names the step, the learning rate and
            the last good checkpoint.
    """
    shape, weights = configured(model_config)
    run_config = plan_run(task, shape, config)
    writer = RunWriter(Path(out), run_config, task, resume=resume, resume_seconds=resume_seconds)
    initial = None if weights is None else ckpt.Checkpoint(0, run_config.digest, weights, {})
    watch = LensWatch(Path(out), run_config, task, lenses, at, device=device, apart=apart) if lenses else None
    loop = TrainingLoop(task, run_config, writer, device, make_loggers, initial, watch)
    with writer:
        loop.run(progress=progress)
    return Run.open(out, task=task)


def resume(
    path: str | Path, *, task: Task | None = None, device: str | torch.device = "cpu", progress: bool = True
) -> Run:
    """Continue the run in a directory with its own settings; a finished one is returned as it is.

    Args:
        path: The run directory.
        task: As in `Run.open`.
        device: Where to train.
        progress: Draw a live bar on standard error.

    Raises:
        QflError: `path` is no run or one of another task, another process trains into it, or it is a fork without a
            resume point (call `fork` again with resume=True).
    """
    found = Run.open(path, task=task)
    if found.config.recorded is not None:
        raise QflError(
            f"{found.path} was recorded from a loop of your own: only that can go on. Start it again from its own "
            "checkpoint, with Recorder(..., step=..., resume=True); or train on here from a step: fork(...)."
        )
    writer = RunWriter(found.path, found.config, found.task, resume=True)
    loop = TrainingLoop(found.task, found.config, writer, device, lambda run: (), _given_weights(found))
    with writer:
        loop.run(progress=progress)
    return found


def _given_weights(run: Run) -> ckpt.Checkpoint | None:
    """The given initial weights of a run, from its first checkpoint; None where there are none."""
    first = run.config.first_step
    if run.config.model.weights is None or first not in run.steps:
        return None
    try:
        return run.load_checkpoint(first)._replace(optimizer={})
    except QflError:  # the loop goes on from a later state, or says that there is none
        return None
