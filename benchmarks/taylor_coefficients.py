"""What the measurements of a homogeneous network cost beside a training step: coefficients, scales, sharpness."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._measuring import interleaved
from qfl_interp.homogeneous.depthwise import DepthwiseRule, scales
from qfl_interp.homogeneous.minibatch import run_minibatch
from qfl_interp.homogeneous.sharpness import MLPHessian, top_sharpness
from qfl_interp.homogeneous.taylor import taylor_coefficients
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.models.mlp import HomogeneousMLP

TITLE = "Taylor coefficients of a step (homogeneous network, 64 inputs, 10 outputs, quadratic widths, batch 128)"


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Milliseconds of each measurement, and how many plain training steps' processor time it takes (c0 to c2: under 3).

    A training step is torch's own: forward and backward pass and the update of every weight. c0 to c2 include the
    forward and the backward pass that they start from, and the rule's scales. "Hessian-vector product" is the same c2
    by autograd: forward, backward and second backward pass.

    Args:
        quick: One small network, one round.
        device: Of the network.
    """
    rows = []
    for depth, width in ((3, 4),) if quick else ((4, 64), (8, 20)):
        rows += _measure(MLPConfig(64, 10, width, depth, 2), 1 if quick else 20, device)
    return rows


def _measure(config: MLPConfig, rounds: int, device: str) -> list[dict[str, Any]]:
    model = HomogeneousMLP(config).to(device)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(128, 64, generator=rng).to(device), torch.randint(10, (128,), generator=rng).to(device)
    loss = "cross_entropy"
    weights = list(model.parameters())
    batch = run_minibatch(model, x, y, loss)
    xi = scales(DepthwiseRule(), batch)
    direction = torch.randn(config.size, generator=rng).to(device)

    def step() -> None:
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.0 * gradient

    def scaled_step() -> None:
        found = run_minibatch(model, x, y, loss)
        factors = scales(DepthwiseRule(), found)
        with torch.no_grad():
            for weight, k, gradient in zip(weights, factors, found.unit_gradients, strict=True):
                weight -= 0.0 * k * gradient

    def coefficients() -> None:
        found = run_minibatch(model, x, y, loss)
        taylor_coefficients(found, scales(DepthwiseRule(), found))

    works = {
        "training step": step,
        "training step with the depthwise rule": scaled_step,
        "c0, c1, c2 (passes and scales included)": coefficients,
        "one Hessian-vector product (autograd)": lambda: MLPHessian(model, x, y, loss).product(direction),
        "lambda_P (Lanczos to 1e-3)": lambda: top_sharpness(model, x, y, loss, xi),
    }
    # One thread: the cores of a busy machine would be compared, not the work.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = interleaved(works, rounds)
    finally:
        torch.set_num_threads(n_threads)
    shape = {"threads": 1, "depth": config.depth, "parameters": config.size}
    step_cpu = seconds["training step"].cpu
    return [
        {
            "name": name,
            **shape,
            "cpu_ms": 1e3 * taken.cpu,
            "ms": 1e3 * taken.wall,
            "training_steps": taken.cpu / step_cpu,
        }
        for name, taken in seconds.items()
    ]
