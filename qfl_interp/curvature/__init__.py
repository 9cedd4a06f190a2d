"""Curvature of the mean token loss: Hessian-vector products, and top eigenpairs beside a basis already there.

Products are forward over reverse (`torch.func.jvp` of `torch.func.grad`), in the loss's precision; the eigenvectors are
Lanczos's, in float64. Vectors handed over may be float32 or float64 and lie on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qfl_interp.lazy import lazy_names

if TYPE_CHECKING:
    from qfl_interp.curvature.along import AlongStep as AlongStep
    from qfl_interp.curvature.along import along_step as along_step
    from qfl_interp.curvature.along import cosine as cosine
    from qfl_interp.curvature.along import step_sharpness as step_sharpness
    from qfl_interp.curvature.config import CurvatureConfig as CurvatureConfig
    from qfl_interp.curvature.config import SgldConfig as SgldConfig
    from qfl_interp.curvature.eigenpairs import Eigenpairs as Eigenpairs
    from qfl_interp.curvature.eigenpairs import top_eigenpairs as top_eigenpairs
    from qfl_interp.curvature.hessian import Hessian as Hessian
    from qfl_interp.curvature.hessian import SymmetricOperator as SymmetricOperator
    from qfl_interp.curvature.learning_coefficient import LearningCoefficient as LearningCoefficient
    from qfl_interp.curvature.learning_coefficient import estimate_learning_coefficient as estimate_learning_coefficient
    from qfl_interp.curvature.orthonormal import gram_matrix as gram_matrix
    from qfl_interp.curvature.orthonormal import orthonormalise as orthonormalise
    from qfl_interp.curvature.orthonormal import require_orthonormal as require_orthonormal
    from qfl_interp.curvature.preconditioned import AdamState as AdamState
    from qfl_interp.curvature.preconditioned import Preconditioned as Preconditioned
    from qfl_interp.curvature.preconditioned import adam_preconditioner as adam_preconditioner
    from qfl_interp.curvature.preconditioned import adam_state as adam_state
    from qfl_interp.curvature.preconditioned import adam_update as adam_update
    from qfl_interp.curvature.preconditioned import stability_edge as stability_edge

__getattr__, __dir__ = lazy_names(__name__)
