"""Minibatch SGD with depthwise gradient scaling, at any learning rate; divergence is a result.

The form of the step, `W_k <- W_k - lr xi_k G_k`, is the source's [A]; schedules, units and cap are marked where they
are defined, in `config`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from qfl_interp.errors import QflError
from qfl_interp.homogeneous.config import MLPConfig, MLPTrainConfig
from qfl_interp.homogeneous.depthwise import DepthwiseRule, Rule, Scales, capped, scales
from qfl_interp.homogeneous.images import Labelled
from qfl_interp.homogeneous.losses import mean_loss, targets_of
from qfl_interp.homogeneous.measuring import Evaluation, layer_rows, step_row
from qfl_interp.homogeneous.minibatch import Minibatch, run_minibatch
from qfl_interp.homogeneous.mlp import HomogeneousMLP
from qfl_interp.homogeneous.run_folder import TABLE_NAMES, Ending, RunFolder, TableRows
from qfl_interp.homogeneous.taylor import Coefficients, taylor_coefficients
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import load_parameters, parameters_to_save
from qfl_interp.runs.steps import checkpoint_steps
from qfl_interp.seeding import generator


@dataclass(frozen=True)
class MLPRun:
    """A finished training in memory.

    Attributes:
        ending: How it ended, and after how many updates; divergence is one way.
        lr: The learning rate that schedules multiply.
        model: The network as it was then.
        steps: The quadratic model along the logged steps: columns as `measuring.step_row`.
        layers: Relative updates, alignments and soft ranks by layer: `measuring.layer_rows`.
        evaluations: Losses, accuracies, sharpness and soft rank of the whole network: `measuring.Evaluation.row`, and
            `lr`, `edge_ratio_h` and `edge_ratio_p` (`lr lambda / 2`: 1 is the edge).
    """

    ending: Ending
    lr: float
    model: HomogeneousMLP
    steps: pd.DataFrame
    layers: pd.DataFrame
    evaluations: pd.DataFrame

    def __repr__(self) -> str:
        return f"MLPRun({self.ending.status} after {self.ending.step} updates, lr {self.lr:.4g}, {self.model.cfg})"


def train_mlp(
    model: MLPConfig, config: MLPTrainConfig, data: Labelled, *, rule: Rule | None = None, out: str | Path | None = None
) -> MLPRun:
    """Train a homogeneous network; the same arguments give the same bits.

    Args:
        model: Shape.
        config: Optimisation and what is measured.
        data: What it learns.
        rule: A rule of one's own instead of the configuration's: numbers of a minibatch to a factor a layer. A saved
            run is known by the rule's name.
        out: Where to save the run. A run of the same arguments that is there is continued, or read if it is complete;
            where its last checkpoint, rows or result are damaged it is trained again from before, with a warning.

    Raises:
        ValueError: Sizes of model and data differ, inputs are not finite, labels are no classes, or the batch is larger
            than the training set; a rule gives something else than one positive number a layer.
        QflError: `out` holds something else; the widths, or the features of the examples, need more memory than is
            free.
    """
    _require_fitting(model, config, data)
    trainer = _Trainer(model, config, data, DepthwiseRule.of(config) if rule is None else rule)
    if out is None:
        return trainer.result(trainer.run(None))
    with RunFolder(Path(out), model, config, data, "" if rule is None else _name(rule)) as folder:
        ending, saved = folder.ending(), folder.latest()
        if saved is not None:
            trainer.restore(*saved)
        if ending is None or not folder.is_complete(ending, saved):
            folder.reopen()
            ending = trainer.run(folder)
            folder.end(ending, trainer.rows)
        return trainer.result(ending)


def _name(rule: Rule) -> str:
    """What a rule of the user's is called in a saved run."""
    name = getattr(rule, "__qualname__", "")
    if not name or "<lambda>" in name:
        raise QflError("a saved run is known by its rule's name, got one without. Write it as a function.")
    return name


