"""Curvature of the mean token loss: Hessian-vector products, and top eigenpairs beside a basis already there.

Products are forward over reverse (`torch.func.jvp` of `torch.func.grad`), in the loss's precision; the eigenvectors are
Lanczos's, in float64. Vectors handed over may be float32 or float64 and lie on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.curvature.along import AlongStep, along_step, cosine, step_sharpness
    from qfl_interp.curvature.config import CurvatureConfig, SgldConfig
    from qfl_interp.curvature.eigenpairs import Eigenpairs, top_eigenpairs
    from qfl_interp.curvature.hessian import Hessian, SymmetricOperator
    from qfl_interp.curvature.learning_coefficient import LearningCoefficient, estimate_learning_coefficient
    from qfl_interp.curvature.orthonormal import gram_matrix, orthonormalise, require_orthonormal
    from qfl_interp.curvature.preconditioned import (
        AdamState,
        Preconditioned,
        adam_preconditioner,
        adam_state,
        adam_update,
        stability_edge,
    )

__getattr__, __dir__ = lazy_names(__name__)
