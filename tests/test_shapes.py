"""What holds tensors is shown by their shapes."""

from __future__ import annotations

import torch

from qfl_interp.curvature.eigenpairs import Eigenpairs
from qfl_interp.homogeneous.minibatch import run_minibatch
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.models.mlp import HomogeneousMLP
from qfl_interp.polca.decomposition import Segment


def test_tensors_are_shown_by_dtype_and_shape():
    values = torch.tensor([1.5])
    pairs = Eigenpairs(values, torch.zeros(1, 5, dtype=torch.float64), values, values > 0, 4)
    assert repr(pairs) == (
        "Eigenpairs(values=float32[1], vectors=float64[1, 5], residuals=float32[1], converged=bool[1], n_products=4)"
    )
    interval = Segment(torch.zeros(3), [torch.zeros(2, 3), torch.zeros(2, 3)])
    assert repr(interval) == (
        "Segment(step=float32[3], nodes=[float32[2, 3], float32[2, 3]], curvature=None, dataset_curvature=None)"
    )


def test_a_dataclass_too():
    model = HomogeneousMLP(MLPConfig(3, 2, 4, 2, 0))
    shown = repr(run_minibatch(model, torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), "cross_entropy"))
    assert shown.startswith("Minibatch(loss='cross_entropy', value=")
    assert "weights=[float32[4, 3], float32[2, 4]]" in shown
    assert "tensor(" not in shown
