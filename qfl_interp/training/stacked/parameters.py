"""The trained numbers of several models of one shape side by side, and their AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.config import TrainConfig
from qfl_interp.runs import checkpoint as ckpt

# What torch.nn.utils.clip_grad_norm_ adds to a norm before it divides by it.
_CLIP_EPS = 1e-6


class StackedParameters:
    """Weights, gradients and AdamW's moments as [member, parameter], one row a member.

    Clipping and AdamW work entry by entry or row by row, so that the whole stack's update is a dozen operations.

    `weights` are the `values` by name, [member, ...], as autograd's leaves; `means` and `squares` are the moments.
    """

    def __init__(self, members: Sequence[Mapping[str, Tensor]], device: torch.device) -> None:
        self._shapes = {name: tensor.shape for name, tensor in members[0].items()}
        rows = [torch.cat([member[name].flatten() for name in self._shapes]) for member in members]
        self.values: Float[Tensor, "member parameter"] = torch.stack(rows).to(device)
        self.means, self.squares = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self._make_weights()

    def _make_weights(self) -> None:
        """Leaves of autograd that are views of the rows."""
        self.gradients = torch.zeros_like(self.values)
        self.weights = {name: view.detach().requires_grad_() for name, view in self.views(self.values).items()}

    def views(self, rows: Float[Tensor, "*member parameter"]) -> dict[str, Float[Tensor, "*member ..."]]:
        """Rows cut into tensors by name, without a copy."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        cut = rows.split(sizes, -1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self._shapes.items(), cut, strict=True)}

    def load_moments(self, member: int, optimizer: Mapping[str, Tensor]) -> None:
        """Put AdamW's state of a saved run back into a row; an empty one is that before the first update."""
        for rows, field in ((self.means, "exp_avg"), (self.squares, "exp_avg_sq")):
            for name, view in self.views(rows[member]).items():
                if optimizer:
                    view.copy_(optimizer[f"{name}/{field}"])

    def states(self, step: int, digests: Sequence[str]) -> list[ckpt.Checkpoint]:
        """What each member saves, as the same run alone would, on the CPU."""
        values, means, squares = (rows.cpu() for rows in (self.values, self.means, self.squares))
        count = torch.tensor(float(step))
        saved = []
        for member, digest in enumerate(digests):
            optimizer = {}
            if step:
                for name, mean in self.views(means[member]).items():
                    optimizer[f"{name}/exp_avg"] = mean
                    optimizer[f"{name}/step"] = count.clone()
                for name, square in self.views(squares[member]).items():
                    optimizer[f"{name}/exp_avg_sq"] = square
            saved.append(ckpt.Checkpoint(step, digest, self.views(values[member]), optimizer))
        return saved

    def keep(self, members: Sequence[int]) -> None:
        """Drop all rows but these."""
        kept = list(members)
        self.values, self.means, self.squares = self.values[kept], self.means[kept], self.squares[kept]
        self._make_weights()

    def differentiate(self, loss: Float[Tensor, ""]) -> None:
        """Fill `gradients` with those of a sum over members, each of whose terms depends on its own weights alone."""
        made = torch.autograd.grad(loss, list(self.weights.values()))
        into = list(self.views(self.gradients).values())
        torch._foreach_copy_(into, made)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def clip(self, max_norm: float) -> Float[Tensor, " member"]:
        """Scale every row of the gradients down to a norm, as `torch.nn.utils.clip_grad_norm_`; returns the norms."""
        norms = torch.linalg.vector_norm(self.gradients, dim=1)
        self.gradients.mul_((max_norm / (norms + _CLIP_EPS)).clamp_(max=1)[:, None])
        return norms

    @torch.no_grad()
    def update(self, lrs: Sequence[float], step: int, config: TrainConfig) -> None:
        """One AdamW update, every row with its own learning rate.

        `w <- w (1 - lr decay)`, `m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) g^2`, then
        `w <- w - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)`.

        `lrs` are the learning rates, one a member, and t, from 1, is the `step`.

        References:
            Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; as torch.optim.AdamW.
        """
        beta1, beta2 = config.betas
        decay = config.weight_decay or 0.0
        new = torch.tensor([[1 - lr * decay, -lr / (1 - beta1**step)] for lr in lrs], dtype=torch.float64)
        shrink, rate = new.to(self.values).t()[:, :, None]
        self.means.lerp_(self.gradients, 1 - beta1)
        self.squares.mul_(beta2).addcmul_(self.gradients, self.gradients, value=1 - beta2)
        below = self.squares.sqrt().mul_(1 / math.sqrt(1 - beta2**step)).add_(config.adam_eps)
        self.values.mul_(shrink).addcdiv_(torch.mul(self.means, rate, out=self.gradients), below)
