"""The sampler beside devinterp's, where that is installed (`pip install .[devinterp]`)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qfl_interp.curvature import SgldConfig, estimate_learning_coefficient

sgmcmc = pytest.importorskip("devinterp.optim.sgmcmc")

N, EPSILON, GAMMA, N_STEPS = 50, 2e-3, 30.0, 40
START = [0.3, -0.2, 0.1]


def loss(w):
    """Neither quadratic nor at a minimum."""
    return (w[0] * w[1] - 0.5) ** 2 + w[2] ** 4 + w.square().sum() / 3


@pytest.mark.filterwarnings("ignore:noise_level in SGLD")
def test_steps_without_noise_are_those_of_devinterp(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *shape, **how: torch.zeros(*shape, dtype=how.get("dtype")))
    config = SgldConfig(step_size=EPSILON, localization=GAMMA, n_chains=2, n_draws=N_STEPS, n_burn_in=0, batch_size=N)
    start = torch.tensor(START, dtype=torch.float64)
    ours = estimate_learning_coefficient(lambda w, rows: loss(w), start, N, config).losses[0]

    w = torch.nn.Parameter(start.clone())
    theirs = sgmcmc.SGMCMC.sgld([w], lr=EPSILON, localization=GAMMA, nbeta=N / math.log(N), noise_level=0.0)
    values = []
    for _ in range(N_STEPS):
        theirs.zero_grad()
        value = loss(w)
        value.backward()
        values.append(float(value.detach()))
        theirs.step()
    np.testing.assert_allclose(ours, values, rtol=1e-12)
    assert values[-1] < 0.9 * values[0]


def test_noise_has_the_variance_of_devinterps():
    w = torch.nn.Parameter(torch.zeros(100_000, dtype=torch.float64))
    w.grad = torch.zeros_like(w)
    torch.manual_seed(0)
    sgmcmc.SGMCMC.sgld([w], lr=EPSILON, localization=GAMMA, nbeta=2.0).step()
    assert float(w.detach().var()) == pytest.approx(EPSILON, rel=0.02)
