"""A homogeneous network at a checkpoint: the loss along the step that training takes from it, sharpness, soft ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from qfl_interp.data.examples import in_split
from qfl_interp.data.task import Batch
from qfl_interp.data.training_stream import make_stream, training_problems
from qfl_interp.homogeneous.config import SoftRank
from qfl_interp.homogeneous.measuring import evaluation_row, layer_rows, step_row
from qfl_interp.homogeneous.updates import Steps, sharpness_batch
from qfl_interp.models.build import HookedModel, build_model
from qfl_interp.models.forward import training_forward
from qfl_interp.models.mlp import SampleReader
from qfl_interp.runs.run import Run
from qfl_interp.training.schedule import scheduled_rate
from qfl_interp.training.updates import make_updates


class Shared(NamedTuple):
    """What all checkpoints need: how steps are chosen, all samples by split, those of the sharpness, the start."""

    steps: Steps
    peak_lr: float
    splits: Mapping[str, Batch]
    sample: Batch
    start: tuple[Tensor, ...]


def shared_of(run: Run, n_sharpness: int) -> Shared:
    """What all checkpoints of a run need."""
    task, train = run.task, run.config.train
    first = cast(SampleReader, run.load_model(run.steps[0]))
    problems = task.problems()
    assert problems is not None
    held = ~in_split(task, problems, "train") & (in_split(task, problems, "val") | in_split(task, problems, "test"))
    splits = {"train": task.encode(training_problems(task)), "test": task.encode(problems[held])}
    start = tuple(w.detach().clone() for w in first.weights)
    initial = build_model(run.config.model, task, seed=train.seed)
    peak = make_updates(initial, task, run.config, training_forward(initial), torch.device("cpu")).peak_lr
    return Shared(Steps(train), peak, splits, sharpness_batch(task, n_sharpness, train.seed), start)


def measure(
    run: Run, shared: Shared, model: HookedModel, step: int, sharpness: bool, soft_rank: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of a checkpoint, and a row a layer; none of layers where no step follows."""
    view, steps = cast(SampleReader, model), shared.steps
    row = evaluation_row(
        view, steps, shared.splits, shared.sample if sharpness else None,
        seed=run.config.train.seed, soft_rank=cast(SoftRank, soft_rank),
    )  # fmt: skip
    layers: list[dict[str, Any]] = []
    if step < run.config.last_step:
        tokens = make_stream(run.task, run.config.train).batch(step)
        batch = steps.minibatch(view, tokens)
        scheduled = scheduled_rate(run.config, step, peak=shared.peak_lr)
        row |= {"c0": batch.value}
        if math.isfinite(batch.value) and batch.residual_norm > 0 and min(batch.unit_backward_norms) > 0:
            xi, lr = steps.chosen(batch, scheduled)
            row |= step_row(view, steps, batch, xi, lr, steps.targets(view, tokens))
            layers = layer_rows(lr, batch, xi, shared.start)
    else:
        row["lr"] = float(run.metrics["lr"].iloc[-1])  # of the update that led here
    lr = row.get("lr", math.nan)
    return row | {f"edge_ratio_{of}": lr * row.get(f"lambda_{of}", math.nan) / 2 for of in ("h", "p")}, layers
