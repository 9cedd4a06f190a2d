"""What is measured at one checkpoint: the training loss's curvature, and how the steps that were taken lie in it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from qfl_interp.curvature import (
    AdamState,
    CurvatureConfig,
    Hessian,
    Preconditioned,
    SymmetricOperator,
    adam_preconditioner,
    adam_state,
    adam_update,
    along_step,
    cosine,
    stability_edge,
    top_eigenpairs,
)
from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.curvature.token_losses import TokenLoss, require_finite_parameters, scored_tokens
from qfl_interp.data.examples import fitted_split, held_out
from qfl_interp.data.task import Batch
from qfl_interp.data.training_stream import make_stream
from qfl_interp.errors import QflError
from qfl_interp.models.build import HookedModel, model_in_dtype, parameters_to_save
from qfl_interp.runs.run import Run
from qfl_interp.runs.series import Checkpoints
from qfl_interp.training.intervene import without_directions
from qfl_interp.training.schedule import scheduled_rate

# What column `moments` says.
SAVED, NOT_YET, NOT_SAVED, UNREADABLE, UNKNOWN = "saved", "no update yet", "not saved", "unreadable", "unknown"
# Of an optimiser that has no such moments, or that decays weights through them.
NOT_ADAM = "not AdamW's"
# torch.nn.utils.clip_grad_norm_ adds this to the norm it divides by.
_CLIP_EPS = 1e-6


class Shared(NamedTuple):
    """What all checkpoints of a call need.

    Attributes:
        config: Examples and accuracy.
        batch: The examples whose mean loss is differentiated: of training, where there are any.
        rank_batch: The held-out examples of the soft ranks.
        origin: The parameters of the first saved checkpoint, float64.
        space: The parameters, whose shapes every checkpoint must have.
    """

    config: CurvatureConfig
    batch: Batch
    rank_batch: Batch
    origin: Float[Tensor, " parameter"]
    space: ParameterSpace


class _At(NamedTuple):
    """A checkpoint: where it is, how the loss lies there, and the way to the next one (None after the last)."""

    run: Checkpoints
    step: int
    config: CurvatureConfig
    hessian: Hessian
    gradient: Float[Tensor, " parameter"]
    theta: Float[Tensor, " parameter"]
    travelled: Float[Tensor, " parameter"]
    taken: Float[Tensor, " parameter"] | None


def shared_of(run: Checkpoints, config: CurvatureConfig) -> Shared:
    """The examples, and where training began.

    Raises:
        QflError: A split of the task has fewer than 2 examples.
    """
    first = run.load_model(run.steps[0])
    space = ParameterSpace.of(first)
    return Shared(
        config,
        _batch(run, fitted_split(run.task), config.n_examples, config.seed, "curvature"),
        _batch(run, "test", config.n_rank_examples, config.seed, "soft_ranks"),
        space.flatten(parameters_to_save(first)).double(),
        space,
    )


def _batch(run: Checkpoints, split: str, n: int, seed: int, stream: str) -> Batch:
    """Encoded examples of a split."""
    examples = held_out(run.task, split, n, seed=seed, stream=stream)
    if len(examples) < 2:
        raise QflError(
            f"curvature and soft ranks need at least 2 examples, got {len(examples)} in the {split} split of "
            f"{run.task!r}. Use a larger length or dataset."
        )
    return run.task.encode(examples)


def load(run: Checkpoints, shared: Shared, step: int, device: str | torch.device) -> HookedModel:
    """The model of a checkpoint in the configured precision.

    Raises:
        ValueError: A parameter is not finite, which fused attention can hide from the loss.
    """
    model = run.load_model(step, device=device)
    require_finite_parameters(parameters_to_save(model))
    return model_in_dtype(model, torch.float64 if shared.config.double else torch.float32)


def trained_loss(run: Checkpoints, model: HookedModel, batch: Batch) -> TokenLoss:
    """The loss as it is trained, with all that the task scores, in the model's precision; a suite's is in nats."""
    dtype = next(model.parameters()).dtype
    name = run.config.train.loss_name if isinstance(run, Run) else None
    return TokenLoss(model, scored_tokens(batch, prompt_end=True), dtype=dtype, loss=name)


def measure(run: Checkpoints, shared: Shared, model: HookedModel, step: int, to: int | None) -> dict[str, Any]:
    """The row of a checkpoint; docs/curvature.md says what each column is.

    Args:
        run: Whose checkpoint.
        shared: The examples.
        model: Of `load`.
        step: Which one.
        to: The checkpoint after it; None after the last.

    Raises:
        ValueError: Something is not finite, or the parameters are not those of the first checkpoint.
    """
    hessian = Hessian(trained_loss(run, model, shared.batch))
    parameters = hessian.loss.parameters()
    losses = hessian.loss.values(parameters)
    theta = shared.space.flatten(parameters).double().cpu()
    taken = None if to is None else shared.space.flatten(parameters_to_save(run.load_model(to))).double() - theta
    if taken is not None and not bool(torch.isfinite(taken).all()):
        # The last checkpoint before a run diverged is itself as good as any.
        taken = None
    at = _At(run, step, shared.config, hessian, hessian.gradient(), theta, theta - shared.origin, taken)
    row = {
        "step_to": math.nan if to is None else float(to),
        "n_examples": len(shared.batch.tokens),
        "n_tokens": len(losses),
        "loss": float(losses.double().mean()),
        "gradient_norm": float(at.gradient.double().norm()),
        "weight_norm": float(theta.norm()),
        **_top(hessian, "sharpness", shared.config),
        **_along(at, taken, "step"),
    }
    return row | _optimiser(at, row["sharpness"])


def _top(operator: SymmetricOperator, name: str, config: CurvatureConfig) -> dict[str, Any]:
    """The largest eigenvalue, and how well it was found."""
    found = top_eigenpairs(operator, tol=config.tol, max_products=config.max_products, seed=config.seed)
    return {
        name: float(found.values[0]),
        f"{name}_residual": float(found.residuals[0]),
        f"{name}_converged": bool(found.converged[0]),
        f"{name}_products": found.n_products,
    }


def _along(at: _At, step: Tensor | None, name: str) -> dict[str, float]:
    """The loss along a step, and the step's angles with the gradient and with the way since the first checkpoint."""
    columns = [f"{name}_{field}" for field in ("norm", "curvature", "c1", "c2", "sharpness")]
    columns += [f"cos_gradient_{name}", f"cos_{name}_cumulative"]
    if step is None:
        return dict.fromkeys(columns, math.nan)
    angles = (cosine(-at.gradient, step), cosine(step, at.travelled))
    return dict(zip(columns, (*along_step(at.hessian, at.gradient, step), *angles), strict=True))


