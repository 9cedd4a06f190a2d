"""Every token's loss along every direction of weight space, over the checkpoints of a run: what POLCA clusters."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.checkpoints import over_checkpoints, require_jobs
from analyses.lenses.polca.basis import basis_rows, find_basis, read_basis
from analyses.lenses.polca.plan import LEAVE_OUT, BasisPlan, load_checked, plan_basis
from analyses.models_at import trained_at
from qfl_interp.curvature import Hessian
from qfl_interp.curvature.token_gradients import project_curvature, project_gradients
from qfl_interp.curvature.token_losses import ScoredTokens, TokenLoss, require_finite, scored_tokens
from qfl_interp.data.examples import held_out
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import parameters_to_save
from qfl_interp.polca.basis import orthogonality
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.polca.decomposition import Segment, captured_fraction, decompose
from qfl_interp.polca.trajectories import Trajectories, TrajectoryKind
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.shapes import Examples

LENS = "polca_nodes"
# With fewer there is no turn of a curve to see.
_MIN_CHECKPOINTS = 3


class PolcaData(NamedTuple):
    """The loss of every token along every direction.

    Attributes:
        trajectories: In nats, 0 at the first step. Kind "lca" for basis "parameters", "first_order" for that accuracy.
        losses: The tokens' own losses, in nats.
        scored: The tokens: sequences, positions, targets.
        examples: The raw examples, whose answers they are.
        directions: One row a direction: direction, step (its basis checkpoint), flops, eigenvalue, residual, converged,
            n_products (of all directions found with it), orthogonality (the largest inner product with another, or
            error of its length).
        intervals: One row an interval: step_from, step_to, flops_from, flops_to, loss_change and captured (mean over
            the tokens, nats; along all directions together), captured_fraction, n_guarded (directions in which the
            paper's ratio was not formed).
        config: What decided all this.
    """

    trajectories: Trajectories
    losses: Float[Tensor, "time token"]
    scored: ScoredTokens
    examples: Examples
    directions: pd.DataFrame
    intervals: pd.DataFrame
    config: PolcaConfig


class Node(NamedTuple):
    """A point of the way the parameters took, and what is computed there for every token and direction.

    Attributes:
        quantity: "gradients", "curvature" (of every token) or "dataset_curvature" (of their mean).
        step: A checkpoint.
        to: The next one; the same where the point is the checkpoint.
        share: How far the point is on the straight way to it.
    """

    quantity: str
    step: int
    to: int
    share: Fraction = Fraction(0)

    def __str__(self) -> str:
        way = f"_to_{self.to:08d}_{self.share.numerator}of{self.share.denominator}" if self.share else ""
        return f"{self.quantity}-{trained_at(self.step)}{way}"


def polca_trajectories(
    run: Checkpoints,
    steps: Steps = "all",
    *,
    config: PolcaConfig | None = None,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> PolcaData:
    """Follow the loss of held-out answer tokens along directions of weight space, from checkpoint to checkpoint.

    First the directions are found (table "polca_basis", a part a direction), then the tokens' gradients along them at
    every checkpoint and, for the path integral, between them (table "polca_nodes", a part a point). A call that was
    stopped goes on where it was; calls of other accuracy or other steps share what they have in common.

    Args:
        run: What to look at.
        steps: The checkpoints of the trajectories, as in `probe`; at least 3.
        config: Basis, accuracy, examples.
        jobs: Points at a time, each in a process of its own; directions are found one after the other.
        device: Where to compute.
        progress: Draw bars on standard error.

    Raises:
        QflError: Unknown step, fewer than 3, checkpoints of different shapes, a loss that is not finite (names the
            step; what was computed before is kept), or a basis that does not fit into memory.
        ValueError: More directions than parameters.
    """
    config = config or PolcaConfig()
    at = run.resolve_steps(steps)
    require_followable(run, at, jobs)
    plan = plan_basis(run, config)
    n_tokens = len(_scored(run, config))
    # The curves, and what is collected of two checkpoints; clustering takes one direction at a time.
    held = len(plan) * n_tokens * (len(at) * plan.dtype.itemsize + 4 * 8)
    remedy = "Take fewer steps, examples or directions, or float32."
    what = f"curves of {n_tokens:,} tokens along {len(plan)} directions at {len(at)} steps"
    require_memory(held, available_bytes(), what, remedy)
    find_basis(run, plan, jobs=jobs, device=device, progress=progress)
    table = run.table(LENS)
    missing = [node for node in _nodes(config, at) if not table.has(_part(plan, node))]
    prepare = functools.partial(_prepare, run, plan, device)
    work = functools.partial(_compute, run, plan, device)
    over_checkpoints(missing, prepare, work, label="projecting gradients", jobs=jobs, progress=progress)
    return _collect(run, plan, at)


def require_followable(run: Checkpoints, steps: Sequence[int], jobs: int) -> None:
    """Raise before any work where it could not be finished.

    Raises:
        QflError: There are fewer than 3 checkpoints.
        ValueError: `jobs` is below 1.
    """
    if len(steps) < _MIN_CHECKPOINTS:
        raise QflError(
            f"POLCA needs at least {_MIN_CHECKPOINTS} checkpoints, got {len(steps)} of {run.path}: {list(steps)}. Take "
            "steps='all', or train with a larger n_checkpoints."
        )
    require_jobs(jobs)


def polca_gradients(run: Checkpoints, steps: Steps, config: PolcaConfig) -> Float[Tensor, "time token direction"]:
    """`<b, g>` of every token at checkpoints that `polca_trajectories` has been at, for baselines that need them.

    Raises:
        QflError: It has not been there with this configuration.
    """
    plan = plan_basis(run, config)
    return torch.stack([_tensors(run, plan, Node("gradients", s, s))["gradients"] for s in run.resolve_steps(steps)])


def _nodes(config: PolcaConfig, steps: Sequence[int]) -> list[Node]:
    """All points that the accuracy needs, those at checkpoints first."""
    nodes = [Node("gradients", step, step) for step in steps]
    if config.accuracy == "path":
        nodes += [node for step, to in pairwise(steps) for node in _inner(config, step, to)]
    elif config.accuracy != "first":
        nodes += [Node(_quantity(config), step, step) for step in steps[:-1]]
    return nodes


def _quantity(config: PolcaConfig) -> str:
    """Which curvature the accuracy needs at the start of an interval."""
    return {"second": "curvature", "paper": "dataset_curvature"}[config.accuracy]


def _inner(config: PolcaConfig, step: int, to: int) -> list[Node]:
    """The points between two checkpoints."""
    n = 2 * config.n_panels
    return [Node("gradients", step, to, Fraction(index, n)) for index in range(1, n)]


def _part(plan: BasisPlan, node: Node) -> str:
    """The table part of a point."""
    return f"{node}-{digest(f'{plan.digest} {plan.config.n_examples} {plan.config.seed}')}"


def _examples(run: Checkpoints, config: PolcaConfig) -> Examples:
    """Whose answers are followed."""
    return held_out(run.task, "test", config.n_examples, seed=config.seed, stream="polca")


def _scored(run: Checkpoints, config: PolcaConfig) -> ScoredTokens:
    """The tokens of those answers."""
    return scored_tokens(run.task.encode(_examples(run, config)))


class _Shared(NamedTuple):
    """What all points need."""

    scored: ScoredTokens
    basis: Float[Tensor, "direction parameter"]
    origin: Float[Tensor, " parameter"]


def _prepare(run: Checkpoints, plan: BasisPlan, device: str | torch.device) -> _Shared:
    """The tokens, the directions, and where coordinates along them are 0: at the first checkpoint that is finite."""
    scored, basis = _scored(run, plan.config), read_basis(run, plan, device)
    for step in run.steps:
        origin = plan.space.flatten(parameters_to_save(run.load_model(step, device=device)))
        if bool(torch.isfinite(origin).all()):
            return _Shared(scored, basis, origin.to(plan.dtype))
    raise QflError(f"no checkpoint of {run.path} is finite: there is nothing to follow. Train again, at a lower rate.")


def _compute(run: Checkpoints, plan: BasisPlan, device: str | torch.device, shared: _Shared, node: Node) -> None:
    """Compute what is asked at one point and write it."""
    model = load_checked(run, plan, node.step, device)
    parameters = parameters_to_save(model)
    if node.share:
        end = parameters_to_save(load_checked(run, plan, node.to, device))
        parameters = {name: start.lerp(end[name], float(node.share)) for name, start in parameters.items()}
    loss = TokenLoss(model, shared.scored, dtype=plan.dtype)
    try:
        tensors = _quantities(loss, parameters, shared.basis, node.quantity)
    except ValueError as error:
        raise QflError(
            f"{node.quantity} of {run.path} stopped at step {node.step}{f' to {node.to}' if node.share else ''}: "
            f"{error} {LEAVE_OUT}"
        ) from error
    moved = plan.space.flatten(parameters).double() - shared.origin.double()
    # One direction at a time in float64.
    tensors["coordinates"] = torch.stack([row.double() @ moved for row in shared.basis])
    values = tensors[node.quantity]
    rows = pd.DataFrame(
        {
            "direction": np.arange(len(plan)),
            "quantity": node.quantity,
            "step": node.step,
            "step_to": node.to,
            "share": float(node.share),
            "mean": values.double().mean(dim=0).cpu().numpy() if values.ndim == 2 else values.double().cpu().numpy(),
            "coordinate": tensors["coordinates"].cpu().numpy(),
        }
    )
    part = _part(plan, node)
    where = {"basis": plan.config.basis, "analysis": part.rpartition("-")[2]}
    run.table(LENS).write(part, rows.assign(**run.identity(), **where), tensors)


def _quantities(
    loss: TokenLoss, parameters: dict[str, Tensor], basis: Float[Tensor, "direction parameter"], quantity: str
) -> dict[str, Tensor]:
    """What is asked at one point, by name."""
    if quantity == "dataset_curvature":
        curvature = Hessian(loss, parameters).along(basis)
        require_finite(curvature, "curvature of the mean loss along the directions")
        return {quantity: curvature}
    if quantity == "curvature":
        return {quantity: project_curvature(loss, parameters, basis)}
    found = project_gradients(loss, parameters, basis)
    return {quantity: found.gradients, "losses": found.losses}


def _tensors(run: Checkpoints, plan: BasisPlan, node: Node) -> dict[str, Tensor]:
    """What was stored at a point."""
    return run.table(LENS).read_tensors(_part(plan, node))


def _collect(run: Checkpoints, plan: BasisPlan, steps: Sequence[int]) -> PolcaData:
    """Trajectories and intervals from the stored points; two checkpoints are in memory at a time."""
    config = plan.config
    examples = _examples(run, config)
    scored = scored_tokens(run.task.encode(examples))
    start = _tensors(run, plan, Node("gradients", steps[0], steps[0]))
    losses = [start["losses"]]
    values = np.zeros((len(plan), len(scored), len(steps)), dtype=np.float64 if config.double else np.float32)
    sums = torch.zeros(len(scored), len(plan), dtype=torch.float64)
    intervals = []
    for index, (step, to) in enumerate(pairwise(steps), start=1):
        end = _tensors(run, plan, Node("gradients", to, to))
        found = decompose(config.accuracy, _interval(run, plan, step, to, start, end))
        sums += found.contributions
        values[:, :, index] = sums.mT.numpy()
        change = (end["losses"] - start["losses"]).double()
        intervals.append(
            {
                "step_from": step,
                "step_to": to,
                "flops_from": run.flops(step),
                "flops_to": run.flops(to),
                "loss_change": float(change.mean()),
                "captured": float(found.contributions.sum(dim=1).mean()),
                "captured_fraction": captured_fraction(found.contributions, change),
                "n_guarded": found.n_guarded,
            }
        )
        losses.append(end["losses"])
        start = end
    first_order: TrajectoryKind = "first_order" if config.accuracy == "first" else "polca"
    kind: TrajectoryKind = "lca" if config.basis == "parameters" else first_order
    directions = basis_rows(run, plan).assign(orthogonality=orthogonality(read_basis(run, plan)).numpy())
    return PolcaData(
        Trajectories(kind, tuple(steps), values, tuple(range(len(plan)))),
        torch.stack(losses),
        scored,
        examples,
        directions,
        pd.DataFrame(intervals).assign(**run.identity()),
        config,
    )


def _interval(
    run: Checkpoints, plan: BasisPlan, step: int, to: int, start: dict[str, Tensor], end: dict[str, Tensor]
) -> Segment:
    """What is stored of one interval, in float64."""
    config = plan.config
    inner = _inner(config, step, to) if config.accuracy == "path" else []
    slopes = [start["gradients"], *(_tensors(run, plan, node)["gradients"] for node in inner), end["gradients"]]
    curvature = {}
    if config.accuracy in ("second", "paper"):
        quantity = _quantity(config)
        curvature = {quantity: _tensors(run, plan, Node(quantity, step, step))[quantity].double()}
    moved = end["coordinates"] - start["coordinates"]
    return Segment(moved, [slope.double() for slope in slopes], **curvature)
