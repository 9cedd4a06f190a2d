"""Which runs can train as one stack, and how many."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from qfl_interp.config import ModelConfig
from qfl_interp.digests import json_digest
from qfl_interp.runs.config import RunConfig
from qfl_interp.training.footprint import bytes_per_member, n_weights

# Fields of TrainConfig in which the members of a stack may differ; the number of updates is compared in their stead.
_FREE = ("lr", "seed", "budget_flops", "n_steps")
# Numbers in one tensor of the residual stream of a stack on a CPU. Few enough to stay near the core: the time of a
# member's update fell until about here, or less far, at widths 16, 64 and 128 with batches of 8 and 64.
_CPU_STREAM = 2**19
# A run with at least so many weights, and fewer tokens of an update than this times d_model, is faster alone: what a
# stack does to weights beside the products outweighs what it saves on tokens (width 256, batch 8: 10 % slower).
_ALONE_PARAMETERS, _ALONE_TOKENS = 2**20, 4
# Part of a GPU's free memory that a stack may be estimated to fill.
_GPU_SHARE = 0.7


def stack_key(config: RunConfig) -> Hashable:
    """Runs with equal keys can train as one stack; a run that can be in no stack has a key of its own.

    They have one task, length and model shape, one number of updates and everything else of `TrainConfig` in common
    but learning rate and seed (the budget may differ where the steps are equal). Branches, runs with `compile=True` and
    runs on a fixed training set train alone. Both styles of model can be stacked.
    """
    if config.start is not None or config.train.compile or config.n_train is not None:
        return config.digest
    train = json_digest({name: value for name, value in config.train.to_dict().items() if name not in _FREE})
    sizes = (config.n_steps, config.n_ctx, config.d_vocab)
    return (config.task, config.length, config.task_options, config.model, train, *sizes)


def faster_alone(
    model: ModelConfig, *, batch_size: int, n_ctx: int, d_vocab: int = 32, device: str | torch.device = "cpu"
) -> bool:
    """Whether runs of a shape train faster one by one than as a stack: large models of small batches on a CPU."""
    if torch.device(device).type == "cuda":
        return False
    return n_weights(model, d_vocab) >= _ALONE_PARAMETERS and batch_size * n_ctx < _ALONE_TOKENS * model.d_model


def max_members(
    model: ModelConfig,
    *,
    batch_size: int,
    n_ctx: int,
    d_vocab: int = 32,
    device: str | torch.device = "cpu",
    memory_share: float = 1.0,
) -> int:
    """How many members one stack should have at most; at least 1.

    On a CPU as many as its caches serve, beyond which more are no faster, and 1 of a shape that is faster alone; on a
    GPU as many as its free memory holds by `bytes_per_member`.

    `memory_share` is the part of a GPU's free memory that is theirs.
    """
    if torch.device(device).type != "cuda":
        alone = faster_alone(model, batch_size=batch_size, n_ctx=n_ctx, d_vocab=d_vocab, device=device)
        return 1 if alone else max(1, _CPU_STREAM // (batch_size * n_ctx * model.d_model))
    free, _ = torch.cuda.mem_get_info(device)
    one = bytes_per_member(model, batch_size=batch_size, n_ctx=n_ctx, d_vocab=d_vocab)
    return max(1, int(_GPU_SHARE * memory_share * free / one))
