"""Minibatch steps with depthwise gradient scaling, `W_k <- W_k - lr xi_k G_k`, as the updates of a run.

That form is the source's [A]; units, schedules and the cap on a layer's change are reconstructions or ours [R].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from qfl_interp.config import TrainConfig
from qfl_interp.data.task import Batch, Task
from qfl_interp.data.training_stream import training_problems
from qfl_interp.errors import QflError
from qfl_interp.homogeneous.config import Loss
from qfl_interp.homogeneous.depthwise import DepthwiseRule, Scales, capped, scales
from qfl_interp.homogeneous.losses import Targets, targets_of
from qfl_interp.homogeneous.minibatch import Minibatch, frobenius, run_minibatch
from qfl_interp.homogeneous.sharpness import top_sharpness
from qfl_interp.homogeneous.taylor import taylor_coefficients
from qfl_interp.models.build import HookedModel
from qfl_interp.models.fast_forward import FastLogits
from qfl_interp.models.mlp import SampleReader
from qfl_interp.recipes import OPTIMIZERS, setting_values
from qfl_interp.runs.config import RunConfig
from qfl_interp.seeding import generator
from qfl_interp.training.session import TrainingStopped
from qfl_interp.training.updates import Done, tuned_rate


class Steps:
    """How the steps of one configuration are chosen: of any minibatch its scales and learning rate."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.loss: Loss = cast(Loss, config.loss_name)
        self.settings = setting_values(config.optimizer_options, OPTIMIZERS["depthwise"])
        powers = ("norm_power", "residual_power", "depth_normalise")
        self.rule = DepthwiseRule(*(self.settings[name] for name in powers))

    def minibatch(self, model: SampleReader, batch: Batch) -> Minibatch:
        """A batch of samples' numbers and classes through a network and back."""
        inputs = model.samples[batch.tokens[:, 0].to(model.samples.device)]
        return run_minibatch(model, inputs, self.targets(model, batch), self.loss)

    def targets(self, model: SampleReader, batch: Batch) -> Targets:
        """The classes of a batch as the loss wants them."""
        labels = batch.tokens[:, 1].to(model.samples.device)
        return targets_of(self.loss, labels, model.cfg.d_out, model.samples.dtype)

    def chosen(self, batch: Minibatch, lr: float) -> tuple[Scales, float]:
        """Scales and learning rate; `lr` is the schedule's.

        Under "cdat" that of `tuned_rate`: `sigma |c1| / (2 |c2|)` of the batch.
        """
        xi = scales(self.rule, batch)
        if self.config.schedule == "cdat":
            found = taylor_coefficients(batch, xi)
            lr = tuned_rate(self.config, found.c1, 2 * found.c2, lr)
        max_u = self.settings["max_u"]
        return (xi if max_u is None else capped(batch, xi, lr, max_u)), lr


class DepthwiseUpdates:
    """Depthwise scaled steps of a homogeneous network.

    Args:
        model: The network, changed in place.
        task: Its samples' task.
        run: Has the rule's settings and the schedule.
        forward: Not used: a step has passes of its own.
        device: Where the network is.

    Raises:
        QflError: The model is no homogeneous network.
        ValueError: `edge_multiple` is asked for where the sharpness at initialisation is not positive.
    """

    def __init__(
        self, model: HookedModel, task: Task, run: RunConfig, forward: FastLogits, device: torch.device
    ) -> None:
        if not isinstance(model, SampleReader):
            raise QflError(
                f"optimizer 'depthwise' needs a positively homogeneous network (style 'homogeneous'), got a "
                f"{type(model).__name__}. Take another optimiser; schedule 'cdat' works with any."
            )
        config = run.train
        self.model, self.config, self.steps = model, config, Steps(config)
        self.peak_lr = config.lr
        multiple = self.steps.settings["edge_multiple"]
        if multiple is not None:
            edge = self._initial_sharpness(task)
            if not edge > 0:
                raise ValueError(
                    f"edge_multiple needs a positive sharpness at initialisation, got {edge}. Give lr instead."
                )
            self.peak_lr = 2 * multiple / edge

    def _initial_sharpness(self, task: Task) -> float:
        """`lambda_P` of the network as it is, on the sample that the configuration's seed draws."""
        batch = sharpness_batch(task, self.steps.settings["n_sharpness"], self.config.seed)
        found = self.steps.minibatch(self.model, batch)
        inputs, targets = found.features[0], self.steps.targets(self.model, batch)
        xi = scales(self.steps.rule, found)
        return top_sharpness(self.model, inputs, targets, self.steps.loss, xi, seed=self.config.seed).value

    def apply(self, batch: Batch, lr: float) -> Done:
        """One step.

        Raises:
            TrainingStopped: There is no direction: the batch is fitted exactly, or a layer is dead.
        """
        found = self.steps.minibatch(self.model, batch)
        norms = (*found.feature_norms, *found.unit_backward_norms)
        lost = not math.isfinite(found.value) or not all(map(math.isfinite, norms))
        if lost or found.value > self.config.divergence_loss:
            # The session stops at what is not finite; nothing is changed until then.
            return Done(torch.tensor(found.value), torch.tensor(math.nan), lr)
        if found.residual_norm == 0:
            raise TrainingStopped("training stopped: a batch is fitted exactly, no direction is left.", "converged")
        if min(norms) == 0:
            raise TrainingStopped("training stopped: a layer is dead, its features or gradient are all zero.", "dead")
        xi, lr = self.steps.chosen(found, lr)
        with torch.no_grad():
            for weight, x, gradient in zip(self.model.weights, xi, found.unit_gradients, strict=True):
                weight -= (lr * x * found.residual_norm) * gradient
        norm = found.residual_norm * math.hypot(*map(frobenius, found.unit_gradients))
        return Done(torch.tensor(found.value), torch.tensor(norm), lr)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: a step depends on weights and batch alone."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """There is nothing to put back."""


def sharpness_batch(task: Task, n: int, seed: int) -> Batch:
    """The training samples on which sharpness is measured, at most `n` of them."""
    problems = training_problems(task)
    order = generator(seed, "homogeneous/sharpness").permutation(len(problems))
    return task.encode(problems[order[: min(n, len(problems))]])
