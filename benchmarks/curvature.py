"""Cost of one checkpoint's sharpness, beside a training step and beside power iteration.

A llama-style model on 16-bit addition at initialisation and after 300 updates, whose spectra differ. Lanczos is
`top_eigenpairs` at its relative residual of 1e-2; power iteration multiplies and normalises until its own residual is
as small, on `H + shift`, the shift being the length of `H` times a random unit vector: without one it finds the
eigenvalue of largest magnitude. Both start from random vectors, on the same Hessian. A training step is the library's:
forward and backward of 64 examples through the fast path, clipping, AdamW. The whole checkpoint adds the
preconditioned sharpness, the step's curvature, the next update and the soft ranks.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from analyses.lenses.curvature.measure import Shared, load, measure, shared_of, trained_loss
from analyses.lenses.curvature.ranks import rank_rows
from benchmarks._measuring import best_seconds, timed
from qfl_interp.config import ModelConfig, TrainConfig
from qfl_interp.curvature import CurvatureConfig, Hessian, SymmetricOperator, top_eigenpairs
from qfl_interp.data.registry import load_task
from qfl_interp.runs.run import Run
from qfl_interp.training.train import train

TITLE = "Sharpness of a checkpoint (addition-16, 2 layers, d_model 32, 128 examples)"

N_STEPS, MOST = 300, 400


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of seconds, Hessian products and multiples of a training step.

    Args:
        quick: Fewer updates and examples.
        device: Where to train and measure.
    """
    n_steps, config = (20, CurvatureConfig(n_examples=8, n_rank_examples=8)) if quick else (N_STEPS, CurvatureConfig())
    with tempfile.TemporaryDirectory() as folder:
        trained, step_seconds = _trained(Path(folder) / "run", n_steps, device)
        rows = [{"name": "training step, batch 64", "value": step_seconds, "unit": "s", "steps": 1.0}]
        shared = shared_of(trained, config)
        for step in (0, n_steps):
            rows += _rows(trained, shared, step, step_seconds, device)
    return rows


def _trained(out: Path, n_steps: int, device: str) -> tuple[Run, float]:
    """A short run with its moments, and the seconds of one of its updates."""
    settings = TrainConfig(n_steps=n_steps, lr=2e-3, n_checkpoints=4, save_optimizer=True, eval_fraction=1.0, n_val=64)
    task, model = load_task("addition", length=16), ModelConfig(d_model=32, n_layers=2)
    found = train(task, model, settings, out, device=device, progress=False)
    logged = dict(zip(found.metrics["step"], found.metrics["seconds"], strict=True))
    first = max(1, n_steps // 4)
    return found, float(logged[n_steps] - logged[first]) / (n_steps - first)


def _rows(run: Run, shared: Shared, step: int, step_seconds: float, device: str) -> list[dict[str, Any]]:
    hessian = Hessian(trained_loss(load(run, shared, step, device), shared.batch))
    vector = torch.randn(len(hessian), generator=torch.Generator().manual_seed(0))
    hessian.product(vector)
    one = best_seconds(lambda: hessian.product(vector), 3)
    config = shared.config
    lanczos, top = timed(lambda: top_eigenpairs(hessian, tol=config.tol, max_products=config.max_products))
    power, (value, products, residual) = timed(
        lambda: power_iteration(hessian, tol=config.tol, most=MOST, device=device)
    )
    following = [saved for saved in run.steps if saved > step]

    def checkpoint() -> None:
        model = load(run, shared, step, device)
        measure(run, shared, model, step, following[0] if following else None)
        rank_rows(model, shared.rank_batch)

    whole, _ = timed(checkpoint)
    found = [
        (f"step {step}: Hessian product", one, 1, None, None),
        (f"step {step}: sharpness, Lanczos", lanczos, top.n_products, float(top.values[0]), float(top.residuals[0])),
        (f"step {step}: sharpness, power iteration", power, products, value, residual),
        (f"step {step}: whole checkpoint", whole, None, None, None),
    ]
    columns = ("name", "value", "products", "eigenvalue", "residual")
    return [
        {key: entry for key, entry in zip(columns, row, strict=True) if entry is not None}
        | {"unit": "s", "steps": row[1] / step_seconds}
        for row in found
    ]


def power_iteration(
    hessian: SymmetricOperator, *, tol: float, most: int, device: str = "cpu"
) -> tuple[float, int, float]:
    """Eigenvalue, products and relative residual of power iteration on the shifted operator, until `tol` or `most`."""
    v = torch.randn(len(hessian), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    v /= v.norm()
    image = hessian.product(v).double()
    shift = float(image.norm())
    for products in range(1, most + 1):
        value = float(v @ image)
        residual = float((image - value * v).norm()) / max(abs(value), 1e-30)
        if residual <= tol or products == most:
            return value, products, residual
        v = image + shift * v
        v /= v.norm()
        image = hessian.product(v).double()
    raise AssertionError("most must be at least 1")
