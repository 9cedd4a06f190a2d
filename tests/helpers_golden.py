"""The reference's tiny model of golden/model_forward.json as a HookedTransformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qfl_interp.config import ModelConfig
from qfl_interp.models.build import build_hooked, load_parameters
from qfl_interp.models.tl_version import HookedTransformer

GOLDEN = Path(__file__).parent / "golden"


def golden_forward() -> list[dict[str, Any]]:
    """The models of golden/model_forward.json."""
    return json.loads((GOLDEN / "model_forward.json").read_text())["models"]


def hooked_from_golden(case: dict[str, Any]) -> HookedTransformer:
    """The model with the file's weights, which are (output, input): y = W x."""
    sizes = case["config"]
    config = ModelConfig(
        d_model=sizes["dim"],
        n_layers=sizes["n_layers"],
        n_heads=sizes["n_heads"],
        norm_eps=sizes["norm_eps"],
        rope_theta=sizes["rope_theta"],
    )
    assert config.d_mlp_used == sizes["ffn_hidden"]
    model = build_hooked(config, d_vocab=sizes["vocab"], n_ctx=sizes["seq_len"])
    weights = {name: torch.tensor(rows) for name, rows in case["weights"].items()}
    load_parameters(model, _lens_layout(weights, config.n_layers, config.n_heads))
    return model


def _lens_layout(weights: dict[str, Tensor], n_layers: int, n_heads: int) -> dict[str, Tensor]:
    """The same weights under TransformerLens's names, (head, input, output)."""
    found = {
        "embed.W_E": weights["embed"],
        "ln_final.w": weights["final_norm"],
        "unembed.W_U": weights["unembed"].T,
    }
    for layer in range(n_layers):
        ours, theirs = f"blocks.{layer}", f"block{layer}"
        for letter in "qkv":
            heads = weights[f"{theirs}.{letter}"].unflatten(0, (n_heads, -1))
            found[f"{ours}.attn.W_{letter.upper()}"] = heads.transpose(1, 2)
        found[f"{ours}.attn.W_O"] = weights[f"{theirs}.o"].T.unflatten(0, (n_heads, -1))
        for name, word in (("W_gate", "gate"), ("W_in", "up"), ("W_out", "down")):
            found[f"{ours}.mlp.{name}"] = weights[f"{theirs}.{word}"].T
        for number in (1, 2):
            found[f"{ours}.ln{number}.w"] = weights[f"{theirs}.norm{number}"]
    return found
