"""Which runs can train as one stack, and how many."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from qfl_interp.digests import json_digest
from qfl_interp.model_kinds import AnyModelConfig
from qfl_interp.runs.config import RunConfig
from qfl_interp.training.footprint import bytes_per_member

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
    but learning rate and seed (the budget may differ where the steps are equal). Branches, runs with `compile=True` or
    the schedule "cdat", on a fixed training set, of another optimiser than AdamW or another loss, and models that are
    neither "llama" nor "gpt2" in their function (`ModelConfig.stackable`) train alone.
    """
    train = config.train
    usual = train.optimizer == "adamw" and train.schedule != "cdat" and train.loss_name == "cross_entropy"
    usual = usual and config.n_train is None and config.d_out is None and not train.compile
    if not usual or config.start is not None or not config.model.stackable:
        return config.digest
    settings = json_digest({name: value for name, value in train.to_dict().items() if name not in _FREE})
    sizes = (config.n_steps, config.n_ctx, config.d_vocab)
    return (config.task, config.length, config.task_options, config.model, settings, *sizes)


def faster_alone(
    model: AnyModelConfig, *, batch_size: int, n_ctx: int, d_vocab: int = 32, device: str | torch.device = "cpu"
) -> bool:
    """Whether runs of a shape train faster one by one than as a stack: large models of small batches on a CPU.

    So do all that cannot be stacked.
    """
    if not model.stackable:
        return True
    if torch.device(device).type == "cuda":
        return False
    return model.n_weights(d_vocab=d_vocab) >= _ALONE_PARAMETERS and batch_size * n_ctx < _ALONE_TOKENS * model.d_model


def max_members(
    model: AnyModelConfig,
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
