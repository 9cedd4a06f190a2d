"""What `curvature` measures on a dataset of the user's is the loss that their own loop trains."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

import qfl_interp as qfl
from qfl_interp import analyses
from qfl_interp.models.tl_version import HookPoint
from tests.helpers_gpt import GPT, GPTConfig


class Hooked(GPT):
    """With hook points on the stream."""

    def __init__(self) -> None:
        super().__init__(GPTConfig())
        self.cfg, self.hook_dict = SimpleNamespace(n_layers=2), {}
        for layer, block in enumerate(self.transformer.h):
            self.hook_dict[f"blocks.{layer}.hook_resid_post"] = vars(block)["point"] = HookPoint()
            block.register_forward_hook(lambda block, _, output: vars(block)["point"](output))

    def forward(self, tokens):
        return super().forward(tokens, targets=tokens)[0]


def test_curvature_measures_the_loss_of_the_own_loop():
    a, b = np.divmod(np.arange(64), 8)
    tokens = np.stack([a, b, np.full(64, 8), (a + b) % 8], axis=1)
    answer = np.zeros(tokens.shape, dtype=bool)
    answer[:, 3] = True
    trained = np.random.default_rng(0).permutation(64)[:40]
    task = qfl.FixedTask("sums", tokens, answer, {}, prompt_end=False, split=trained)
    torch.manual_seed(0)
    model = Hooked()
    initial = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rows = torch.from_numpy(tokens[np.sort(trained)])

    def own_loss():
        return F.cross_entropy(model(rows)[:, 2], rows[:, 3])

    for _ in range(30):
        optimizer.zero_grad()
        own_loss().backward()
        optimizer.step()
    suite = qfl.Suite.from_models({0: initial, 30: model}, task)
    found = analyses.curvature(suite, "last", progress=False).rows
    assert own_loss().item() < 1.9
    np.testing.assert_allclose(found["loss"], own_loss().item(), rtol=1e-5)
