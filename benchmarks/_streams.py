"""Activations that a model gives before it is trained, where a feature is read."""

from __future__ import annotations

import numpy as np
import torch

from qfl_interp.config import ModelConfig
from qfl_interp.data.task import Task
from qfl_interp.models.build import build_model


@torch.no_grad()
def untrained(task: Task, feature: str, config: ModelConfig, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream behind each block at a feature's positions, [layer, label, example, d_model]; its labels."""
    model = build_model(config, task)
    examples, found = task.sample(np.random.default_rng(0), n), task.feature(feature)
    tokens, where = task.encode(examples).tokens, torch.tensor(np.asarray(found.positions(examples)))[:, :, None]
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(config.n_layers)]
    x = torch.empty(config.n_layers, found.n_labels, n, config.d_model)
    for first in range(0, n, 500):
        rows = slice(first, first + 500)
        _, cache = model.run_with_cache(tokens[rows], names_filter=names)
        for layer, name in enumerate(names):
            at = where[rows].expand(-1, -1, config.d_model)
            x[layer, :, rows] = cache[name].gather(1, at).transpose(0, 1)
    return x, torch.tensor(np.asarray(found.labels(examples))).T
