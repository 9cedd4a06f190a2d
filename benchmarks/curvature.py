"""Products with the Hessian that top eigenpairs take over a run's checkpoints, four ways, at equal residuals.

A llama-style model on 8-bit addition, at checkpoints that are log-spaced. "Ours" is `top_eigenpairs` at a relative
residual of 1e-2, which stops when it is certain to have the largest; the others go on to the residual that it came to.
ARPACK (SciPy's `eigsh` on `2 k + 8` vectors from a random start) is what the library used before. "From the neighbour"
is Lanczos, and for k = 1 power iteration, started from the sum of the eigenvectors of the checkpoint before, which
stops as soon as the residuals allow and does not ask whether it has the largest; a Hessian is shifted for power
iteration, or it finds the eigenvalue of largest magnitude.

Then what a way misses: of many starts on a matrix whose two largest eigenvalues are 3 % apart, the share that ends at
the second with residuals within 1e-2. Then seconds: a training step is the library's, forward and backward of 64
examples through the fast path, clipping, AdamW; a whole checkpoint adds the preconditioned sharpness, the step's
curvature, the next update and the soft ranks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._eigensolvers import Found, arpack, lanczos_from, power_iteration, random_start
from qfl_interp.analyses.lenses.curvature.measure import Shared, load, measure, shared_of, trained_loss
from qfl_interp.analyses.lenses.curvature.ranks import rank_rows
from qfl_interp.config import ModelConfig, TrainConfig
from qfl_interp.curvature import CurvatureConfig, Hessian, SymmetricOperator, top_eigenpairs
from qfl_interp.data.registry import load_task
from qfl_interp.runs.run import Run
from qfl_interp.training.train import train

TITLE = "Top eigenpairs over checkpoints (addition-8, 2 layers, d_model 32, 32 examples)"

N_EXAMPLES, N_STEPS, N_CHECKPOINTS, MOST = 32, 400, 6, 60
PAIRS = (1, 4, 10)
TOL = 1e-2
N_STARTS = 200


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of products, shares and seconds.

    Args:
        quick: Fewer updates, examples and starts.
        device: Where to train, and of the Hessian; the solvers' own vectors are on the CPU.
    """
    n_steps, config = N_STEPS, CurvatureConfig(n_examples=N_EXAMPLES)
    if quick:
        n_steps, config = 20, CurvatureConfig(n_examples=8, n_rank_examples=8)
    with tempfile.TemporaryDirectory() as folder:
        trained, step_seconds = _trained(Path(folder) / "run", n_steps, device)
        shared = shared_of(trained, config)
        rows = _products(trained, shared, PAIRS[:2] if quick else PAIRS, device)
        rows += _missed(20 if quick else N_STARTS)
        rows += [{"name": "training step, batch 64", "value": step_seconds, "unit": "CPU s"}]
        return rows + [row for step in (0, n_steps) for row in _seconds(trained, shared, step, device)]


def _trained(out: Path, n_steps: int, device: str) -> tuple[Run, float]:
    """A short run with its moments, and the processor seconds of one of its updates."""
    settings = TrainConfig(
        n_steps=n_steps, lr=2e-3, n_checkpoints=N_CHECKPOINTS, save_optimizer=True, eval_fraction=1.0, n_val=64
    )
    start = time.process_time()
    task, model = load_task("addition", length=8), ModelConfig(d_model=32, n_layers=2)
    found = train(task, model, settings, out, device=device, progress=False)
    return found, (time.process_time() - start) / n_steps


def _products(run: Run, shared: Shared, pairs: tuple[int, ...], device: str) -> list[dict[str, Any]]:
    """A row a checkpoint and k, and the sums over the checkpoints that have one before them."""
    rows: list[dict[str, Any]] = []
    before: dict[int, Tensor] = {}
    for step in run.steps:
        hessian = Hessian(trained_loss(run, load(run, shared, step, device), shared.batch))
        for k in pairs:
            ours = top_eigenpairs(hessian, k, tol=TOL, max_products=400)
            values, residual = ours.values.tolist(), float(ours.residuals.max())
            row = {"name": f"step {step}, k = {k}", "value": ours.n_products, "unit": "products", "residual": residual}
            row["arpack"] = arpack(hessian, k, residual, random_start(len(hessian))).products
            if k in before:
                start = before[k].sum(0).double()
                row |= _from_neighbour(hessian, start, values, residual)
            before[k] = ours.vectors.cpu()
            rows.append(row)
    for k in pairs:
        every = [row for row in rows if row["name"].endswith(f", k = {k}")]
        names = ("value", "arpack", "lanczos_from_neighbour", "power_from_neighbour")
        later = {name: sum(row[name] for row in every[1:]) for name in names if name in every[-1]}
        rows.append({"name": f"all but the first, k = {k}", "unit": "products"} | later)
    return rows