def _require_fitting(model: MLPConfig, config: MLPTrainConfig, data: Labelled) -> None:
    """Raise `ValueError` where model, training and data do not go together."""
    n, d_in = data.train_x.shape
    if (model.d_in, model.d_out) != (d_in, data.n_classes):
        raise ValueError(
            f"the model must have d_in = {d_in} and d_out = {data.n_classes} for {data!r}, got {model.d_in} and "
            f"{model.d_out}."
        )
    for name, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        bad = ~torch.isfinite(x).all(dim=1)
        if bool(bad.any()):
            raise ValueError(f"{name}_x must be finite, got a NaN or an infinity in row {int(bad.int().argmax())}.")
        if len(y) != len(x) or bool(((y < 0) | (y >= data.n_classes)).any()):
            raise ValueError(
                f"{name}_y must be {len(x)} classes from 0 to {data.n_classes - 1}, got {len(y)} from "
                f"{int(y.min())} to {int(y.max())}."
            )
    at_once, together = max(config.batch_size, min(config.n_sharpness, n)), max(n, len(data.test_x))
    # Features and backward vectors of a batch, their copies in float64; of all examples those of two layers.
    needed = 24 * at_once * sum(model.widths) + 8 * together * max(model.widths)
    what = f"features of {at_once:,} examples of a batch and of all {together:,}, widths {model.widths},"
    require_memory(needed, available_bytes(), what, "Take a smaller batch_size, n_sharpness, width or fewer examples.")
    if config.batch_size > n:
        raise ValueError(f"batch_size must be at most the {n} training examples, got {config.batch_size}.")


