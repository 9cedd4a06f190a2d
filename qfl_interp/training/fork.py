"""Forks: from a checkpoint of a run train on with something changed, in a run of its own on the same compute axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from qfl_interp.config import Intervene, Options, TrainConfig
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.hf_model_config import HFModelConfig
from qfl_interp.recipes import OPTIMIZERS, UPDATES
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import Fork, RunConfig, Start
from qfl_interp.runs.run import Run
from qfl_interp.runs.writer import RunWriter
from qfl_interp.training.intervene import without_directions
from qfl_interp.training.loop import TrainingLoop
from qfl_interp.training.schedule import require_decays
from qfl_interp.training.train import plan_run
from qfl_interp.training.updates import in_module

# A change of one of these starts the schedule anew, at the fork's first step.
_CLOCK = ("schedule", "schedule_options", "warmup_fraction", "min_lr_fraction", "decay_fraction")
# What nobody said of a recorded run's loop.
_UNSAID = ("optimizer", "lr", "schedule", "batch_size")
# The fields of a parameter's state by which the optimisers that a recorder keeps are told apart.
_STATE_OF = {"adamw": "exp_avg_sq", "adam": "exp_avg_sq", "sgd": "momentum_buffer"}
_CHANGEABLE = sorted({f.name for f in dataclasses.fields(TrainConfig)} - {"n_steps", "budget_flops"})


def fork(
    parent: Run,
    step: int,
    out: str | Path,
    *,
    n_steps: int | None = None,
    frozen: Sequence[str] | None = None,
    roll_back: Mapping[str, int] | None = None,
    intervene: Intervene | Literal[False] | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
    **changes: Any,
) -> Run:
    """Train on from a checkpoint of a run with something changed, in a run of its own.

    Steps, FLOPs and data go on where the parent was, so that parent and forks share one axis. A fork without changes
    ends in the parent's own bits. The schedule goes on as the parent's, unless `n_steps` or one of its fields is given:
    then it starts anew at the fork. Under an intervention `val_...` are scores with it installed, `val_free_...` those
    of the model without; lenses look at the model without.

    Args:
        parent: The run.
        step: A saved step, with the optimiser's state (`save_optimizer=True`) where the optimiser keeps one.
        out: The run directory to make.
        n_steps: Updates of the fork; by default as many as the parent still made.
        frozen: Modules that are not trained, by name: "embed", "blocks.0.attn"; by default those that were frozen in
            the parent. An empty list trains all.
        roll_back: Modules that start from an older checkpoint of the parent: name to step.
        intervene: What is installed while it trains. A parent that was trained under an intervention does not hand it
            on: give one, whose directions are fitted anew, or False to train on without.
        resume: Continue the fork in `out` if there is one.
        device: Where to train.
        progress: Draw a live bar on standard error.
        changes: Fields of `TrainConfig`, such as `lr=1e-4`, `seed=7` (other data), `loss="hinge"`, `weight_decay=0.0`.

    Raises:
        QflError: The step is not saved, or without the state that its optimiser needs; a change, module or step that
            does not exist; an intervention that would never act, or a parent's of which nothing is said; a recorded
            parent, and not all of `optimizer`, `lr`, `schedule` and `batch_size` are given, or it is of a Hugging Face
            model; or as `train`.

    Example:
        `qfl fork runs/add16 --step 400 --project-out carry --out runs/add16_without_carry`
    """
    (step,) = parent.resolve_steps(step)
    for name in changes:
        if name not in _CHANGEABLE:
            raise unknown_name("field of TrainConfig that a fork can change", name, _CHANGEABLE)
    if parent.config.recorded is not None:
        _require_said(parent, changes)
    length = parent.config.last_step - step if n_steps is None else n_steps
    if length < 1:
        raise QflError(f"a fork from step {step}, the last of {parent.path}, needs n_steps: the updates it makes.")
    config = _changed(parent, length, changes)
    anew = n_steps is not None or any(name in changes for name in _CLOCK)
    clock = (step, length) if anew else _clock(parent.config)
    before = parent.config.fork
    if frozen is None:
        frozen = () if before is None else before.frozen
    if intervene is None and before is not None and before.intervene is not None:
        spec = before.intervene
        raise QflError(
            f"{parent.path} was trained under an intervention ({spec.kind} of {spec.feature!r}), which a fork of it "
            "does not take over. Give one again, whose directions are fitted anew, or intervene=False "
            "(--no-intervention) to train on without."
        )
    planned = Fork(*clock, tuple(frozen), Options(roll_back or {}), intervene or None)
    if planned.intervene is not None and config.optimizer in UPDATES:
        raise QflError(
            f"an intervention needs hooks, which updates of {config.optimizer!r} do not run. "
            "Fork a run of another optimiser."
        )
    require_decays(config, clock[1])
    run_config = plan_run(parent.task, parent.config.model, config, Start(parent.run_id, step))
    if planned != Fork(step, length):  # its own clock and nothing else is what a branch is
        run_config = dataclasses.replace(run_config, fork=planned)
    state = _initial_state(parent, step, config, planned)
    writer = RunWriter(Path(out), run_config, parent.task, resume=resume)
    loop = TrainingLoop(parent.task, run_config, writer, device, lambda run: (), initial=state)
    with writer:
        loop.run(progress=progress)
    return Run.open(out, task=parent.task)


def branch(
    parent: Run,
    step: int,
    n_steps: int,
    out: str | Path,
    *,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Run:
    """Decay the learning rate to its floor from a checkpoint of a "wsd" run's stable stage: a fork that does that.

    One stable run gives the end points of many compute budgets.

    Args:
        parent: A run with schedule "wsd" and `save_optimizer=True`.
        step: A saved step of its stable stage.
        n_steps: Updates of the branch, all of them decay.
        out: The run directory to make.
        resume: As in `train`.
        device: As in `train`.
        progress: As in `train`.

    Raises:
        QflError: The parent has another schedule, no optimiser state at `step`, or `step` is outside the stable stage;
            or as `train`.
    """
    config = parent.config.train
    if config.schedule != "wsd":
        raise QflError(f"a branch needs a parent with schedule 'wsd', got {config.schedule!r} in {parent.path}.")
    total = parent.config.n_steps
    stable = (int(config.warmup_fraction * total), total - int(config.decay_fraction * total))
    if not stable[0] <= step <= stable[1]:
        raise QflError(f"step of a branch must lie in the parent's stable stage {list(stable)}, got {step}.")
    how: dict[str, Any] = {"resume": resume, "device": device, "progress": progress}
    decay = {"warmup_fraction": 0.0, "decay_fraction": 1.0}
    return fork(parent, step, out, n_steps=n_steps, n_val=config.n_val, **decay, **how)


def _require_said(parent: Run, changes: Mapping[str, Any]) -> None:
    """Raise `QflError` unless a fork of a recorded run can be trained, and how is said."""
    if parent.config.model.kind == HFModelConfig.kind:
        raise QflError(f"{parent.path} is of a Hugging Face model, which no fork trains. Go on with the loop that did.")
    if lacking := [name for name in _UNSAID if name not in changes]:
        raise QflError(
            f"{parent.path} was recorded from a loop of your own, of which nothing says {', '.join(lacking)}. Give "
            f"{', '.join(f'{name}=...' for name in lacking)}; other fields of TrainConfig are at their defaults."
        )


def _changed(parent: Run, n_steps: int, changes: Mapping[str, Any]) -> TrainConfig:
    """The parent's configuration with changes; what its optimiser decides by default is decided anew for another."""
    values = parent.config.train.to_dict()
    if changes.get("optimizer", values.get("optimizer", "adamw")) != parent.config.train.optimizer:
        values |= {"weight_decay": None, "clip_norm": None}
        values.pop("optimizer_options", None)
    if changes.get("schedule", values["schedule"]) != values["schedule"]:
        values.pop("schedule_options", None)
    # The parent's validation examples: of a shorter run there would be others.
    values |= {"n_val": parent.config.n_val, "n_steps": n_steps, "budget_flops": None}
    return TrainConfig.from_dict(values | dict(changes))


