"""Curvature of the mean token loss: Hessian-vector products, and top eigenpairs beside a basis already there.

Products are forward over reverse (`torch.func.jvp` of `torch.func.grad`), in the loss's precision; the eigenvectors are
SciPy's. Vectors handed over may be float32 or float64 and lie on any device.
"""

from qfl_interp.curvature.eigenpairs import Eigenpairs, top_eigenpairs
from qfl_interp.curvature.hessian import Hessian, SymmetricOperator
from qfl_interp.curvature.orthonormal import orthonormalise, require_orthonormal

__all__ = ["Eigenpairs", "Hessian", "SymmetricOperator", "orthonormalise", "require_orthonormal", "top_eigenpairs"]
