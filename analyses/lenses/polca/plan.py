"""Which directions of weight space a configuration asks for, before any is found, and the checkpoints they need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.curvature.token_losses import require_finite_parameters
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel, model_in_dtype, parameters_to_save
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.runs.series import Checkpoints
from qfl_interp.seeding import generator

# What to do about a checkpoint that is not finite.
LEAVE_OUT = (
    "Directions found and points computed before are kept. Leave out checkpoints at which the run diverged: of steps, "
    "and of basis_steps too (--steps, --basis-steps)."
)


# What decides a basis beside its checkpoints and sizes.
_DECIDES = {
    "hessian": ("n_hessian", "tol", "max_products", "seed"),
    "shuffled": ("n_hessian", "tol", "max_products", "seed"),
    "random": ("seed",),
    "parameters": (),
    "gradient": ("n_hessian", "seed"),
    "trajectory": (),
    "probe": ("feature", "n_probe", "n_hessian", "seed"),
}


class Stage(NamedTuple):
    """Directions that are found together.

    Attributes:
        first: Number of the first of them.
        n: How many.
        step: The checkpoint they come from: the last basis checkpoint for directions of the whole run, the run's first
            checkpoint for random ones.
    """

    first: int
    n: int
    step: int

    def __str__(self) -> str:
        return f"direction {self.first} at step {self.step}"


@dataclass(frozen=True)
class BasisPlan:
    """Which directions a basis has, before any is found.

    Attributes:
        config: Decides them.
        steps: The basis checkpoints.
        stages: In the order of the work; each needs the directions of those before.
        space: The parameters, whose shapes every checkpoint must have.
    """

    config: PolcaConfig
    steps: tuple[int, ...]
    stages: tuple[Stage, ...]
    space: ParameterSpace

    def __len__(self) -> int:
        """How many directions."""
        return sum(stage.n for stage in self.stages)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the directions and of everything along them."""
        return torch.float64 if self.config.double else torch.float32

    @property
    def digest(self) -> str:
        """Names what decides the directions in table parts."""
        named = {name: getattr(self.config, name) for name in ("basis", "double", *_DECIDES[self.config.basis])}
        return digest(json.dumps(named | {"stages": self.stages, "steps": self.steps}, sort_keys=True))

    def part(self, number: int) -> str:
        """The table part of a direction."""
        return f"direction_{number:04d}-{self.digest}"


def plan_basis(run: Checkpoints, config: PolcaConfig) -> BasisPlan:
    """The directions that a configuration asks for.

    Raises:
        QflError: A basis checkpoint was not saved, or the task has no such feature.
        ValueError: There are more directions than parameters.
    """
    if config.basis == "probe":
        run.task.feature(config.feature)
    space = ParameterSpace.of(run.load_model(run.steps[0]))
    try:
        named = tuple(run.resolve_steps(config.basis_steps))
    except ValueError as error:
        raise ValueError(f"basis_steps: {error}") from error
    steps = () if config.basis in ("random", "parameters") else named
    plan = BasisPlan(config, steps, _stages(run, config, named), space)
    if not 1 <= len(plan) <= len(space):
        raise ValueError(
            f"a basis must have 1 to {len(space):,} directions, as many as the model has parameters, got {len(plan)} "
            f"of basis {config.basis!r} with {len(steps)} basis checkpoints. Change basis_steps, per_checkpoint or "
            "n_directions."
        )
    return plan


def _stages(run: Checkpoints, config: PolcaConfig, steps: tuple[int, ...]) -> tuple[Stage, ...]:
    """Which directions are found together, in the order of the work."""
    if config.basis == "random":
        return (Stage(0, config.n_directions, run.steps[0]),)
    if config.basis == "parameters":
        return (Stage(0, config.n_directions, steps[-1]),)
    if config.basis == "trajectory":
        return (Stage(0, min(config.n_directions, len(steps) - 1), steps[-1]),)
    n = config.per_checkpoint if config.basis in ("hessian", "shuffled") else 1
    order = np.array(steps)
    if config.basis == "shuffled":
        generator(config.seed, "polca/shuffle").shuffle(order)
    return tuple(Stage(number * n, n, int(step)) for number, step in enumerate(order))


def load_checked(run: Checkpoints, plan: BasisPlan, step: int, device: str | torch.device) -> HookedModel:
    """The model of a checkpoint, in the precision of the basis.

    Raises:
        QflError: Its parameters have other shapes than the first checkpoint's, or are not finite.
    """
    model = run.load_model(step, device=device)
    found = ParameterSpace.of(model)
    if found.shapes != plan.space.shapes:
        differ = sorted(
            name
            for name in found.shapes.keys() | plan.space.shapes.keys()
            if found.shapes.get(name) != plan.space.shapes.get(name)
        )
        raise QflError(
            f"all checkpoints must have the shapes of the first, got {len(differ)} parameters of another shape at step "
            f"{step} of {run.path}: {', '.join(differ[:5])}. POLCA follows one model: leave such checkpoints out."
        )
    try:
        require_finite_parameters(parameters_to_save(model))
    except ValueError as error:
        raise QflError(f"step {step} of {run.path} cannot be used: {error} {LEAVE_OUT}") from error
    return model_in_dtype(model, plan.dtype)


def theta(run: Checkpoints, plan: BasisPlan, step: int, device: str | torch.device) -> Float[Tensor, " parameter"]:
    """The parameters of a checkpoint as one vector. Raises as `load_checked` does."""
    return plan.space.flatten(parameters_to_save(load_checked(run, plan, step, device)))