def _clock(parent: RunConfig) -> tuple[int, int]:
    """From which step the parent's schedule counts, and over how many."""
    if parent.fork is not None:
        return parent.fork.clock_start, parent.fork.clock_steps
    return parent.first_step, parent.n_steps


def _initial_state(parent: Run, step: int, config: TrainConfig, planned: Fork) -> ckpt.Checkpoint:
    """The parent's weights and optimiser, modules rolled back."""
    state = _loaded(parent, step, config)
    names = list(state.model)
    for module in (*planned.frozen, *planned.rolled_back):
        if not _of_module(names, module):
            known = sorted({name.rpartition(".")[0] for name in names} | {".".join(n.split(".")[:2]) for n in names})
            raise unknown_name("module with parameters", module, known)
    if planned.frozen and all(any(in_module(name, module) for module in planned.frozen) for name in names):
        raise QflError(f"frozen must leave something to train, got all of the model: {list(planned.frozen)}.")
    model, optimizer = dict(state.model), dict(state.optimizer or {})
    for module, older in planned.rolled_back.items():
        if not parent.config.first_step <= int(older) <= step:
            raise QflError(f"roll_back must name steps up to the fork's {step}, got {older} for {module!r}.")
        before = _loaded(parent, int(older), config)
        for name in _of_module(names, module):
            model[name] = before.model[name]
            optimizer = {k: v for k, v in optimizer.items() if k.rpartition("/")[0] != name}
            optimizer |= {k: v for k, v in (before.optimizer or {}).items() if k.rpartition("/")[0] == name}
    return ckpt.Checkpoint(step, state.config_digest, model, optimizer)


def _loaded(parent: Run, step: int, config: TrainConfig) -> ckpt.Checkpoint:
    """A checkpoint with the state that an optimiser needs; of another optimiser than the parent's, with none."""
    state = parent.load_checkpoint(step, with_optimizer=True)
    recorded = parent.config.recorded is not None
    if recorded and state.optimizer is not None:
        wanted = _STATE_OF.get(config.optimizer)
        same = not state.optimizer or any(name.endswith(f"/{wanted}") for name in state.optimizer)
    else:
        same = recorded or config.optimizer == parent.config.train.optimizer
    if not same or step == parent.config.first_step == 0:
        return state._replace(optimizer={})
    plain = config.optimizer in UPDATES or (config.optimizer == "sgd" and not config.optimizer_options.get("momentum"))
    if state.optimizer is None and not plain:
        raise QflError(
            f"step {step} of {parent.path} has no optimiser state. Train or record the parent with save_optimizer=True"
            + ("." if recorded else f", or fork with another optimiser ({', '.join(OPTIMIZERS)}), which starts afresh.")
        )
    # The directions of a parent that was trained under an intervention are not this fork's.
    return state._replace(optimizer=without_directions(state.optimizer or {}))


def _of_module(names: Sequence[str], module: str) -> list[str]:
    return [name for name in names if in_module(name, module)]
