"""The `HookedTransformer` of this library's configurations, for transformer-lens 4, which has none.

Hook points, parameters, configuration and the order of operations are those of TransformerLens 3, so that logits and
activations are too, to the bit on a CPU, and weights go from one to the other. It computes what `ModelConfig` can say;
there is no tokenizer, no cache of keys and values and no padding.

References:
    Llama (arXiv 2302.13971) and GPT-2 for the blocks; Su et al. (2021), arXiv 2104.09864, for rotary positions.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint

from qfl_interp.models.hooked_config import GATED, HookedTransformerConfig
from qfl_interp.models.hooked_layers import (
    MLP,
    Attention,
    Embed,
    GatedMLP,
    Inputs,
    LayerNorm,
    PosEmbed,
    RMSNorm,
    Stream,
    Unembed,
    soft_capped,
)

# Parameters that a model shows as its own: the module they are in, or each block's.
_OUTSIDE = {"W_E": "embed", "W_pos": "pos_embed", "W_U": "unembed", "b_U": "unembed"}
_INSIDE = {f"{kind}_{letter}": "attn" for kind in "Wb" for letter in "QKVO"}
_INSIDE |= dict.fromkeys(("W_in", "W_gate", "W_out", "b_in", "b_out"), "mlp")
_NORMS: dict[str | None, Any] = {"RMS": RMSNorm, "LN": LayerNorm, None: lambda _: nn.Identity()}


class TransformerBlock(nn.Module):
    """Attention, then the MLP where there is one, each adding to the stream."""

    def __init__(self, cfg: Any, layer: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.ln1 = _NORMS[cfg.normalization_type](cfg)
        if not cfg.attn_only:
            self.ln2 = _NORMS[cfg.normalization_type](cfg)
        self.attn = Attention(cfg, "global", layer)
        if not cfg.attn_only:
            self.mlp = (GatedMLP if cfg.gated_mlp else MLP)(cfg)
        self.hook_attn_in = HookPoint()
        self.hook_q_input = HookPoint()
        self.hook_k_input = HookPoint()
        self.hook_v_input = HookPoint()
        self.hook_mlp_in = HookPoint()
        self.hook_attn_out = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_pre = HookPoint()
        if not cfg.attn_only:
            self.hook_resid_mid = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(self, resid_pre: Stream) -> Stream:
        """The stream after the block."""
        resid_pre = self.hook_resid_pre(resid_pre)
        q, k, v = self._attention_inputs(resid_pre)
        attn_out = self.hook_attn_out(self.attn(self.ln1(q), self.ln1(k), self.ln1(v)))
        if self.cfg.attn_only:
            return self.hook_resid_post(resid_pre + attn_out)
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_in = self.hook_mlp_in(resid_mid.clone()) if self.cfg.use_hook_mlp_in else resid_mid
        return self.hook_resid_post(resid_mid + self.hook_mlp_out(self.mlp(self.ln2(mlp_in))))

    def _attention_inputs(self, resid: Stream) -> tuple[Inputs, Inputs, Inputs]:
        """What queries, keys and values are made of: the stream, or a copy of it for each head."""
        cfg = self.cfg
        each = resid[:, :, None].expand(-1, -1, cfg.n_heads, -1)
        shared = self.hook_attn_in(each.clone()) if cfg.use_attn_in else resid
        if not cfg.use_split_qkv_input:
            return shared, shared, shared
        return self.hook_q_input(each.clone()), self.hook_k_input(each.clone()), self.hook_v_input(each.clone())


class HookedTransformer(HookedRootModule):
    """A causal transformer with TransformerLens hook points: token ids `[batch, pos]` to logits.

    Args:
        cfg: What is computed; its initial weights are drawn from torch's global generator, where `init_weights` says
            so, and are uninitialised memory otherwise.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg: Any = HookedTransformerConfig(**cfg) if isinstance(cfg, dict) else cfg
        self.tokenizer = None
        self.embed = Embed(self.cfg)
        self.hook_embed = HookPoint()
        if self.cfg.positional_embedding_type == "standard":
            self.pos_embed = PosEmbed(self.cfg)
            self.hook_pos_embed = HookPoint()
        self.blocks = nn.ModuleList(TransformerBlock(self.cfg, layer) for layer in range(self.cfg.n_layers))
        if self.cfg.normalization_type is not None:
            self.ln_final = _NORMS[self.cfg.normalization_type](self.cfg)
        self.unembed = Unembed(self.cfg)
        if self.cfg.init_weights:
            for name, parameter in self.named_parameters():
                if "W_" in name:
                    nn.init.normal_(parameter, std=self.cfg.initializer_range)
        self.setup()

    def forward(
        self,
        input: Tensor,
        return_type: Literal["logits", "loss"] | None = "logits",
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
    ) -> Tensor | None:
        """The logits, or the residual stream before `stop_at_layer`.

        Args:
            input: Token ids, or the residual stream before `start_at_layer` where that is given. Negative layers count
                from the last.
            return_type: "loss" is the mean cross-entropy of the next tokens, in nats; None gives nothing.
            start_at_layer: The first block that is run.
            stop_at_layer: The first block that is not.
        """
        resid = self._embedded(input) if start_at_layer is None else input
        for block in list(self.blocks)[start_at_layer:stop_at_layer]:
            resid = block(resid)
        if stop_at_layer is not None:
            return resid
        resid = resid if self.cfg.normalization_type is None else self.ln_final(resid)
        if return_type is None:
            return None
        logits = soft_capped(self.unembed(resid), self.cfg.output_logits_soft_cap)
        if return_type == "logits":
            return logits
        if return_type != "loss" or start_at_layer is not None:
            raise ValueError(f"return_type must be 'logits', None, or of token ids 'loss', got {return_type!r}.")
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), input.to(logits.device)[:, 1:].flatten())

    def _embedded(self, tokens: Tensor) -> Stream:
        """The residual stream before the first block."""
        tokens = (tokens[None] if tokens.ndim == 1 else tokens).to(self.embed.W_E.device)
        resid = self.hook_embed(self.embed(tokens))
        if self.cfg.positional_embedding_type == "rotary":
            return resid
        return resid + self.hook_pos_embed(self.pos_embed(tokens))

    def __getattr__(self, name: str) -> Any:
        """Also `W_E`, `W_pos`, `W_U`, `b_U`, and the blocks' others stacked: `W_Q` `[layer, head, d_model, d_head]`."""
        if name in _OUTSIDE:
            return getattr(super().__getattr__(_OUTSIDE[name]), name)
        if name in _INSIDE:
            return torch.stack([getattr(getattr(block, _INSIDE[name]), name) for block in self.blocks])
        return super().__getattr__(name)

    def run_with_cache(self, *args: Any, return_cache_object: bool = True, **kwargs: Any) -> Any:
        """The output, and every activation of the pass, as an `ActivationCache` of TransformerLens or as a dict."""
        batched = not kwargs.get("remove_batch_dim", False)
        out, cache = super().run_with_cache(*args, **kwargs)
        return out, ActivationCache(cache, self, has_batch_dim=batched) if return_cache_object else cache

    def check_hooks_to_add(self, hook_point: HookPoint, hook_point_name: str, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError for a hook point that would not fire."""
        flag = GATED.get(hook_point_name.rpartition(".")[2])
        if flag is not None and not getattr(self.cfg, flag):
            raise ValueError(
                f"hook point {hook_point_name!r} does not fire while cfg.{flag} is False. Call model.set_{flag}(True)."
            )

    def to(self, *args: Any, print_details: bool = True, **kwargs: Any) -> Any:
        """`nn.Module.to`, which keeps `cfg.device` and `cfg.dtype` in step; it prints nothing."""
        moved = super().to(*args, **kwargs)
        self.cfg.device, self.cfg.dtype = self.embed.W_E.device.type, self.embed.W_E.dtype
        return moved

    def set_use_attn_result(self, use: bool) -> None:
        """Whether `hook_result`, each head's own output, fires."""
        self.cfg.use_attn_result = use

    def set_use_split_qkv_input(self, use: bool) -> None:
        """Whether `hook_q_input`, `hook_k_input` and `hook_v_input` fire."""
        self.cfg.use_split_qkv_input = use

    def set_use_attn_in(self, use: bool) -> None:
        """Whether `hook_attn_in` fires."""
        self.cfg.use_attn_in = use

    def set_use_hook_mlp_in(self, use: bool) -> None:
        """Whether `hook_mlp_in` fires."""
        self.cfg.use_hook_mlp_in = use
