"""What of TransformerLens is used, whichever version is installed: the one module beside `hooked_*` that imports it.

TransformerLens 4 removed `HookedTransformer`, its configuration and its layers; ours stand in for them there. In both,
hook points and the bridge around Hugging Face models are TransformerLens's. Importing this takes seconds: do so where a
model is made.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import JointGateUpMLPBridge, JointQKVAttentionBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

__all__ = [
    "MAJOR", "Attention", "Embed", "HookPoint", "HookedRootModule", "HookedTransformer", "HookedTransformerConfig",
    "JointGateUpMLPBridge", "JointQKVAttentionBridge", "PosEmbed", "TransformerBridge", "Unembed",
    "build_bridge_from_module",
]  # fmt: skip

MAJOR = int(version("transformer-lens").partition(".")[0])

if TYPE_CHECKING or MAJOR < 4:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.components.attention import Attention
    from transformer_lens.components.embed import Embed
    from transformer_lens.components.pos_embed import PosEmbed
    from transformer_lens.components.unembed import Unembed
else:
    from qfl_interp.models.hooked_config import HookedTransformerConfig
    from qfl_interp.models.hooked_layers import Attention, Embed, PosEmbed, Unembed
    from qfl_interp.models.hooked_transformer import HookedTransformer
