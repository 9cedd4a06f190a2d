"""The trainings that docs/edge_of_stability.md tells of: which there are, and one of them run and summed up."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import qfl_interp as qfl
from qfl_interp.analyses import edge
from qfl_interp.data.task import Task
from qfl_interp.homogeneous.config import RULES
from qfl_interp.homogeneous.depthwise import relative_updates
from qfl_interp.homogeneous.minibatch import run_minibatch
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.models.mlp import HomogeneousMLP
from qfl_interp.recipes import OPTIMIZERS
from qfl_interp.tables import column, records
from qfl_interp.training.schedule import learning_rate
from qfl_interp.training.session import TrainingStopped

SEEDS = (0, 1, 2)
PATTERNS = {2: "quadratic", 1: "linear", 0: "constant"}
# The width m of the quadratic pattern at depth 4; the other patterns get about as many weights.
MATCHED_DEPTH, MATCHED_WIDTH = 4, 64
# Deeper, m = 20 with quadratic widths: 1.5 million weights.
DEEP = {"depth": 8, "width": 20, "width_exponent": 2}
# Networks over which the norm of the features is said to vary, and what they are like.
N_NETWORKS, NORM_WIDTH, NORM_DEPTH = 200, 32, 16


class Cell(NamedTuple):
    """One training of an experiment.

    Attributes:
        experiment: Which one.
        rule: A key of `RULES`.
        shape: Fields of `MLPConfig` beside sizes of the data.
        train: Fields of `TrainConfig`, and settings of the optimiser beside those of the rule.
        n_train: Training examples, from the first on; 0 for all.
    """

    experiment: str
    rule: str
    shape: dict[str, Any]
    train: dict[str, Any]
    n_train: int = 0

    def name(self, data: str) -> str:
        """The part of the table that holds its row."""
        return hashlib.sha256(json.dumps([data, *self], sort_keys=True).encode()).hexdigest()[:16]


def matched_width(r: int, d_in: int, d_out: int) -> int:
    """The width m at which pattern r has about as many weights as the quadratic one."""

    def weights(r: int, width: int) -> int:
        return MLPConfig(d_in, d_out, width, MATCHED_DEPTH, r).size

    wanted = weights(2, MATCHED_WIDTH)
    return min(range(1, 20 * MATCHED_WIDTH), key=lambda width: abs(weights(r, width) - wanted))


def _warm_up(q: float, **others: Any) -> dict[str, Any]:
    """Fields of `Cell.train`: 160 steps with warm-up over the first half, if nothing else is said."""
    return {"n_steps": 160, "edge_multiple": q, "schedule": "ramp", "save_every": 4} | others


def _cold_starts(task: Task) -> Iterator[Cell]:
    """E1: constant rates."""
    patterns = product((4, 8, 16), (0, 1, 2))
    for loss, (depth, r), rule, q in product(
        ("cross_entropy", "squared_error"), patterns, ("none", "s=1", "s=2"), (4, 16, 64)
    ):
        shape = {"depth": depth, "width": {4: 16, 8: 8, 16: 4}[depth] * {0: 4, 1: 2, 2: 1}[r], "width_exponent": r}
        yield Cell("", rule, shape, {"n_steps": 40, "edge_multiple": q, "loss": loss, "save_every": 10})


def _warm_starts(task: Task) -> Iterator[Cell]:
    """E2: rates that grow over the first half, patterns of equal weights."""
    widths = {r: matched_width(r, task.length, task.d_vocab) for r in PATTERNS}
    for r, rule, q in product(PATTERNS, ("none", "s=1", "s=2"), (4, 8, 16, 32)):
        yield Cell("", rule, {"depth": MATCHED_DEPTH, "width": widths[r], "width_exponent": r}, _warm_up(q))


def _squared(task: Task) -> Iterator[Cell]:
    """E3 with the squared error; with cross-entropy it is of E2's trainings."""
    shape = {"depth": MATCHED_DEPTH, "width": MATCHED_WIDTH, "width_exponent": 2}
    for rule, q in product(("none", "s=1", "s=2"), (0.5, 1, 2)):
        yield Cell("", rule, shape, _warm_up(q, loss="squared_error", schedule="constant"))


def _full_batch(task: Task) -> Iterator[Cell]:
    """E4."""
    shape = {"depth": 4, "width": 32, "width_exponent": 2}
    for rule, q in product(("none", "s=2"), (1, 1.5, 2)):
        train = {"n_steps": 500, "edge_multiple": q, "loss": "squared_error", "batch_size": 256, "n_sharpness": 256,
                 "save_every": 10}  # fmt: skip
        yield Cell("", rule, shape, train, 256)


