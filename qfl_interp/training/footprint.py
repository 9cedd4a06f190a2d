"""How much memory training takes, told from sizes alone."""

from __future__ import annotations

import torch

from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.model_kinds import AnyModelConfig
from qfl_interp.runs.config import RunConfig


def bytes_per_member(model: AnyModelConfig, *, batch_size: int, n_ctx: int, d_vocab: int) -> int:
    """About how much memory one run, or one member of a stack, takes while it trains, in bytes.

    Weights, gradients and AdamW's moments with a copy for saving, and what the forward pass keeps of every token for
    the backward pass.
    """
    kept = model.kept_numbers(d_vocab=d_vocab)
    return 4 * (7 * model.n_weights(d_vocab=d_vocab) + batch_size * n_ctx * kept)


def require_room(run: RunConfig, device: str | torch.device) -> None:
    """Raise `QflError` where a run's weights and the activations of a batch do not fit into a device's memory."""
    model, size = run.model, run.batch_size
    needed = bytes_per_member(model, batch_size=size, n_ctx=run.n_ctx, d_vocab=run.d_vocab)
    of_all = " (all training problems)" if run.train.batch_size == "all" else ""
    what = f"updates on batch_size {size:,}{of_all} of d_model {model.d_model:,} and n_layers {model.n_layers:,}"
    require_memory(
        needed,
        available_bytes(device),
        what,
        "Take a smaller batch_size or model." if not of_all else "Take a number as batch_size, or a smaller model.",
    )
