"""Tiny Hugging Face checkpoints on disk and a small dataset, for tests of whatever runs over a suite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PretrainedConfig

from qfl_interp.data.fixed_task import FixedFeature, FixedTask
from qfl_interp.models.hugging_face import quiet
from qfl_interp.seeding import generator

D_MODEL, N_HEADS, N_LAYERS, D_VOCAB, N_CTX = 16, 2, 2, 12, 16
_SIZES = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 24,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": N_CTX,
}


def neox_config(**changes) -> GPTNeoXConfig:
    """Two parallel blocks, as Pythia has them."""
    return GPTNeoXConfig(**_SIZES | changes)


def llama_config(**changes) -> LlamaConfig:
    """Two sequential blocks, two query heads on one key-value head."""
    return LlamaConfig(**_SIZES | {"num_key_value_heads": 1} | changes)


def save_model(config: PretrainedConfig, folder: Path, *, seed: int = 0, noise: float = 0.0) -> Path:
    """A random model saved by `save_pretrained`; `noise` moves every weight from where the seed put it."""
    with quiet():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                # The usual initial scale of 0.02 would leave all activations of a tiny model near zero.
                parameter.mul_(5.0) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
                parameter.add_(torch.randn_like(parameter) * noise)
        model.save_pretrained(folder)
    return folder


def save_tiny_neox(folder: Path, steps: tuple[int, ...] = (0, 10, 100)) -> Path:
    """A folder with a checkpoint of a tiny GPT-NeoX for each of `steps`, as `Suite.open` reads it."""
    for number, step in enumerate(steps):
        save_model(neox_config(), folder / f"step{step}", noise=0.1 * number)
    return folder


def tiny_text_task(n_rows: int = 240) -> FixedTask:
    """Rows `salt salt salt a b a b = sum end`: is a odd (binary), which is b (categorical); `sum` is a + b, in 0..6.

    Both features are read at every repetition, a at 3 and 5, b at 4 and 6. The salt, a row's number, keeps rows apart.
    Pairs of `odd` are given, those of `second` are searched.
    """
    assert n_rows <= D_VOCAB**3
    first, second = generator(0, "tiny_text_task").integers(4, size=(2, n_rows, 1))
    salt = np.stack(np.unravel_index(np.arange(n_rows), (D_VOCAB,) * 3), axis=1)
    equals, end = np.full_like(first, 8), np.full_like(first, 9)
    number, other = first, second + 4
    tokens = np.concatenate([salt, number, other, number, other, equals, first + second, end], axis=1)
    mask = np.zeros(tokens.shape, dtype=bool)
    mask[:, 7:] = True
    at_first, at_second = np.tile([[3, 5]], (n_rows, 1)), np.tile([[4, 6]], (n_rows, 1))
    features = {
        "odd": FixedFeature("binary", np.repeat(first % 2, 2, axis=1), at_first, "Is the first number odd?"),
        "second": FixedFeature("categorical", np.repeat(second, 2, axis=1), at_second, "The second number."),
    }
    even, odd = (np.flatnonzero(first[:, 0] % 2 == parity) for parity in (0, 1))
    n_pairs = min(len(even), len(odd))
    pairs = {"odd": np.stack([even[:n_pairs], odd[:n_pairs]], axis=1)}
    words = [*(f"n{i}" for i in range(4)), *(f"m{i}" for i in range(4)), "=", "end", "x", "y"]
    return FixedTask("tiny text", tokens, mask, features, str_tokens=words, pairs=pairs)
