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

from qfl_interp.analyses.checkpoints import over_checkpoints
from qfl_interp.analyses.lenses.polca.basis import basis_rows, find_basis, read_basis
from qfl_interp.analyses.lenses.polca.plan import LEAVE_OUT, Plan
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.curvature.token_gradients import project_curvature, project_on_each
from qfl_interp.curvature.token_losses import ScoredTokens, TokenLoss
from qfl_interp.errors import QflError
from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.models.build import parameters_to_save
from qfl_interp.polca.basis import orthogonality
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.polca.decomposition import Segment, captured_fraction, decompose
from qfl_interp.polca.trajectories import Trajectories, TrajectoryKind
from qfl_interp.shapes import Examples
from qfl_interp.training.replay import Replay

LENS = "polca_nodes"


class Followed(NamedTuple):
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


class PathPoint(NamedTuple):
    """A point of the way the parameters took, and what is computed there for every token and direction.

    Attributes:
        quantity: "gradients" or "curvature", of every token.
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
        return f"{self.quantity}-{ModelAt(self.step)}{way}"


def follow(plan: Plan, *, jobs: int = 1, progress: bool = True) -> Followed:
    """Follow every token's loss along the basis, from the first of the plan's steps to the last.

    First the directions are found (table "polca_basis", a part a direction), then the tokens' gradients along them at
    every checkpoint and, for the path integral, between them (table "polca_nodes", a part a point). A call that was
    stopped goes on where it was; calls of other accuracy or other steps share what they have in common.

    Args:
        plan: What to do.
        jobs: Points at a time, each in a process of its own; directions are found one after the other.
        progress: Draw bars on standard error.

    Raises:
        QflError: Checkpoints of different shapes, a loss that is not finite (names the step; what was computed before
            is kept), or a basis or curves that do not fit into memory.
    """
    scored = plan.scored()
    remedy = "Take fewer steps, examples or directions, or float32."
    what = f"curves of {len(scored):,} tokens along {plan.n_directions} directions at {len(plan.steps)} steps"
    require_memory(curves_bytes(plan), available_bytes(), what, remedy)
    compute_points([plan], jobs=jobs, progress=progress)
    return _collect(plan, scored)


def curves_bytes(plan: Plan) -> int:
    """Memory of the curves, and of what is collected of two checkpoints; clustering takes one direction at a time."""
    return plan.n_directions * len(plan.scored()) * (len(plan.steps) * plan.dtype.itemsize + 4 * 8)


def compute_points(plans: Sequence[Plan], *, jobs: int = 1, progress: bool = True) -> None:
    """Write what `follow` collects, for several plans of one run: a gradient is formed once for all their directions.

    Each plan's points come out as if it was followed alone, to the bit.

    Args:
        plans: Of the same run, examples, precision and device.
        jobs: As for `follow`.
        progress: As for `follow`.

    Raises:
        ValueError: The plans follow other examples, or in another precision.
        QflError: As for `follow`.
    """
    first = plans[0]
    for plan in plans[1:]:
        ours, theirs = ((p.run.path, p.config.n_examples, p.config.seed, p.dtype, p.device) for p in (first, plan))
        if ours != theirs:
            raise ValueError(
                "plans that are followed together must have run, n_examples, seed, precision and device in common, "
                f"got {ours} and {theirs}."
            )
    for plan in plans:
        _require_repeatable(plan, jobs)
        find_basis(plan, jobs=jobs, progress=progress)
    # Plans of one basis share parts: each part is the first one's that lacks it.
    lacking, wanted, parts = list[Plan](), dict[PathPoint, list[int]](), set[str]()
    for plan in plans:
        own = {_part(plan, node): node for node in missing_points(plan)}
        for part in own.keys() - parts:
            wanted.setdefault(own[part], []).append(len(lacking))
        if own.keys() - parts:
            lacking.append(plan)
        parts |= own.keys()
    if not lacking:
        return
    n = sum(plan.n_directions for plan in lacking)
    held = n * len(first.space) * first.dtype.itemsize
    what = f"{n} directions of {len(first.space):,} parameters, of {len(lacking)} plans"
    require_memory(held, available_bytes(first.device), what, "Follow fewer of them together.")
    tasks = [_Task(node, tuple(wanted[node])) for node in sorted(wanted, key=_in_training)]
    prepare, work = functools.partial(_prepare, lacking), functools.partial(_compute, lacking)
    over_checkpoints(tasks, prepare, work, label="projecting gradients", jobs=jobs, progress=progress)


def _require_repeatable(plan: Plan, jobs: int) -> None:
    """Of a replay train the first step that is not on disk: one that differs is refused before directions are found."""
    require_same_threads(plan, jobs)
    if isinstance(plan.run, Replay) and (made := _steps_to_train(plan)):
        plan.run.load_checkpoint(min(made))


def require_same_threads(plan: Plan, jobs: int) -> None:
    """Raise `QflError` where this process, or others that work on points, would train a replay on other threads."""
    if isinstance(plan.run, Replay) and _steps_to_train(plan):
        plan.run.require_threads(torch.get_num_threads())
        if jobs > 1:
            plan.run.require_threads(1)  # that is what a process of several has


def _steps_to_train(plan: Plan) -> set[int]:
    """The steps of a replay that are not on disk, while points are missing."""
    if not isinstance(plan.run, Replay) or not missing_points(plan):
        return set()
    return set(plan.steps).union(plan.basis_steps).difference(plan.run.saved_steps)


def gradients_at(plan: Plan) -> Float[Tensor, "time token direction"]:
    """`<b, g>` of every token at the plan's steps, for baselines that need them.

    Raises:
        QflError: They were not followed with this configuration.
    """
    return torch.stack([_tensors(plan, PathPoint("gradients", step, step))["gradients"] for step in plan.steps])


def coordinates_at(plan: Plan) -> Float[Tensor, "time direction"]:
    """Where the parameters are along each direction at the plan's steps, from where training began, in float64.

    Raises:
        QflError: They were not followed with this configuration.
    """
    return torch.stack([_tensors(plan, PathPoint("gradients", step, step))["coordinates"] for step in plan.steps])


def missing_points(plan: Plan) -> list[PathPoint]:
    """The points that are not in the run's table, in the order of training, which a replay follows once."""
    table = plan.run.table(LENS)
    missing = [node for node in _nodes(plan) if not table.has(_part(plan, node))]
    return sorted(missing, key=_in_training)