def _patterns(task: Task) -> Iterator[Cell]:
    """E5: width patterns at the same m."""
    for r in PATTERNS:
        yield Cell("", "s=1", {"depth": 4, "width": 64, "width_exponent": r}, _warm_up(16))
        for rule in ("none", "s=1"):
            yield Cell("", rule, {"depth": 8, "width": 20, "width_exponent": r}, _warm_up(6))
            yield Cell("", rule, {"depth": 16, "width": 8, "width_exponent": r}, _warm_up(3, batch_size=64, n_steps=80))


def _caps(task: Task) -> Iterator[Cell]:
    """E6: the cap on a hidden layer's relative change."""
    wide = {"depth": MATCHED_DEPTH, "width": MATCHED_WIDTH, "width_exponent": 2}
    for (shape, q), rule, max_u in product(((wide, 32), (DEEP, 12)), ("none", "s=1"), (None, 0.1, 0.3)):
        yield Cell("", rule, shape, _warm_up(q, max_u=max_u))


def _deep(task: Task) -> Iterator[Cell]:
    """At depth 8: plain and scaled steps, and the other activation."""
    for rule, q in product(("none", "s=1"), (2, 4, 6, 8)):
        yield Cell("", rule, DEEP, _warm_up(q))
    for rule in ("none", "s=1"):
        yield Cell("", rule, DEEP | {"activation": "relu"}, _warm_up(4))


def _first_power(task: Task) -> Iterator[Cell]:
    """Norms to the first power."""
    wide = {"depth": MATCHED_DEPTH, "width": MATCHED_WIDTH, "width_exponent": 2}
    for q in (4, 8, 12, 16, 32):
        yield Cell("", "norm_power=1", wide, _warm_up(q))
    yield Cell("", "norm_power=1", DEEP, _warm_up(8, schedule="constant"))


def _grid(task: Task) -> Iterator[Cell]:
    """Learning rate by depth by pattern, at the same m."""
    for depth, r, rule, q in product((3, 4, 6), PATTERNS, ("none", "s=1", "s=2"), (2, 4, 8, 16)):
        train = {"n_steps": 120, "edge_multiple": q, "schedule": "ramp", "save_every": 10}
        yield Cell("", rule, {"depth": depth, "width": 16, "width_exponent": r}, train)


# Their trainings, but for name and seed.
EXPERIMENTS: dict[str, Callable[[Task], Iterator[Cell]]] = {
    "E2": _warm_starts, "E4": _full_batch, "E3": _squared, "E5": _patterns, "E6": _caps, "deep": _deep,
    "norm_power": _first_power, "grid": _grid, "E1": _cold_starts,
}  # fmt: skip


def cells(experiment: str, task: Task) -> Iterator[Cell]:
    """The trainings of an experiment, first seed first."""
    if experiment not in EXPERIMENTS:
        raise SystemExit(f"no experiment is named {experiment!r}; known: {', '.join(EXPERIMENTS)}.")
    for seed in SEEDS:
        for cell in EXPERIMENTS[experiment](task):
            yield cell._replace(experiment=experiment, train=cell.train | {"seed": seed})


def load(path: str, n_train: int = 0) -> Task:
    """The task: scikit-learn's digits, or a copy of MNIST."""
    return qfl.load_task("digits", *((784,) if path else ()), path=path, n_train=n_train)


def data_name(path: str) -> str:
    """What tables call the images."""
    return "mnist" if path else "digits"


def configurations(cell: Cell, task: Task) -> tuple[MLPConfig, qfl.TrainConfig]:
    """What a training is made of."""
    values = {"schedule": "constant", "batch_size": 128, "divergence_loss": 1e12} | cell.train
    settings = {name: values.pop(name) for name in OPTIMIZERS["depthwise"] if name in values}
    rule = RULES[cell.rule] | {name: value for name, value in settings.items() if value is not None}
    # The whole of a small training set in its order, else batches without replacement.
    draw = {"batch_size": "all"} if values["batch_size"] == cell.n_train else {"draw": "batch"}
    warm_up = 0.5 if values["schedule"] == "ramp" else 0.0
    values |= {"optimizer": "depthwise", "optimizer_options": rule, "warmup_fraction": warm_up}
    values |= {"eval_fraction": 1.0, "n_val": 2}
    return MLPConfig(d_in=task.length, d_out=task.d_vocab, **cell.shape), qfl.TrainConfig(**values | draw)


