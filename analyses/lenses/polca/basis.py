"""The directions of weight space that POLCA follows: found once, one after the other, and kept beside the run."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.checkpoints import over_checkpoints
from analyses.lenses.polca.plan import LEAVE_OUT, BasisPlan, Stage, load_checked, theta
from analyses.lenses.probe.data import TABLE as PROBE_TABLE
from analyses.lenses.probe.data import labels_of, part_name
from analyses.lenses.probe.lens import probe
from analyses.models_at import trained_at
from qfl_interp.config import ProbeConfig
from qfl_interp.curvature import Hessian
from qfl_interp.curvature.eigenpairs import solver_vectors
from qfl_interp.curvature.token_losses import ScoredTokens, TokenLoss, scored_tokens
from qfl_interp.data.examples import held_out
from qfl_interp.errors import QflError
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import HookedModel
from qfl_interp.polca.basis import (
    NewDirections,
    added_directions,
    basis_bytes,
    hessian_directions,
    random_directions,
    top_parameters,
    trajectory_directions,
)
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.polca.probe_gradient import probe_gradient
from qfl_interp.probes import load_probes
from qfl_interp.runs.series import Checkpoints
from qfl_interp.seeding import torch_generator
from qfl_interp.shapes import Examples

LENS = "polca_basis"


def find_basis(
    run: Checkpoints, plan: BasisPlan, *, jobs: int = 1, device: str | torch.device = "cpu", progress: bool = True
) -> None:
    """Find the directions that are not in the run's table yet, and write them there as they are found.

    One process: each stage needs the directions of those before. What is there after an interruption is not found
    again, and what is missing comes out the same.

    Args:
        run: Whose checkpoints.
        plan: Which directions.
        jobs: Processes that will use the basis, for the estimate of memory; and for fitting the probes of "probe".
        device: Where to compute.
        progress: Draw a bar on standard error.

    Raises:
        QflError: The basis does not fit into memory, or something is not finite at a basis checkpoint.
    """
    config, table = plan.config, run.table(LENS)
    n_rows = max(len(plan), len(plan.steps)) if config.basis == "trajectory" else len(plan)
    at_once = len(plan.stages) == 1
    memory: dict[str, Any] = {"at_once": at_once, "dtype": plan.dtype, "jobs": jobs}
    if config.basis in ("hessian", "shuffled"):
        memory["n_vectors"] = solver_vectors(config.per_checkpoint, config.max_products)
    needed = basis_bytes(n_rows, len(plan.space), **memory)
    remedy = "Take fewer directions (basis_steps, per_checkpoint, n_directions), fewer jobs, or float32."
    require_memory(needed, available_bytes(device), f"{len(plan)} directions of {len(plan.space):,} parameters", remedy)
    missing = [s for s in plan.stages if not all(table.has(plan.part(s.first + i)) for i in range(s.n))]
    if missing and config.basis == "probe":
        probe(
            run, config.feature, list(plan.steps), config=_probe_config(config), n_untrained=0,
            jobs=jobs, device=device, progress=progress,
        )  # fmt: skip
    work = functools.partial(_find, run, plan, device)
    prepare = functools.partial(_prepare, run, plan, device)
    over_checkpoints(missing, prepare, work, label="finding directions", progress=progress)


def read_basis(
    run: Checkpoints, plan: BasisPlan, device: str | torch.device = "cpu"
) -> Float[Tensor, "direction parameter"]:
    """The directions, one a row."""
    return _read(run, plan, range(len(plan)), device)


def _read(
    run: Checkpoints, plan: BasisPlan, numbers: Iterable[int], device: str | torch.device
) -> Float[Tensor, "direction parameter"]:
    """The directions of these numbers in their rows, zeros in the others."""
    basis = torch.zeros(len(plan), len(plan.space), dtype=plan.dtype, device=device)
    for number in numbers:
        basis[number] = run.table(LENS).read_tensors(plan.part(number))["direction"]
    return basis


def basis_rows(run: Checkpoints, plan: BasisPlan) -> pd.DataFrame:
    """One row a direction: what its finding said of it."""
    return run.table(LENS).read([plan.part(number) for number in range(len(plan))])


class _Found(NamedTuple):
    """What the stages share: the directions so far, and what curvature and gradients are taken over."""

    basis: Float[Tensor, "direction parameter"]
    examples: Examples
    scored: ScoredTokens


def _prepare(run: Checkpoints, plan: BasisPlan, device: str | torch.device) -> _Found:
    """The directions found before, and the examples."""
    config, table = plan.config, run.table(LENS)
    there = (number for number in range(len(plan)) if table.has(plan.part(number)))
    # A task over a fixed dataset that the models were not trained on has no training examples.
    split = "train" if run.task.train_fraction > 0 else "val"
    examples = held_out(run.task, split, config.n_hessian, seed=config.seed, stream="polca/hessian")
    return _Found(_read(run, plan, there, device), examples, scored_tokens(run.task.encode(examples)))


def _find(run: Checkpoints, plan: BasisPlan, device: str | torch.device, found: _Found, stage: Stage) -> None:
    """Find the directions of one stage and write them."""
    try:
        new = _new_directions(run, plan, device, found, stage)
    except ValueError as error:
        raise QflError(f"the basis of {run.path} stopped at {stage}: {error} {LEAVE_OUT}") from error
    found.basis[stage.first : stage.first + stage.n] = new.vectors
    for index in range(stage.n):
        number = stage.first + index
        row = {
            "direction": number,
            "basis": plan.config.basis,
            "step": stage.step,
            "flops": run.flops(stage.step),
            "eigenvalue": float(new.eigenvalues[index]),
            "residual": float(new.residuals[index]),
            "converged": bool(new.converged[index]),
            "n_products": new.n_products,
        }
        rows = pd.DataFrame([row]).assign(**run.identity(), analysis=plan.digest)
        # As it is in the basis: what is found next is orthogonal to what was stored.
        run.table(LENS).write(plan.part(number), rows, {"direction": found.basis[number]})


def _new_directions(
    run: Checkpoints, plan: BasisPlan, device: str | torch.device, found: _Found, stage: Stage
) -> NewDirections:
    """The directions of one stage."""
    config, before = plan.config, found.basis[: stage.first]
    if config.basis == "random":
        return random_directions(
            stage.n, len(plan.space), torch_generator(config.seed, "polca/random"), dtype=plan.dtype
        )
    if config.basis == "trajectory":
        return trajectory_directions(_movement(run, plan, device), stage.n)
    if config.basis == "parameters":
        return top_parameters(theta(run, plan, stage.step, device), stage.n)
    model = load_checked(run, plan, stage.step, device)
    if config.basis == "probe":
        gradient = _probe_gradient(run, config, model, found.examples, stage.step)
        return added_directions(before, gradient[None], f"gradients of the probes of {config.feature!r}")
    hessian = Hessian(TokenLoss(model, found.scored, dtype=plan.dtype))
    if config.basis == "gradient":
        return added_directions(before, hessian.gradient()[None], "gradients of the loss")
    return hessian_directions(
        hessian, before, stage.n, tol=config.tol, max_products=config.max_products, seed=config.seed
    )


def _movement(run: Checkpoints, plan: BasisPlan, device: str | torch.device) -> Float[Tensor, "time parameter"]:
    """`theta_t - theta_0` of the basis checkpoints after the first."""
    movement = torch.empty(len(plan.steps) - 1, len(plan.space), dtype=plan.dtype, device=device)
    start = theta(run, plan, plan.steps[0], device)
    for index, step in enumerate(plan.steps[1:]):
        movement[index] = theta(run, plan, step, device) - start
    return movement


def _probe_config(config: PolcaConfig) -> ProbeConfig:
    """How the probes of "probe" are fitted: as `probe` does by default, but for what the user chose."""
    return ProbeConfig(n_train=config.n_probe, seed=config.seed)


def _probe_gradient(
    run: Checkpoints, config: PolcaConfig, model: HookedModel, examples: Examples, step: int
) -> Float[Tensor, " parameter"]:
    """The gradient of the loss of the feature's probes at one checkpoint."""
    feature = run.task.feature(config.feature)
    tensors = run.table(PROBE_TABLE).read_tensors(part_name(trained_at(step), feature.name, _probe_config(config)))
    return probe_gradient(
        model,
        load_probes(feature.kind, tensors),
        tensors["place"],
        run.task.encode(examples).tokens,
        labels_of(feature, examples),
        torch.from_numpy(feature.positions(examples).T.copy()),
    )
