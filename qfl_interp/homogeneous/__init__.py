"""Homogeneous networks beyond the edge of stability: depthwise scaling and the Taylor coefficients of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.homogeneous.config import RULES, MLPConfig, MLPTrainConfig
    from qfl_interp.homogeneous.images import Labelled, digits, mnist
    from qfl_interp.homogeneous.mlp import HomogeneousMLP, SampleReader, sample_tokens
    from qfl_interp.homogeneous.sharpness import top_sharpness
    from qfl_interp.homogeneous.taylor import taylor_coefficients
    from qfl_interp.homogeneous.training import MLPRun, train_mlp

__getattr__, __dir__ = lazy_names(__name__)
