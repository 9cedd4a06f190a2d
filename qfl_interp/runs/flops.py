"""Compute budget to steps and back, from a token's FLOPs that the model's configuration tells."""

from __future__ import annotations

import math

from qfl_interp.model_kinds import AnyModelConfig


def flops_per_step(config: AnyModelConfig, *, batch_size: int, n_ctx: float) -> float:
    """Nominal FLOPs of one update; `n_ctx` is the mean number of real tokens of a sequence."""
    return config.nominal_flops(n_ctx) * batch_size * n_ctx


def steps_for_budget(config: AnyModelConfig, *, budget_flops: float, batch_size: int, n_ctx: float) -> int:
    """Updates that a nominal budget pays for: `ceil(C / 6F / (batch_size n_ctx))`, hence at least 1.

    The last update may pass the budget; a budget below one update still gives 1, as in the paper (`train` refuses it).
    """
    return math.ceil(budget_flops / config.nominal_flops(n_ctx) / (batch_size * n_ctx))


def actual_flops_per_step(config: AnyModelConfig, *, batch_size: int, n_ctx: int, d_vocab: int) -> float:
    """FLOPs of the matrix products of one update, padding included; `n_ctx` is the padded length."""
    return config.matrix_flops(n_ctx=n_ctx, d_vocab=d_vocab) * batch_size * n_ctx
