"""Does the model use a feature? Take its probe's direction out of the residual stream and score what is left.

The controls do the same along random directions, so that an effect cannot be the mere loss of one dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qfl_interp.fast_forward import fast_logits
from qfl_interp.hooks import Intervention, Site, interventions_on
from qfl_interp.metrics import ExampleScores, evaluate
from qfl_interp.model import HookedTransformer, model_device
from qfl_interp.projection import project_out
from qfl_interp.task import Batch


class Planes(NamedTuple):
    """What is projected out: for each label, affine planes `w . x + b = 0` at one layer and one position an example.

    Attributes:
        directions: Probe weights `w`, one label's rows at a time.
        offsets: Probe intercepts `b` on the same scale.
        layers: The block whose output is changed, for each label.
        positions: Token index of each label in each example; negative where there is none.
        kept: Which of a label's rows count: an output whose probe could not be fitted has no direction.
    """

    directions: Float[Tensor, "label k d_model"]
    offsets: Float[Tensor, "label k"]
    layers: Int[np.ndarray, " label"]
    positions: Int[Tensor, "example label"]
    kept: Bool[Tensor, "label k"]


class AblationScores(NamedTuple):
    """Scores of every example: untouched, with the feature's planes projected out, and for each random control."""

    intact: ExampleScores
    ablated: ExampleScores
    random: list[ExampleScores]


def _places(planes: Planes) -> dict[tuple[int, int], list[list[int]]]:
    """The labels projected out together: those read at one layer and, in every example, at one position.

    Returns:
        Groups of labels by layer and number of directions; groups of one entry are projected out in one go.
    """
    together: dict[tuple[int, bytes], list[int]] = {}
    for label, layer in enumerate(planes.layers.tolist()):
        together.setdefault((layer, planes.positions[:, label].numpy().tobytes()), []).append(label)
    places: dict[tuple[int, int], list[list[int]]] = {}
    for (layer, _), labels in together.items():
        places.setdefault((layer, int(planes.kept[labels].sum())), []).append(labels)
    return dict(sorted(places.items()))


def plane_interventions(planes: Planes, rows: slice, *, epsilon: float = 1.0) -> list[Intervention]:
    """Interventions for the examples `rows` of a batch, aligned with each example's positions.

    Labels that share a layer and a position are projected out jointly, all others on their own.
    """
    return [
        project_out(
            Site(layer),
            torch.stack([planes.directions[labels][planes.kept[labels]] for labels in groups]),
            offsets=torch.stack([planes.offsets[labels][planes.kept[labels]] for labels in groups]),
            positions=planes.positions[rows][:, [labels[0] for labels in groups]],
            epsilon=epsilon,
        )
        for (layer, _), groups in _places(planes).items()
    ]


def random_planes(planes: Planes, means: Float[Tensor, "label d_model"], rng: np.random.Generator) -> Planes:
    """Planes of the same number, layers and positions in random directions, through the mean activation.

    Rows are independent Gaussian directions of unit norm, and `b = -w . mean`, so that the control takes out the
    activation's variation along `w` without shifting its mean (the paper keeps the trained offset, which also shifts).

    Args:
        planes: The planes to imitate.
        means: Mean activation at each label's layer and position.
        rng: Draws the directions.
    """
    drawn = torch.from_numpy(rng.standard_normal(tuple(planes.directions.shape))).to(means)
    unit = drawn / drawn.norm(dim=-1, keepdim=True)
    return planes._replace(directions=unit, offsets=-torch.einsum("l k d, l d -> l k", unit, means))


def score_ablation(
    model: HookedTransformer,
    batch: Batch,
    planes: Planes,
    means: Float[Tensor, "label d_model"],
    *,
    n_trials: int,
    rng: np.random.Generator,
    epsilon: float = 1.0,
    chunk: int = 256,
    on_trial: Callable[[], object] = lambda: None,
) -> AblationScores:
    """Loss and greedy exact match without ablation, with it, and for `n_trials` random controls.

    Args:
        model: The trained model.
        batch: What is scored.
        planes: The feature's planes.
        means: Mean activation at each label's layer and position, for the controls.
        n_trials: Random controls.
        rng: Draws them.
        epsilon: Strength of the projection.
        chunk: Examples a forward pass.
        on_trial: Called after each control, for a progress bar.

    References:
        arXiv 2505.03997, feature ablation (32 trials).
    """
    device = model_device(model)

    def intact(tokens: Tensor, positions: slice, _rows: slice) -> Tensor:
        return fast_logits(model, tokens.to(device), positions).cpu()

    def with_planes(used: Planes) -> ExampleScores:
        def forward(tokens: Tensor, positions: slice, rows: slice) -> Tensor:
            with interventions_on(model, plane_interventions(used, rows, epsilon=epsilon)):
                return model(tokens.to(device))[:, positions].cpu()

        return evaluate(forward, batch, chunk=chunk)

    def controls() -> Iterator[ExampleScores]:
        for _ in range(n_trials):
            yield with_planes(random_planes(planes, means, rng))
            on_trial()

    return AblationScores(evaluate(intact, batch, chunk=chunk), with_planes(planes), list(controls()))
