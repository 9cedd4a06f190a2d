"""Homogeneous networks beyond the edge of stability: depthwise scaling and the Taylor coefficients of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.homogeneous.config import RULES as RULES
    from qfl_interp.homogeneous.minibatch import run_minibatch as run_minibatch
    from qfl_interp.homogeneous.sharpness import top_sharpness as top_sharpness
    from qfl_interp.homogeneous.taylor import taylor_coefficients as taylor_coefficients
    from qfl_interp.mlp_config import MLPConfig as MLPConfig
    from qfl_interp.models.mlp import HomogeneousMLP as HomogeneousMLP
    from qfl_interp.models.mlp import SampleReader as SampleReader
    from qfl_interp.models.mlp import sample_tokens as sample_tokens

__getattr__, __dir__ = lazy_names(__name__)
