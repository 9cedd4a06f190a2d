"""One update of a model on a batch: its loss, the gradient, the optimiser's step."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from qfl_interp.config import TrainConfig
from qfl_interp.curvature.hessian import Hessian
from qfl_interp.curvature.token_losses import TokenLoss, scored_tokens
from qfl_interp.data.task import Batch, Task
from qfl_interp.models.build import HookedModel
from qfl_interp.models.fast_forward import FastLogits
from qfl_interp.models.metrics import masked_loss, scored_span, targets
from qfl_interp.models.mup import lr_multipliers
from qfl_interp.recipes import SCHEDULES, UPDATES, setting_values
from qfl_interp.runs.config import RunConfig
from qfl_interp.training.optimizers import NamedOptimizer


class Done(NamedTuple):
    """What an update was: the loss before it, the gradient's norm before clipping, the learning rate it was made at."""

    loss: Tensor
    grad_norm: Tensor
    lr: float


@runtime_checkable
class Updates(Protocol):
    """How a model is changed, batch by batch; the state between two updates is `tensors`.

    Attributes:
        peak_lr: What the schedule's learning rate is measured in.
    """

    peak_lr: float

    def apply(self, batch: Batch, lr: float) -> Done:
        """One update; `lr` is what the schedule says."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The state, by name."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        ...


class GradientUpdates:
    """Updates along the gradient of the batch's mean loss, by an optimiser of torch.

    Args:
        model: It is changed in place.
        task: What is learned.
        run: Names the loss, the optimiser and the schedule.
        forward: The model's logits at some positions, differentiable.
        device: Where it all happens.
    """

    def __init__(
        self, model: HookedModel, task: Task, run: RunConfig, forward: FastLogits, device: torch.device
    ) -> None:
        self.model, self.config, self.forward, self.device = model, run.train, forward, device
        self.peak_lr = self.config.lr
        rule = "sgd" if self.config.optimizer == "sgd" else "adam"
        scales = lr_multipliers(run.model, dict(model.named_parameters()), rule=rule)
        self.optimizer = NamedOptimizer(model, self.config, scales)
        self.tensors, self.load = self.optimizer.tensors, self.optimizer.load

    def apply(self, batch: Batch, lr: float) -> Done:
        """One update on a batch."""
        span = scored_span(batch.loss_mask)
        target = targets(batch.wanted, batch.loss_mask, span).to(self.device)
        loss = masked_loss(self.forward(batch.tokens.to(self.device), span), target, self.config.loss_name)
        self.optimizer.zero_grad()
        loss.backward()
        tuned = self.config.schedule == "cdat"
        whole = {name: p.grad.clone() for name, p in self.model.named_parameters() if tuned and p.grad is not None}
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_norm, foreach=True)
        if tuned and bool(norm.isfinite()):
            lr = self._tuned_step(batch, whole, lr)
        else:  # a gradient that is not finite has no curvature: the session stops at it
            self.optimizer.step(lr)
        return Done(loss.detach(), norm.detach(), lr)

    def _tuned_step(self, batch: Batch, gradient: Mapping[str, Tensor], lr: float) -> float:
        """A step as long as the curvature along it says (`tuned_rate`); returns its learning rate.

        Args:
            batch: What the curvature is of.
            gradient: The batch's, not clipped; of frozen parameters none.
            lr: The schedule's rate.
        """
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizer.step(1.0)
        with torch.no_grad():
            step = {name: p - before[name] for name, p in self.model.named_parameters()}
        dtype = next(iter(before.values())).dtype
        losses = TokenLoss(self.model, scored_tokens(batch, prompt_end=True), dtype=dtype, loss=self.config.loss_name)
        hessian = Hessian(losses, before, chunk=len(batch.tokens))
        direction = losses.space.flatten(step)
        slope = float(sum((g.double() * step[name].double()).sum() for name, g in gradient.items()))
        bent = float(direction.double() @ hessian.product(direction).double())
        lr = tuned_rate(self.config, slope, bent, lr)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(before[name] + lr * step[name])
        return lr


def tuned_rate(config: TrainConfig, slope: float, curvature: float, lr: float) -> float:
    """The learning rate of "cdat": `sigma max(-g'u, 0) / |u'Hu|`, of the update `u` at rate 1 on the batch's loss.

    On the batch's quadratic model, where the curvature is positive, sigma = 1 is the minimum along u, and sigma = 2 is
    the edge: where the loss is what it was. An update that does not descend is not made: its rate is 0. Where there is
    no curvature at all the rate is `lr`, the schedule's own; the paper has a small number in the denominator instead.

    Args:
        config: Its `sigma` is taken.
        slope: `g'u`.
        curvature: `u'Hu`.
        lr: The schedule's rate.

    References:
        Stepping on the Edge: Curvature Aware Learning Rate Tuners (arXiv 2407.06183); without its moving averages of
        numerator and denominator.
    """
    if curvature == 0:
        return lr
    sigma = setting_values(config.schedule_options, SCHEDULES["cdat"])["sigma"]
    return sigma * max(-slope, 0.0) / abs(curvature)


def in_module(name: str, module: str) -> bool:
    """Whether a parameter belongs to a module, or is it, by their names."""
    return name == module or name.startswith(f"{module}.")


def freeze(model: nn.Module, modules: Sequence[str]) -> None:
    """Take modules out of training, by name ("blocks.0.attn"), or single parameters."""
    for name, parameter in model.named_parameters():
        if any(in_module(name, module) for module in modules):
            parameter.requires_grad_(False)


def make_updates(model: HookedModel, task: Task, run: RunConfig, forward: FastLogits, device: torch.device) -> Updates:
    """The updates that a run's configuration names, of its fresh model; raises what they raise."""
    made = UPDATES.get(run.train.optimizer)
    if made is None:
        return GradientUpdates(model, task, run, forward, device)
    module, _, name = made.partition(":")
    return getattr(importlib.import_module(module), name)(model, task, run, forward, device)
