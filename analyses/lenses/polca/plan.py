"""All that a call of POLCA does, decided before any of it: checkpoints, directions, examples, names of its parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.curvature.token_losses import ScoredTokens, require_finite_parameters, scored_tokens
from qfl_interp.data.examples import held_out
from qfl_interp.digests import digest
from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel, model_in_dtype, parameters_to_save
from qfl_interp.polca.breakthroughs import BreakRule, break_step
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.runs.series import Checkpoints, Steps
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples

# What is clustered: losses projected on the directions, or one of the paper's baselines.
CurveKind = Literal["projected", "exact_loss", "loss_change", "fisher"]
# What to do about a checkpoint that is not finite.
LEAVE_OUT = (
    "Directions found and points computed before are kept. Leave out checkpoints at which the run diverged: of steps, "
    "and of basis_steps too (--steps, --basis-steps)."
)
# With fewer there is no turn of a curve to see.
_MIN_CHECKPOINTS = 3
# Part of the run over which a turn is measured: the paper's 100 of 10,000 steps.
_SPAN_SHARE = 0.01
# Baselines that know no direction: as little as can be is computed for them.
_WITHOUT_DIRECTION = ("exact_loss", "loss_change")
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


class Settings(NamedTuple):
    """What decides clusters and verdicts beside the trajectories; see `polca`. The order is that of the digest."""

    curves: CurveKind = "projected"
    min_cluster_size: int | None = None
    min_samples: int | None = None
    rule: BreakRule = "paper"
    span: int | None = None
    tau: int | None = None
    resamples: int = 20


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


@dataclass(frozen=True, eq=False)
class Plan:
    """What a call does; every worker gets a copy.

    Attributes:
        run: Whose checkpoints.
        device: Where to compute.
        config: Decides directions, accuracy and examples.
        settings: Decides clusters, with the span of a turn in steps.
        steps: The checkpoints of the trajectories.
        basis_steps: Those of the directions; none where these need none.
        stages: The directions in the order of the work; each stage needs those before.
        space: The parameters, whose shapes every checkpoint must have.
        examples: Whose answers are followed.
    """

    run: Checkpoints
    device: str | torch.device
    config: PolcaConfig
    settings: Settings
    steps: tuple[int, ...]
    basis_steps: tuple[int, ...]
    stages: tuple[Stage, ...]
    space: ParameterSpace
    examples: Examples

    @classmethod
    def of(
        cls,
        run: Checkpoints,
        steps: Steps = "all",
        *,
        config: PolcaConfig | None = None,
        settings: Settings | None = None,
        device: str | torch.device = "cpu",
    ) -> Plan:
        """The plan of a call; arguments as of `polca`.

        Raises:
            QflError: Unknown step, fewer than 3, a basis checkpoint that was not saved, or an unknown feature.
            ValueError: A setting is out of its range, the span leaves no checkpoint far enough from both ends, or there
                are more directions than parameters.
        """
        settings = settings or Settings()
        _require_known(settings)
        config, at = _as_needed(config or PolcaConfig(), settings.curves), tuple(run.resolve_steps(steps))
        if len(at) < _MIN_CHECKPOINTS:
            raise QflError(
                f"POLCA needs at least {_MIN_CHECKPOINTS} checkpoints, got {len(at)} of {run.path}: {list(at)}. Take "
                "steps='all', or train with a larger n_checkpoints."
            )
        if settings.span is None:
            settings = settings._replace(span=max(1, round(_SPAN_SHARE * (at[-1] - at[0]))))
        # Of a loss's change the first step has no value. Raises for a span that would fail after all gradients.
        own = at[1:] if settings.curves == "loss_change" else at
        break_step(np.zeros(len(own)), own, settings.span or 0, rule=settings.rule)
        named, stages, space = _directions(run, config)
        examples = held_out(run.task, "test", config.n_examples, seed=config.seed, stream="polca")
        return cls(run, device, config, settings, at, named, stages, space, examples)

    @property
    def n_directions(self) -> int:
        """How many directions the basis has."""
        return sum(stage.n for stage in self.stages)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the directions and of everything along them."""
        return torch.float64 if self.config.double else torch.float32

    @property
    def basis_digest(self) -> str:
        """Names what decides the directions."""
        decides = _DECIDES[self.config.basis]
        named = {name: getattr(self.config, name) for name in ("basis", "double", *decides)}
        if self.config.hessian_prompt and "n_hessian" in decides:
            named["hessian_prompt"] = True
        return digest(json.dumps(named | {"stages": self.stages, "steps": self.basis_steps}, sort_keys=True))

    @property
    def points_digest(self) -> str:
        """Names what decides gradients and losses along them at a checkpoint."""
        return digest(f"{self.basis_digest} {self.config.n_examples} {self.config.seed}")

    @property
    def digest(self) -> str:
        """Names the whole call."""
        return digest(json.dumps([self.config.to_dict(), self.steps, self.settings], sort_keys=True))

    @property
    def sources(self) -> tuple[int, ...]:
        """The checkpoints that the directions come from, and the one where coordinates along them are 0."""
        return (self.run.steps[0], *self.basis_steps, *(stage.step for stage in self.stages))

    def scored(self) -> ScoredTokens:
        """The answer tokens of the examples."""
        return scored_tokens(self.run.task.encode(self.examples))

    def load(self, step: int) -> HookedModel:
        """The model of a checkpoint, in the precision of the directions.

        Raises:
            QflError: Its parameters have other shapes than the first checkpoint's, or are not finite.
        """
        model = self.run.load_model(step, device=self.device)
        found, wanted = ParameterSpace.of(model).shapes, self.space.shapes
        if found != wanted:
            differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            raise QflError(
                f"all checkpoints must have the shapes of the first, got {len(differ)} parameters of another shape at "
                f"step {step} of {self.run.path}: {', '.join(differ[:5])}. POLCA follows one model: leave such "
                "checkpoints out."
            )
        try:
            require_finite_parameters(parameters_to_save(model))
        except ValueError as error:
            raise QflError(f"step {step} of {self.run.path} cannot be used: {error} {LEAVE_OUT}") from error
        return model_in_dtype(model, self.dtype)

    def theta(self, step: int) -> Float[Tensor, " parameter"]:
        """The parameters of a checkpoint as one vector. Raises as `load` does."""
        return self.space.flatten(parameters_to_save(self.load(step)))