def _in_training(node: PathPoint) -> tuple[int, int, Fraction]:
    return node.step, node.to, node.share


def _nodes(plan: Plan) -> list[PathPoint]:
    """All points that the accuracy needs, those at checkpoints first."""
    config, nodes = plan.config, [PathPoint("gradients", step, step) for step in plan.steps]
    if config.accuracy == "path":
        nodes += [node for step, to in pairwise(plan.steps) for node in _inner(config, step, to)]
    elif config.accuracy in ("second", "paper"):
        nodes += [PathPoint("curvature", step, step) for step in plan.steps[:-1]]
    return nodes


def _inner(config: PolcaConfig, step: int, to: int) -> list[PathPoint]:
    n = 2 * config.n_panels
    return [PathPoint("gradients", step, to, Fraction(index, n)) for index in range(1, n)]


def _part(plan: Plan, node: PathPoint) -> str:
    return f"{node}-{plan.points_digest}"


class _Task(NamedTuple):
    """A point, and the plans that lack it, by number."""

    node: PathPoint
    plans: tuple[int, ...]

    def __str__(self) -> str:
        return str(self.node)


class _Shared(NamedTuple):
    """What all points need; a basis for each plan."""

    scored: ScoredTokens
    bases: list[Float[Tensor, "_direction parameter"]]
    origin: Float[Tensor, " parameter"]


def _prepare(plans: Sequence[Plan]) -> _Shared:
    """The tokens, the directions, and where coordinates along them are 0: at the first checkpoint that is finite."""
    plan, bases = plans[0], [read_basis(plan, plan.device) for plan in plans]
    for step in plan.run.steps:
        origin = plan.space.flatten(parameters_to_save(plan.run.load_model(step, device=plan.device)))
        if bool(torch.isfinite(origin).all()):
            return _Shared(plan.scored(), bases, origin.to(plan.dtype))
    raise QflError(
        f"no checkpoint of {plan.run.path} is finite: there is nothing to follow. Train again, at a lower rate."
    )


