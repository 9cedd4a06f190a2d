"""Homogeneous networks beyond the edge of stability: depthwise scaling and the Taylor coefficients of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.homogeneous.config import RULES
    from qfl_interp.homogeneous.minibatch import run_minibatch
    from qfl_interp.homogeneous.sharpness import top_sharpness
    from qfl_interp.homogeneous.taylor import taylor_coefficients
    from qfl_interp.mlp_config import MLPConfig
    from qfl_interp.models.mlp import HomogeneousMLP, SampleReader, sample_tokens

__getattr__, __dir__ = lazy_names(__name__)
