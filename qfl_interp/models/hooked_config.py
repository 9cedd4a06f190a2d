"""The configuration of `hooked_transformer`: the fields of TransformerLens 3's, of which it computes a part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from qfl_interp.errors import QflError

# Hook points that exist but fire only where this field is on.
GATED = {
    "hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
}
# What decides the function, with its default; "..." has none.
_COMPUTED: dict[str, Any] = {
    "d_model": ..., "d_head": ..., "n_layers": ..., "n_ctx": ..., "n_heads": -1, "d_mlp": None, "d_vocab": -1,
    "d_vocab_out": -1, "act_fn": "relu", "attn_only": False, "gated_mlp": False, "eps": 1e-5,
    "normalization_type": "LN", "positional_embedding_type": "standard", "rotary_dim": None, "rotary_base": 10000,
    "rotary_adjacent_pairs": False, "attn_scale": -1.0, "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0, "dtype": torch.float32, "device": None,
    # Initial weights.
    "init_weights": True, "init_mode": "gpt2", "initializer_range": -1.0,
    **dict.fromkeys(GATED.values(), False),
}  # fmt: skip
# What makes another function in TransformerLens 3, with the one value that is computed here.
_FIXED: dict[str, Any] = {
    "attention_dir": "causal", "attn_types": None, "clip_qkv": None, "final_rms": False,
    "load_in_4bit": False, "n_devices": 1, "n_key_value_heads": None, "num_experts": None, "experts_per_token": None,
    "original_architecture": None, "parallel_attn_mlp": False,
    "post_embedding_ln": False, "quantization_method": None, "relative_attention_max_distance": None,
    "relative_attention_num_buckets": None, "rotary_base_local": None, "rotary_scaling_factor": 1.0,
    "scale_attn_by_inverse_layer_idx": False, "seed": None, "tie_word_embeddings": False, "tokenizer_name": None,
    "use_NTK_by_parts_rope": False, "use_attention_sinks": False, "use_attn_scale": True, "use_dynamic_ntk_rope": False,
    "use_hook_tokens": False, "use_local_attn": False, "use_logn_attn": False,
    "use_normalization_before_and_after": False, "use_qk_norm": False, "use_yarn_rope": False, "window_size": None,
}  # fmt: skip
# What changes nothing while the above have those values.
_WITHOUT_EFFECT: dict[str, Any] = {
    "NTK_by_parts_factor": 8.0, "NTK_by_parts_high_freq_factor": 4.0, "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_original_ctx_len": 8192, "checkpoint_index": None, "checkpoint_label_type": None, "checkpoint_value": None,
    "decoder_start_token_id": None, "default_prepend_bos": True, "from_checkpoint": False, "layer_norm_folding": False,
    "model_name": "custom", "n_params": None, "norm_topk_prob": False, "tokenizer_prepends_bos": None,
    "train_seq_length": None, "trust_remote_code": False, "ungroup_grouped_query_attention": False,
    "uses_rms_norm": False, "yarn_attention_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
    "yarn_factor": 1.0, "yarn_global_attn_only": False, "yarn_original_max_position_embeddings": 4096,
    "yarn_truncate": True,
}  # fmt: skip
_NORMS = ("LN", "RMS", None)
_POSITIONS = ("standard", "rotary")


def _gelu_new(x: torch.Tensor) -> torch.Tensor:
    """GELU's tanh approximation, in TransformerLens's order of operations."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


# The nonlinearities of the MLP.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_new,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "solu": lambda x: x * F.softmax(x, dim=-1),
}


class _Checked:
    """Fills in what follows from other fields, and refuses what is not computed."""

    def __post_init__(self: Any) -> None:
        self.n_heads = self.d_model // self.d_head if self.n_heads == -1 else self.n_heads
        self.d_mlp = 4 * self.d_model if self.d_mlp is None else self.d_mlp
        self.d_vocab_out = self.d_vocab if self.d_vocab_out == -1 else self.d_vocab_out
        self.attn_scale = math.sqrt(self.d_head) if self.attn_scale == -1.0 else self.attn_scale
        self.device = "cpu" if self.device is None else self.device
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            self.rotary_dim = self.d_head
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / math.sqrt(self.d_model)
        matrices = 0 if self.attn_only else self.d_mlp * (3 if self.gated_mlp else 2)
        self.n_params = self.n_layers * self.d_model * (4 * self.d_head * self.n_heads + matrices)
        self._refuse()
        self._checked = True

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _FIXED and hasattr(self, "_checked"):
            self._refuse()

    def _refuse(self: Any) -> None:
        """Raise QflError for what only a model of TransformerLens 3 computes; all of it is listed."""
        faults = [f"{n}={getattr(self, n)!r} instead of {v!r}" for n, v in _FIXED.items() if getattr(self, n) != v]
        words = {"normalization_type": _NORMS, "positional_embedding_type": _POSITIONS}
        words |= {} if self.attn_only else {"act_fn": tuple(ACTIVATIONS)}
        words |= {"init_mode": ("gpt2",)} if self.init_weights else {}
        faults += [
            f"{name}={getattr(self, name)!r} instead of {' or '.join(map(repr, known))}"
            for name, known in words.items()
            if getattr(self, name) not in known
        ]
        if faults:
            listed = "\n  ".join(faults)
            raise QflError(
                f"transformer-lens 4 has no HookedTransformer, and ours does not compute this one's function:\n  "
                f'{listed}\nTake an environment with "transformer-lens>=3.9,<4" for this model, or describe it by a '
                "qfl_interp.ModelConfig."
            )


HookedTransformerConfig: Any = dataclasses.make_dataclass(
    "HookedTransformerConfig",
    [(n, Any) if v is ... else (n, Any, v) for n, v in {**_COMPUTED, **_FIXED, **_WITHOUT_EFFECT}.items()],
    bases=(_Checked,),
)
HookedTransformerConfig.__module__ = __name__
HookedTransformerConfig.__doc__ = """What a model computes, by the names and with the defaults of TransformerLens 3.

Raises:
    QflError: A field has a value of which the function is not computed here.
"""