def direction_part(direction: int, digest: str) -> str:
    """The table part of what belongs to a direction; baselines that know none have one part."""
    return f"direction_{max(direction, 0):04d}-{digest}"


def _require_known(settings: Settings) -> None:
    """Raise `ValueError` for a setting out of its range."""
    for name, known in (("curves", get_args(CurveKind)), ("rule", get_args(BreakRule))):
        if getattr(settings, name) not in known:
            raise ValueError(f"{name} must be one of {known}, got {getattr(settings, name)!r}.")
    for name, least in (("min_cluster_size", 2), ("min_samples", 1), ("tau", 0), ("resamples", 0)):
        value = getattr(settings, name)
        if value is not None and not least <= value < 2**63:
            most = "" if value < least else " and below 2**63"
            raise ValueError(f"{name} must be at least {least}{most}, got {value}.")


def _as_needed(config: PolcaConfig, curves: CurveKind) -> PolcaConfig:
    """The configuration with no more work than the curves need."""
    if curves in _WITHOUT_DIRECTION:
        own: dict[str, Any] = {name: getattr(config, name) for name in ("n_examples", "seed", "double")}
        return PolcaConfig(basis="random", n_directions=1, accuracy="first", **own)
    # Gradients at the checkpoints are all that the Fisher information needs.
    return replace(config, accuracy="first") if curves == "fisher" else config


def _directions(run: Checkpoints, config: PolcaConfig) -> tuple[tuple[int, ...], tuple[Stage, ...], ParameterSpace]:
    """The basis checkpoints, which directions are found together, and the parameters they are directions of."""
    if config.basis == "probe":
        run.task.feature(config.feature)
    space = ParameterSpace.of(run.load_model(run.steps[0]))
    try:
        named = tuple(run.resolve_steps(config.basis_steps))
    except ValueError as error:
        raise ValueError(f"basis_steps: {error}") from error
    steps, stages = () if config.basis in ("random", "parameters") else named, _stages(run, config, named)
    n = sum(stage.n for stage in stages)
    if not 1 <= n <= len(space):
        raise ValueError(
            f"a basis must have 1 to {len(space):,} directions, as many as the model has parameters, got {n} of basis "
            f"{config.basis!r} with {len(steps)} basis checkpoints. Change basis_steps, per_checkpoint or n_directions."
        )
    return steps, stages, space


def _stages(run: Checkpoints, config: PolcaConfig, steps: Sequence[int]) -> tuple[Stage, ...]:
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
