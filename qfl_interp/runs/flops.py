"""Compute budget to steps and back: the only place with these formulas."""

from __future__ import annotations

import math

from qfl_interp.config import ModelConfig


def flops_per_token(*, d_model: int, n_layers: int, n_ctx: float) -> float:
    """Nominal training FLOPs of one token, forward and backward, as the quiet-features paper counts.

    `6 F` with `F = 12 n_layers d_model^2 + n_layers n_ctx d_model`. Weights per layer count as `12 d_model^2` whatever
    the real MLP width is; embedding, unembedding and padding are left out.

    Args:
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        n_ctx: Mean number of *real* tokens of a sequence, through the first end-of-sequence token.

    References:
        arXiv 2505.03997, compute accounting.
    """
    return 6.0 * (12 * n_layers * d_model**2 + n_layers * n_ctx * d_model)


def flops_per_step(config: ModelConfig, *, batch_size: int, n_ctx: float) -> float:
    """Nominal FLOPs of one update; `n_ctx` as in `flops_per_token`."""
    return flops_per_token(d_model=config.d_model, n_layers=config.n_layers, n_ctx=n_ctx) * batch_size * n_ctx


def steps_for_budget(config: ModelConfig, *, budget_flops: float, batch_size: int, n_ctx: float) -> int:
    """Updates that a nominal budget pays for: `ceil(C / 6F / (batch_size n_ctx))`, hence at least 1.

    The last update may pass the budget; a budget below one update still gives 1, as in the paper (`train` refuses it).
    """
    per_token = flops_per_token(d_model=config.d_model, n_layers=config.n_layers, n_ctx=n_ctx)
    return math.ceil(budget_flops / per_token / (batch_size * n_ctx))


def actual_flops_per_step(config: ModelConfig, *, batch_size: int, n_ctx: int, d_vocab: int) -> float:
    """FLOPs of the matrix products of one update, with the real widths and the padding.

    Three times the forward pass (backward counts twice); a multiply-add is two FLOPs. Counts attention over the full
    square (the causal half is not deducted) and the unembedding at every position: the model's cost on a padded batch,
    whatever an implementation saves. Norms, activations and the optimiser are left out. `n_ctx` is the padded length.
    """
    d = config.d_model
    n_mlp_matrices = 3 if config.style == "llama" else 2
    weights = 4 * d**2 + n_mlp_matrices * d * config.d_mlp_used
    attention = 2 * n_ctx * d
    per_token = config.n_layers * (weights + attention) + d * d_vocab
    return 3.0 * 2.0 * per_token * batch_size * n_ctx
