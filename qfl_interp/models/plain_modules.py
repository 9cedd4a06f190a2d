"""Parts of Hugging Face models that have no derivatives of every order, and what stands in for them meanwhile."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from torch import nn

# The experts of a mixture: transformers' grouped products have no forward mode; those of batches are plain tensors.
_EXPERTS, _PLAIN_EXPERTS = "_experts_implementation", "batched_mm"
# Modules around an autograd function with a backward pass of its own, and the function of the same values beside it.
_FUNCTIONS = {"BloomGelu": "bloom_gelu_forward"}


@contextlib.contextmanager
def plain_modules(model: nn.Module) -> Iterator[None]:
    """Have a Hugging Face model, in a bridge, computed from operations with derivatives of every order, in both modes.

    The values are the same; a mixture of experts takes more memory. Other models are left as they are.
    """
    original = getattr(model, "original_model", None)
    if original is None:
        yield
        return
    config = original.config
    experts = getattr(config, _EXPERTS, None)
    swapped = [module for module in original.modules() if type(module).__name__ in _FUNCTIONS]
    try:
        if experts is not None:
            setattr(config, _EXPERTS, _PLAIN_EXPERTS)
        for module in swapped:
            name = _FUNCTIONS[type(module).__name__]
            module.forward = getattr(sys.modules[type(module).__module__], name)
        yield
    finally:
        if experts is not None:
            setattr(config, _EXPERTS, experts)
        for module in swapped:
            del module.forward
