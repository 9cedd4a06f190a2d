"""Weights, logits and activations of small models under transformer-lens 3.9: golden/tl3_activations.safetensors.

Made again with `python -m tests.helpers_activations`, in an environment that has it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qfl_interp.config import ModelConfig
from qfl_interp.models.build import build_hooked, parameters_to_save

STORED = Path(__file__).parent / "golden" / "tl3_activations.safetensors"
SHAPE = {"d_model": 8, "n_layers": 2, "n_heads": 2}
SIZES = {"d_vocab": 5, "n_ctx": 6}
TOKENS = torch.tensor([[0, 3, 1, 4, 2], [2, 2, 4, 0, 1]])
# Every part that a `ModelConfig` can choose, in one of them at least.
CASES = {
    "llama": {},
    "gpt2": {"style": "gpt2"},
    "grokking": {"style": "grokking"},
    "attn_only": {"attn_only": True, "positions": "none"},
    "gated_ln": {"norm": "ln", "biases": "all", "d_mlp": 12},
    "gelu_new": {"style": "gpt2", "act": "gelu_new", "norm": "rms", "d_head": 6, "d_mlp": 12},
    "relu2_tied": {"style": "gpt2", "act": "relu2", "tied": True, "biases": "mlp", "d_mlp": 12},
    "solu_mup": {"act": "solu", "gated": False, "mup_base": 2, "positions": "learned", "d_mlp": 12},
    "linear": {"attention": "linear", "norm": "none", "d_mlp": 12},
}


def drawn(name: str) -> torch.nn.Module:
    """The case's model, none of whose parameters is 0 or 1 throughout."""
    model = build_hooked(ModelConfig(**SHAPE, **CASES[name]), **SIZES, seed=1)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=rng)
    return model


def stored(name: str, part: str) -> dict[str, Tensor]:
    """The case's tensors of one part: "weights" or "activations"."""
    with safe_open(STORED, "pt") as file:
        start = f"{name}/{part}/"
        return {key.removeprefix(start): file.get_tensor(key) for key in file.keys() if key.startswith(start)}


def main() -> None:
    """Write the file."""
    from importlib.metadata import version

    assert version("transformer-lens").startswith("3."), "the activations to keep are those of transformer-lens 3"
    tensors = {}
    for name in CASES:
        model = drawn(name)
        tensors |= {f"{name}/weights/{key}": tensor for key, tensor in parameters_to_save(model).items()}
        with torch.no_grad():
            _, cache = model.run_with_cache(TOKENS, return_cache_object=False)
        tensors |= {f"{name}/activations/{key}": tensor.clone().contiguous() for key, tensor in cache.items()}
    packages = {package: version(package) for package in ("transformer-lens", "torch")}
    save_file(tensors, STORED, metadata={"versions": json.dumps(packages)})


if __name__ == "__main__":
    main()