def _compute(plans: Sequence[Plan], shared: _Shared, task: _Task) -> None:
    """Compute what is asked at one point and write it, for each plan that asks."""
    node, plan = task.node, plans[task.plans[0]]
    model = plan.load(node.step)
    parameters = parameters_to_save(model)
    if node.share:
        end = parameters_to_save(plan.load(node.to))
        parameters = {name: start.lerp(end[name], float(node.share)) for name, start in parameters.items()}
    loss = TokenLoss(model, shared.scored, dtype=plan.dtype)
    bases = [shared.bases[index] for index in task.plans]
    try:
        found = quantities(loss, parameters, bases, node.quantity)
    except ValueError as error:
        raise QflError(
            f"{node.quantity} of {plan.run.path} stopped at step {node.step}{f' to {node.to}' if node.share else ''}: "
            f"{error} {LEAVE_OUT}"
        ) from error
    moved = plan.space.flatten(parameters).double() - shared.origin.double()
    for index, basis, tensors in zip(task.plans, bases, found, strict=True):
        # One direction at a time in float64.
        tensors["coordinates"] = torch.stack([row.double() @ moved for row in basis])
        _write(plans[index], node, tensors)


def _write(plan: Plan, node: PathPoint, tensors: dict[str, Tensor]) -> None:
    """Write a plan's part of a point."""
    values = tensors[node.quantity]
    rows = pd.DataFrame(
        {
            "direction": np.arange(plan.n_directions),
            "quantity": node.quantity,
            "step": node.step,
            "step_to": node.to,
            "share": float(node.share),
            "mean": values.double().mean(dim=0).cpu().numpy(),
            "coordinate": tensors["coordinates"].cpu().numpy(),
        }
    )
    rows = rows.assign(**plan.run.identity(), basis=plan.config.basis, analysis=plan.points_digest)
    plan.run.table(LENS).write(_part(plan, node), rows, tensors, steps=(*plan.sources, node.step, node.to))


def quantities(
    loss: TokenLoss,
    parameters: dict[str, Tensor],
    bases: Sequence[Float[Tensor, "_direction parameter"]],
    quantity: str,
) -> list[dict[str, Tensor]]:
    """What is asked at one point along each basis, by name."""
    if quantity == "gradients":
        each = project_on_each(loss, parameters, bases)
        return [{quantity: found.gradients, "losses": found.losses} for found in each]
    return [{quantity: project_curvature(loss, parameters, basis)} for basis in bases]


def _tensors(plan: Plan, node: PathPoint) -> dict[str, Tensor]:
    return plan.run.table(LENS).read_tensors(_part(plan, node))


def _collect(plan: Plan, scored: ScoredTokens) -> Followed:
    """Trajectories and intervals from the stored points; two checkpoints are in memory at a time."""
    config, run, steps, n = plan.config, plan.run, plan.steps, plan.n_directions
    start = _tensors(plan, PathPoint("gradients", steps[0], steps[0]))
    losses = [start["losses"]]
    values = np.zeros((n, len(scored), len(steps)), dtype=np.float64 if config.double else np.float32)
    sums = torch.zeros(len(scored), n, dtype=torch.float64)
    intervals = []
    for index, (step, to) in enumerate(pairwise(steps), start=1):
        end = _tensors(plan, PathPoint("gradients", to, to))
        found = decompose(config.accuracy, _interval(plan, step, to, start, end))
        sums += found.contributions
        values[:, :, index] = sums.mT.numpy()
        change = (end["losses"] - start["losses"]).double()
        intervals.append(
            {
                "step_from": step,
                "step_to": to,
                **{f"{name}_from": value for name, value in run.how_far(step).items()},
                **{f"{name}_to": value for name, value in run.how_far(to).items()},
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
    directions = basis_rows(plan).assign(orthogonality=orthogonality(read_basis(plan)).numpy())
    return Followed(
        Trajectories(kind, steps, values, tuple(range(n))),
        torch.stack(losses),
        scored,
        plan.examples,
        directions,
        pd.DataFrame(intervals).assign(**run.identity()),
        config,
    )


def _interval(plan: Plan, step: int, to: int, start: dict[str, Tensor], end: dict[str, Tensor]) -> Segment:
    """What is stored of one interval, in float64."""
    config = plan.config
    inner = _inner(config, step, to) if config.accuracy == "path" else []
    slopes = [start["gradients"], *(_tensors(plan, node)["gradients"] for node in inner), end["gradients"]]
    segment = Segment(end["coordinates"] - start["coordinates"], [slope.double() for slope in slopes])
    if config.accuracy not in ("second", "paper"):
        return segment
    curvature = _tensors(plan, PathPoint("curvature", step, step))["curvature"].double()
    # The mean of the tokens' curvatures is that of their mean loss.
    return segment._replace(curvature=curvature, dataset_curvature=curvature.mean(dim=0))
