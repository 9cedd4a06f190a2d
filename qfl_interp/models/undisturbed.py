"""Looking at a model in the middle of somebody's training, so that the training does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qfl_interp.models.build import model_device


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients and automatic casts; after it modes and random generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    device = model_device(model)
    devices = [device] if device.type == "cuda" else []
    try:
        model.eval()
        with torch.random.fork_rng(devices), torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training