def _from_neighbour(hessian: Hessian, start: Tensor, values: list[float], residual: float) -> dict[str, Any]:
    """Products of Lanczos, and for one pair of power iteration, from a start."""
    k = len(values)
    lanczos = lanczos_from(hessian, start, k, tol=residual, most=MOST)
    row: dict[str, Any] = {"lanczos_from_neighbour": lanczos.products}
    if _below(lanczos, values):
        row["lanczos_below"] = lanczos.values[-1]
    if k == 1:
        power = power_iteration(hessian, start, tol=residual, most=MOST)
        row |= {"power_from_neighbour": power.products, "power_residual": power.residual}
    return row


def _below(found: Found, values: list[float]) -> bool:
    """Whether an eigenvalue is smaller than it should be by more than the tolerance."""
    return any(got < value - TOL * abs(value) for got, value in zip(found.values, values, strict=True))


class _Diagonal:
    """Eigenvalues as an operator."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def product(self, vector: Tensor) -> Tensor:
        """The matrix times a vector."""
        return self.values * vector


def _missed(n_starts: int) -> list[dict[str, Any]]:
    """The share of starts from which a way takes the second eigenvalue for the first, and its products."""
    values = torch.cat([torch.tensor([1.03, 1.0]), torch.linspace(-0.7, 0.7, 198)]).double()
    matrix: SymmetricOperator = _Diagonal(values)
    second = torch.eye(200, dtype=torch.float64)[1]

    def ours(seed: int) -> Found:
        found = top_eigenpairs(matrix, tol=TOL, seed=seed)
        return Found(found.values.tolist(), float(found.residuals[0]), found.n_products)

    def close(seed: int) -> Tensor:
        random = random_start(200, seed)
        return second + 0.01 * random / random.norm()

    ways: dict[str, Callable[[int], Found]] = {
        "ours": ours,
        "ARPACK": lambda seed: arpack(matrix, 1, TOL, random_start(200, seed)),
        "residual alone, random start": lambda seed: lanczos_from(
            matrix, random_start(200, seed), 1, tol=TOL, most=200
        ),
        "residual alone, from the second eigenvector": lambda seed: lanczos_from(
            matrix, close(seed), 1, tol=TOL, most=200
        ),
    }
    rows = []
    for name, way in ways.items():
        found = [way(seed) for seed in range(n_starts)]
        share = float(np.mean([_below(one, [1.03]) for one in found]))
        products = float(np.mean([one.products for one in found]))
        rows.append({"name": f"missed: {name}", "value": share, "unit": "share of starts", "products": products})
    return rows


def _seconds(run: Run, shared: Shared, step: int, device: str) -> list[dict[str, Any]]:
    """Processor seconds of a product, of the sharpness and of all that is measured at a checkpoint."""
    model = load(run, shared, step, device)
    hessian = Hessian(trained_loss(run, model, shared.batch))
    vector = random_start(len(hessian))
    following = [saved for saved in run.steps if saved > step]

    def checkpoint() -> None:
        measure(run, shared, model, step, following[0] if following else None)
        rank_rows(model, shared.rank_batch)

    work: dict[str, Callable[[], object]] = {
        "Hessian product": lambda: hessian.product(vector),
        "sharpness": lambda: top_eigenpairs(hessian, tol=TOL),
        "whole checkpoint": checkpoint,
    }
    hessian.product(vector)
    rows = []
    for name, function in work.items():
        start = time.process_time()
        function()
        rows.append({"name": f"step {step}: {name}", "value": time.process_time() - start, "unit": "CPU s"})
    return rows