def run_cell(cell: Cell, path: str) -> dict[str, Any]:
    """Train into a folder that is deleted, and say what came of it in one row."""
    task = load(path, cell.n_train)
    shape, config = configurations(cell, task)
    settings = config.optimizer_options
    assert config.n_steps is not None
    ended, stopped = "finished", config.n_steps
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = qfl.train(task, shape, config, Path(folder) / "run", progress=False)
        except TrainingStopped as stop:
            ended, stopped = stop.status, stop.step
            run = qfl.Run.open(Path(folder) / "run")
        n_sharpness = settings.get("n_sharpness", 128)
        rows = edge(run, sharpness="last", n_sharpness=n_sharpness, progress=False).rows
        batch_size = run.config.batch_size
    if ended == "finished" and not float(rows["train_loss"].iloc[-1]) <= config.divergence_loss:
        ended = "diverged"  # by its last update
    start = {"experiment": cell.experiment, "data": data_name(path), "loss": config.loss,
             "activation": shape.activation, "depth": shape.depth, "r": shape.width_exponent, "width": shape.width,
             "n_parameters": shape.size, "rule": cell.rule, "max_u": settings.get("max_u", math.nan),
             "schedule": config.schedule, "n_steps": config.n_steps, "batch_size": batch_size,
             "q": settings["edge_multiple"], "seed": config.seed}  # fmt: skip
    return start | summary(rows, ended, stopped, learning_rate(config, step=0, n_steps=config.n_steps, peak=1.0))


def summary(rows: pd.DataFrame, ended: str, stopped: int, first: float) -> dict[str, Any]:
    """How a training ended, and the second half of the steps that were measured.

    Args:
        rows: Of the lens edge.
        ended: How.
        stopped: Updates until then.
        first: The first update's learning rate over the peak.
    """
    last = records(rows)[-1]
    steps = pd.DataFrame(rows.loc[column(rows, "step") < stopped])
    # What a diverged run's last evaluation says is of a time before; NaN says that there is nothing to say.
    names = ("train_loss", "train_accuracy", "test_accuracy", "soft_rank", "lambda_h", "lambda_p", "edge_ratio_p")
    row = {name: math.nan if ended == "diverged" else last[name] for name in names}
    late = pd.DataFrame(steps.loc[column(steps, "step") >= column(steps, "step").max() / 2])
    ratio = column(late, "edge_ratio")
    return {
        "status": ended, "stopped": stopped, "lr": float(column(rows, "lr")[0]) / first, **row,
        "edge_along_step": float(np.median(ratio)), "share_beyond": float((ratio > 1).mean()),
        "share_raising": float((column(late, "loss_after") > column(late, "c0")).mean()),
        "gauss_newton_share": float(np.median(column(late, "gauss_newton") / column(late, "c2"))),
        "spike": float(column(steps, "c0").max() / column(steps, "c0")[0]),
    }  # fmt: skip


def first_samples(task: Task, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first training samples and their classes."""
    assert task.samples is not None
    return task.samples[:n], task.encode(np.arange(n, dtype=np.int32)[:, None]).tokens[:, 1]


def initial_updates(task: Task) -> pd.DataFrame:
    """E5: by pattern and seed, the first relative changes of the hidden layers' preactivations over layer 1's."""
    found = []
    x, y = first_samples(task, 128)
    for r, seed in ((r, seed) for r in sorted(PATTERNS) for seed in SEEDS):
        shape = MLPConfig(task.length, task.d_vocab, 32, 8, r)
        model = HomogeneousMLP(shape, seed=seed)
        batch = run_minibatch(model, x, y, "cross_entropy")
        first, *others = relative_updates(batch, (1.0,) * shape.depth, 1.0)[: shape.n_layers]
        found.append({"r": r, "seed": seed, "mean": float(np.mean(others)) / first,
                      "smallest": min(others) / first, "largest": max(others) / first})  # fmt: skip
    return pd.DataFrame(found)


def norm_variance(r: int, task: Task, n_networks: int = N_NETWORKS) -> float:
    """E5: the variance over untrained networks of `log(|x_k|^2 / m_k)` at the last hidden layer, times m / 2.

    Predicted [R]: the sum of `j^-r` over the hidden layers, for the absolute value.
    """
    shape = MLPConfig(task.length, task.d_vocab, NORM_WIDTH, NORM_DEPTH + 1, r)
    logs = []
    for seed in range(n_networks):
        model, (x, _) = HomogeneousMLP(shape, seed=seed), first_samples(task, 1)
        with torch.no_grad():
            for block in model.blocks:
                x = block(x)
        logs.append(math.log(float(x.double().square().mean())))
    return float(np.var(logs, ddof=1)) * NORM_WIDTH / 2


def untrained(r: int, task: Task) -> dict[str, float]:
    """E5: one row about untrained networks of a width pattern, the first updates' range over layers and seeds."""
    updates = initial_updates(task)
    own = updates.loc[updates["r"] == r]
    return {
        "r": r, "mean": float(own["mean"].mean()), "smallest": float(own["smallest"].min()),
        "largest": float(own["largest"].max()), "log-norm variance": norm_variance(r, task),
        "predicted": sum(k**-r for k in range(1, NORM_DEPTH + 1)),
    }  # fmt: skip