def _optimiser(at: _At, sharpness: float) -> dict[str, Any]:
    """Learning rate, edges, preconditioned sharpness, and the single next update; NaN where a run lacks what it takes.

    The preconditioner is that of the moments as they were saved, which the checkpoint's own update has used.
    """
    lr = edge = adam_edge = math.nan
    state, moments = None, UNKNOWN
    if isinstance(at.run, Run):
        lr = _learning_rate(at.run, at.step)
        if at.run.config.recorded is None:
            edge = stability_edge(lr)
        if is_adamw(at.run):
            adam_edge = stability_edge(lr, momentum=at.run.config.train.betas[0])
        state, moments = _moments(at.run, at.step, at.hessian.loss.space)
    inverse, row = None, {"moments": moments, "lr": lr, "edge": edge, "sharpness_over_edge": sharpness / edge}
    name = "preconditioned_sharpness"
    found: dict[str, Any] = dict.fromkeys((name, f"{name}_residual"), math.nan)
    found |= {f"{name}_converged": None, f"{name}_products": 0}
    if isinstance(at.run, Run) and state is not None and state.n_updates:
        train = at.run.config.train
        inverse = adam_preconditioner(state, beta2=train.betas[1], eps=train.adam_eps)
        found = _top(Preconditioned(at.hessian, inverse), name, at.config)
    row |= {**found, "adam_edge": adam_edge}
    row["preconditioned_over_edge"] = found[name] / adam_edge
    update = _next_update(at, state)
    row |= _along(at, update, "update")
    for of, step in (("step", at.taken), ("update", update)):
        if inverse is None or step is None:
            row[f"cos_preconditioned_{of}"] = math.nan
        else:
            row[f"cos_preconditioned_{of}"] = cosine(-inverse * _flat(at.gradient), step)
    return row


def is_adamw(run: Run) -> bool:
    """Whether a run's updates are AdamW's: Adam's are where no weight decays."""
    train = run.config.train
    if run.config.recorded is not None:  # nobody said what its optimiser was
        return False
    return train.optimizer == "adamw" or (train.optimizer == "adam" and not train.weight_decay)


def _moments(run: Run, step: int, space: ParameterSpace) -> tuple[AdamState | None, str]:
    """Adam's moments at a checkpoint, and what column `moments` says of them."""
    if run.config.recorded is not None:
        return None, UNKNOWN
    if not is_adamw(run):
        return None, NOT_ADAM
    try:
        tensors = run.load_checkpoint(step, with_optimizer=True).optimizer
        if tensors is None:
            return None, NOT_SAVED
        state = adam_state(space, without_directions(tensors))
    except QflError:
        # The parameters have been read: everything that does not need the moments can be measured.
        return None, UNREADABLE
    return state, SAVED if state.n_updates else NOT_YET


def _flat(vector: Float[Tensor, " parameter"]) -> Float[Tensor, " parameter"]:
    """The vector in float64 on the CPU."""
    return vector.double().cpu()


def _learning_rate(run: Run, step: int) -> float:
    """The learning rate of the update after a step; at the last step that of the update before it.

    By the schedule; "cdat" sets another, which the metrics have, as they have those of a recorded run, or NaN.
    """
    if run.config.train.schedule == "cdat" or run.config.recorded is not None:
        rates = run.metrics.reindex(columns=["step", "lr"]).set_index("step")["lr"]
        return float(rates.reindex([min(step + 1, run.config.last_step)]).iloc[0])
    return scheduled_rate(run.config, min(step, run.config.last_step - 1))


def _next_update(at: _At, state: AdamState | None) -> Float[Tensor, " parameter"] | None:
    """The single update after a checkpoint, made again from the moments and the batch of training's own stream.

    None where the moments are not known, and after the last update.
    """
    if not isinstance(at.run, Run) or state is None or at.step >= at.run.config.last_step:
        return None
    train = at.run.config.train
    batch = make_stream(at.run.task, train).batch(at.step)
    gradient = _flat(Hessian(trained_loss(at.run, at.hessian.loss.model, batch)).gradient())
    gradient *= min(1.0, train.max_norm / (float(gradient.norm()) + _CLIP_EPS))
    return adam_update(
        at.theta, gradient, state, lr=_learning_rate(at.run, at.step), betas=train.betas, eps=train.adam_eps,
        weight_decay=train.weight_decay or 0.0,
    )  # fmt: skip