class _Trainer:
    """A training in progress: weights, learning rate and rows."""

    def __init__(self, model: MLPConfig, config: MLPTrainConfig, data: Labelled, rule: Rule) -> None:
        self.config, self.data, self.rule = config, data, rule
        self.model = HomogeneousMLP(model, seed=config.seed)
        self.start = tuple(w.detach().clone() for w in self.model.weights)
        self.evaluation = Evaluation(config, data, rule)
        self.step = 0
        self.rows: TableRows = {name: [] for name in TABLE_NAMES}
        self._saved: dict[str, int] = {name: 0 for name in TABLE_NAMES}
        self.lr = math.nan
        self._last_lr = math.nan

    def restore(self, step: int, weights: dict[str, Tensor], rows: TableRows) -> None:
        """Go on from a checkpoint."""
        load_parameters(self.model, weights)
        self.step, self.rows = step, rows
        self._saved = {name: len(found) for name, found in rows.items()}
        self._set_lr(rows["evaluations"][0]["lambda_p"])
        self._last_lr = rows["steps"][-1]["lr"] if rows["steps"] else math.nan

    def _set_lr(self, edge: float) -> None:
        """The learning rate, from the preconditioned sharpness at initialisation where it is in units of the edge."""
        if self.config.lr is not None:
            self.lr = self.config.lr
        else:
            assert self.config.edge_multiple is not None
            if not edge > 0:
                raise ValueError(
                    f"edge_multiple needs a positive sharpness at initialisation, got {edge}. Give lr instead."
                )
            self.lr = 2 * self.config.edge_multiple / edge

    def run(self, folder: RunFolder | None) -> Ending:
        """Train to the end, or to where it diverges."""
        config = self.config
        kept = set(checkpoint_steps(config.n_steps, config.n_checkpoints))
        if not self.rows["evaluations"]:
            first = self.evaluation.row(self.model, 0)
            self._set_lr(first["lambda_p"])
            self.rows["evaluations"].append(self._with_edge(first))
        status = ""
        while self.step < config.n_steps and not status:
            if folder is not None and self.step in kept:
                self._save(folder)
            status = self._update()
            if not status and config.eval_every and self.step % config.eval_every == 0 and self.step < config.n_steps:
                self.rows["evaluations"].append(self._with_edge(self.evaluation.row(self.model, self.step)))
        ending = self._finish(status)
        if folder is not None:
            self._save(folder)
        return ending

    def _finish(self, status: str) -> Ending:
        """The last evaluation, which may show that the last update was one too many."""
        if status != "diverged" and self.rows["evaluations"][-1]["step"] < self.step:
            last = self.evaluation.row(self.model, self.step)
            self.rows["evaluations"].append(self._with_edge(last))
            if self._is_lost(last["train_loss"]):
                status = "diverged"
        return Ending(status or "finished", self.step)

    def _is_lost(self, loss: float) -> bool:
        return not math.isfinite(loss) or loss > self.config.divergence_loss

    def _save(self, folder: RunFolder) -> None:
        new = {name: rows[self._saved[name] :] for name, rows in self.rows.items()}
        folder.save(self.step, parameters_to_save(self.model), new)
        self._saved = {name: len(rows) for name, rows in self.rows.items()}

    def _with_edge(self, row: dict[str, Any]) -> dict[str, Any]:
        """An evaluation with the learning rate of the update to come, or of the last one."""
        lr = self._last_lr
        if self.config.schedule != "geometry_aware" or math.isnan(lr):
            lr = self._scheduled(min(self.step, self.config.n_steps - 1))
        return row | {"lr": lr, "edge_ratio_h": lr * row["lambda_h"] / 2, "edge_ratio_p": lr * row["lambda_p"] / 2}

    def _scheduled(self, step: int) -> float:
        """The learning rate of an update by the step alone: linear over the first half under "warmup"."""
        if self.config.schedule != "warmup":
            return self.lr
        return self.lr * min(1.0, (step + 1) / max(1, self.config.n_steps // 2))

    def _batch(self) -> tuple[Tensor, Any]:
        """Inputs and targets of the current update: without replacement, from (seed, step) alone."""
        x, y, n = self.data.train_x, self.data.train_y, self.config.batch_size
        if n < len(x):
            drawn = generator(self.config.seed, "homogeneous/batches", self.step).permutation(len(x))[:n]
            rows = torch.from_numpy(drawn)
            x, y = x[rows], y[rows]
        return x, targets_of(self.config.loss, y, self.data.n_classes, x.dtype)

    def _update(self) -> str:
        """One update; "" or why there cannot be one."""
        inputs, targets = self._batch()
        batch = run_minibatch(self.model, inputs, targets, self.config.loss)
        status = self._verdict(batch)
        if status:
            return status
        logged = self.step % self.config.log_every == 0
        xi, lr, found = self._choose(batch, logged)
        rows = layer_rows(self.step, lr, batch, xi, self.start) if logged else []
        with torch.no_grad():
            for weight, x, gradient in zip(self.model.weights, xi, batch.unit_gradients, strict=True):
                weight -= (lr * x * batch.residual_norm) * gradient
            if found is not None:
                after = float(mean_loss(self.config.loss, self.model(inputs), targets))
                self.rows["steps"].append(step_row(self.step, lr, found, after))
        self.rows["layers"] += rows
        self._last_lr = lr
        self.step += 1
        return ""

    def _choose(self, batch: Minibatch, logged: bool) -> tuple[Scales, float, Coefficients | None]:
        """Scales and learning rate of an update, and its coefficients where it is logged."""
        config = self.config
        xi, lr = scales(self.rule, batch), self._scheduled(self.step)
        if config.schedule == "geometry_aware":
            found = taylor_coefficients(batch, xi)
            if found.c2 > 0:
                lr = config.kappa * abs(found.c1) / found.c2
        if config.max_u is not None:
            xi = capped(batch, xi, lr, config.max_u)
        return xi, lr, taylor_coefficients(batch, xi) if logged else None

    def _verdict(self, batch: Minibatch) -> str:
        """Why no update can follow; "" where one can."""
        norms = (*batch.feature_norms, *batch.unit_backward_norms)
        if self._is_lost(batch.value) or not all(math.isfinite(norm) for norm in norms):
            return "diverged"
        if batch.residual_norm == 0:
            return "converged"
        return "dead" if min(norms) == 0 else ""

    def result(self, ending: Ending) -> MLPRun:
        """The finished training."""
        steps, layers, evaluations = (pd.DataFrame(self.rows[name]) for name in TABLE_NAMES)
        return MLPRun(ending, self.lr, self.model, steps, layers, evaluations)
