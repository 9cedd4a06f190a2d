"""The directions of weight space that POLCA follows: found once, one after the other, and kept beside the run."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.analyses.checkpoints import n_processes, over_checkpoints
from qfl_interp.analyses.lenses.polca.plan import LEAVE_OUT, Plan, Stage, direction_part
from qfl_interp.analyses.lenses.probe.data import probe_tensors
from qfl_interp.analyses.lenses.probe.lens import probe
from qfl_interp.config import ProbeConfig
from qfl_interp.curvature import Hessian
from qfl_interp.curvature.eigenpairs import solver_vectors
from qfl_interp.curvature.token_losses import ScoredTokens, TokenLoss, scored_tokens
from qfl_interp.data.examples import fitted_split, held_out
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
from qfl_interp.probes.feature_data import labels_of
from qfl_interp.seeding import torch_generator
from qfl_interp.shapes import Examples

LENS = "polca_basis"


def find_basis(plan: Plan, *, jobs: int = 1, progress: bool = True) -> None:
    """Find the directions that are not in the run's table yet, and write them there as they are found.

    One process: each stage needs the directions of those before. What is there after an interruption is not found
    again, and what is missing comes out the same.

    Args:
        plan: Which directions.
        jobs: Processes that will use the basis, for the estimate of memory; and for fitting the probes of "probe".
        progress: Draw a bar on standard error.

    Raises:
        QflError: The basis does not fit into memory, or something is not finite at a basis checkpoint.
    """
    config, table = plan.config, plan.run.table(LENS)
    memory_needed(plan, jobs)
    missing = [s for s in plan.stages if not all(table.has(_part(plan, s.first + i)) for i in range(s.n))]
    if missing and config.basis == "probe":
        probe(
            plan.run, config.feature, list(plan.basis_steps), config=_probe_config(config), n_untrained=0,
            jobs=jobs, device=plan.device, progress=progress,
        )  # fmt: skip
    work, prepare = functools.partial(_find, plan), functools.partial(_prepare, plan)
    over_checkpoints(missing, prepare, work, label="finding directions", progress=progress)


def memory_needed(plan: Plan, jobs: int = 1) -> int:
    """Bytes that the directions and what finds and uses them need. Raises `QflError` where there is less."""
    config, n = plan.config, plan.n_directions
    n_rows = max(n, len(plan.basis_steps)) if config.basis == "trajectory" else n
    at_once, together = len(plan.stages) == 1, n_processes(jobs, len(plan.steps))
    memory: dict[str, Any] = {"at_once": at_once, "dtype": plan.dtype, "jobs": together}
    if config.basis in ("hessian", "shuffled"):
        memory["n_vectors"] = solver_vectors(config.per_checkpoint)
    needed = basis_bytes(n_rows, len(plan.space), **memory)
    remedy = "Take fewer directions (basis_steps, per_checkpoint, n_directions), fewer jobs, or float32."
    require_memory(needed, available_bytes(plan.device), f"{n} directions of {len(plan.space):,} parameters", remedy)
    return needed


def read_basis(plan: Plan, device: str | torch.device = "cpu") -> Float[Tensor, "direction parameter"]:
    """The directions, one a row."""
    return _read(plan, range(plan.n_directions), device)


def basis_rows(plan: Plan, numbers: Iterable[int] | None = None) -> pd.DataFrame:
    """One row a direction: what its finding said of it."""
    shown = range(plan.n_directions) if numbers is None else numbers
    return plan.run.table(LENS).read([_part(plan, number) for number in shown])


def _part(plan: Plan, number: int) -> str:
    return direction_part(number, plan.basis_digest)


def _read(plan: Plan, numbers: Iterable[int], device: str | torch.device) -> Float[Tensor, "direction parameter"]:
    """The directions of these numbers in their rows, zeros in the others."""
    basis = torch.zeros(plan.n_directions, len(plan.space), dtype=plan.dtype, device=device)
    for number in numbers:
        basis[number] = plan.run.table(LENS).read_tensors(_part(plan, number))["direction"]
    return basis


class _Found(NamedTuple):
    """What the stages share: the directions so far, and what curvature and gradients are taken over."""

    basis: Float[Tensor, "direction parameter"]
    examples: Examples
    scored: ScoredTokens


def _prepare(plan: Plan) -> _Found:
    """The directions found before, and the examples."""
    table = plan.run.table(LENS)
    there = (number for number in range(plan.n_directions) if table.has(_part(plan, number)))
    return _Found(_read(plan, there, plan.device), *hessian_sample(plan))


def hessian_sample(plan: Plan) -> tuple[Examples, ScoredTokens]:
    """The training examples whose loss gives directions, and their tokens that count."""
    config, task = plan.config, plan.run.task
    examples = held_out(task, fitted_split(task), config.n_hessian, seed=config.seed, stream="polca/hessian")
    return examples, scored_tokens(task.encode(examples), prompt=config.hessian_prompt)


def _find(plan: Plan, found: _Found, stage: Stage) -> None:
    run = plan.run
    try:
        new = _new_directions(plan, found, stage)
    except ValueError as error:
        raise QflError(f"the basis of {run.path} stopped at {stage}: {error} {LEAVE_OUT}") from error
    found.basis[stage.first : stage.first + stage.n] = new.vectors
    for index in range(stage.n):
        number = stage.first + index
        row = {
            "direction": number,
            "basis": plan.config.basis,
            "step": stage.step,
            **run.how_far(stage.step),
            "eigenvalue": float(new.eigenvalues[index]),
            "residual": float(new.residuals[index]),
            "converged": bool(new.converged[index]),
            "n_products": new.n_products,
        }
        rows = pd.DataFrame([row]).assign(**run.identity(), analysis=plan.basis_digest)
        # As it is in the basis: what is found next is orthogonal to what was stored.
        run.table(LENS).write(_part(plan, number), rows, {"direction": found.basis[number]}, steps=plan.sources)


def _new_directions(plan: Plan, found: _Found, stage: Stage) -> NewDirections:
    config, before = plan.config, found.basis[: stage.first]
    if config.basis == "random":
        return random_directions(
            stage.n, len(plan.space), torch_generator(config.seed, "polca/random"), dtype=plan.dtype
        )
    if config.basis == "trajectory":
        return trajectory_directions(_movement(plan), stage.n)
    if config.basis == "parameters":
        return top_parameters(plan.theta(stage.step), stage.n)
    model = plan.load(stage.step)
    if config.basis == "probe":
        gradient = _probe_gradient(plan, model, found.examples, stage.step)
        return added_directions(before, gradient[None], f"gradients of the probes of {config.feature!r}")
    hessian = Hessian(TokenLoss(model, found.scored, dtype=plan.dtype))
    if config.basis == "gradient":
        return added_directions(before, hessian.gradient()[None], "gradients of the loss")
    return hessian_directions(
        hessian, before, stage.n, tol=config.tol, max_products=config.max_products, seed=config.seed
    )


def _movement(plan: Plan) -> Float[Tensor, "time parameter"]:
    """`theta_t - theta_0` of the basis checkpoints after the first."""
    first, *later = plan.basis_steps
    movement = torch.empty(len(later), len(plan.space), dtype=plan.dtype, device=plan.device)
    start = plan.theta(first)
    for index, step in enumerate(later):
        movement[index] = plan.theta(step) - start
    return movement


def _probe_config(config: PolcaConfig) -> ProbeConfig:
    """How the probes of "probe" are fitted: as `probe` does by default, but for what the user chose."""
    return ProbeConfig(n_train=config.n_probe, seed=config.seed)


def _probe_gradient(plan: Plan, model: HookedModel, examples: Examples, step: int) -> Float[Tensor, " parameter"]:
    """The gradient of the loss of the feature's probes at one checkpoint."""
    task = plan.run.task
    feature = task.feature(plan.config.feature)
    tensors = probe_tensors(plan.run, step, feature.name, _probe_config(plan.config))
    return probe_gradient(
        model,
        load_probes(feature.kind, tensors),
        tensors["place"],
        task.encode(examples).tokens,
        labels_of(feature, examples),
        torch.from_numpy(feature.positions(examples).T.copy()),
    )
