"""How much of every token's loss change lies along every direction, at five accuracies (Eq. 2-8).

Between two checkpoints the parameters move by `d`. Along an orthonormal direction b they move by `step = <b, d>`, and a
token's loss changes by about

- "first": `<b, g> step`, with the token's gradient g at the start;
- "second": the same plus `b' H b step^2 / 2`, with the token's Hessian H at the start;
- "paper": the same with `b' H b` replaced by the whole set's, scaled by how the token's slope along b changes over the
  interval relative to the set's (Eq. 3-6), which spares every token's second derivative;
- "path": the mean of `<b, g>` along the straight segment to the next checkpoint, by Simpson's rule, times `step`. Over
  a complete basis it adds up to the token's loss change exactly;
- "trapezoid": the same from the two ends alone, `(<b, g> + <b, g'>) / 2 step` with the gradient g' at the next
  checkpoint: exact where the loss is quadratic, and no more work than "first".

Cross terms of two directions belong to no single direction: "second" and "paper" leave them out, "path" and "trapezoid"
share them.
Gradients and curvatures come from `qfl_interp.curvature.token_gradients`.

References:
    Hidden Breakthroughs in Language Model Training (arXiv 2506.15872), section 3 and Appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qfl_interp.curvature.token_losses import TokenLoss
from qfl_interp.polca.config import Accuracy
from qfl_interp.shapes import compact_repr

PerToken = Float[Tensor, "token direction"]
PerDirection = Float[Tensor, " direction"]
# See `paper_curvature`.
_FLOOR = 1e-3


class Segment(NamedTuple):
    """What is known of the segment between two checkpoints.

    Attributes:
        step: How far the parameters move along each direction.
        nodes: Slopes `<b, g>` of every token, at equally spaced points from one end to the other, both included.
        curvature: `b' H b` of every token at the start; needed by "second".
        dataset_curvature: `b' H b` of the tokens' mean loss at the start; needed by "paper".
    """

    step: PerDirection
    nodes: Sequence[PerToken]
    curvature: PerToken | None = None
    dataset_curvature: PerDirection | None = None

    __repr__ = compact_repr


class Decomposition(NamedTuple):
    """One interval's loss change by token and direction.

    Attributes:
        contributions: In nats; negative where the loss falls.
        n_guarded: Directions in which "paper" could not form its ratio; 0 at other accuracies.
    """

    contributions: PerToken
    n_guarded: int

    __repr__ = compact_repr


class PaperCurvature(NamedTuple):
    """The paper's estimate of every token's curvature.

    `guarded` is where the ratio was replaced by 1, because its denominator nearly vanishes.
    """

    curvature: PerToken
    guarded: Bool[Tensor, " direction"]

    __repr__ = compact_repr


def decompose(accuracy: Accuracy, segment: Segment) -> Decomposition:
    """The contribution of every direction to every token's loss change over one interval.

    Args:
        accuracy: See the module.
        segment: With what the accuracy needs.

    Raises:
        ValueError: An unknown accuracy, or something that it needs is missing.
    """
    if accuracy not in get_args(Accuracy):
        raise ValueError(f"accuracy must be one of {get_args(Accuracy)}, got {accuracy!r}.")
    start, step = segment.nodes[0], segment.step
    if accuracy == "path":
        return Decomposition(path_integral(segment.nodes, step), 0)
    if accuracy == "trapezoid":
        return Decomposition(0.5 * (start + segment.nodes[-1]) * step, 0)
    if accuracy == "first":
        return Decomposition(first_order(start, step), 0)
    curvature = segment.curvature if accuracy == "second" else segment.dataset_curvature
    if curvature is None:
        raise ValueError(
            f"accuracy {accuracy!r} needs {'curvature' if accuracy == 'second' else 'dataset_curvature'} at the start "
            "of the interval, got None. Compute it, or take 'trapezoid' or 'path', which need gradients alone."
        )
    if accuracy == "second":
        return Decomposition(second_order(start, curvature, step), 0)
    estimate = paper_curvature(start, segment.nodes[-1], curvature)
    return Decomposition(second_order(start, estimate.curvature, step), int(estimate.guarded.sum()))


def first_order(gradients: PerToken, step: PerDirection) -> PerToken:
    """`<b, g> step`: the loss change if every token's loss were linear (Eq. 2)."""
    return gradients * step


def second_order(gradients: PerToken, curvature: PerToken, step: PerDirection) -> PerToken:
    """`<b, g> step + curvature step^2 / 2`: the change along b if the loss were quadratic (Eq. 3)."""
    return (gradients + 0.5 * curvature * step) * step


def paper_curvature(gradients: PerToken, next_gradients: PerToken, dataset_curvature: PerDirection) -> PaperCurvature:
    """`dataset_curvature` times each token's change of slope over the mean one: Eq. 4, as its Appendix C derives it.

    The mean over the tokens of the estimate is the dataset's curvature again. Were b an eigenvector of every token's
    Hessian, and that constant, the estimate would be exact. Where the mean change of slope is at most a thousandth of
    the root mean square over tokens, the ratio is ill-conditioned and 1 takes its place: every token gets the dataset's
    curvature.

    The slopes are those at the start and the end of the interval; `dataset_curvature` is `b' H b` of the mean loss of
    the same tokens at the start.
    """
    change = next_gradients - gradients
    mean = change.mean(dim=0)
    guarded = mean.abs() <= _FLOOR * change.square().mean(dim=0).sqrt()
    ratio = torch.where(guarded, 1.0, change / torch.where(guarded, 1.0, mean))
    return PaperCurvature(dataset_curvature * ratio, guarded)


def simpson_weights(n_nodes: int) -> list[float]:
    """The weights of composite Simpson's rule on [0, 1].

    Raises:
        ValueError: The number of nodes is not odd and at least 3.

    Example:
        >>> simpson_weights(3) == [1 / 6, 4 / 6, 1 / 6]
        True
    """
    if n_nodes < 3 or n_nodes % 2 == 0:
        raise ValueError(
            f"Simpson's rule needs an odd number of nodes, at least 3, got {n_nodes}. Give both ends and the points "
            "in between: 3 nodes are one panel, 5 are two."
        )
    inner = [4.0 if index % 2 else 2.0 for index in range(1, n_nodes - 1)]
    return [weight / (3 * (n_nodes - 1)) for weight in (1.0, *inner, 1.0)]


def path_integral(nodes: Sequence[PerToken], step: PerDirection) -> PerToken:
    """The mean slope along the segment times the step: exact but for the quadrature, of fourth order in its spacing.

    `nodes` are slopes at equally spaced points, both ends included.

    Raises:
        ValueError: The number of nodes is not odd and at least 3.
    """
    mean = torch.zeros_like(nodes[0])
    for weight, gradients in zip(simpson_weights(len(nodes)), nodes, strict=True):
        mean += weight * gradients
    return mean * step


def captured_fraction(contributions: PerToken, loss_change: Float[Tensor, " token"]) -> float:
    """The share of the mean loss change that the directions account for together; NaN where the loss did not change.

    1 for a complete basis with the path integral. Below 0 where the directions gain and the rest loses.
    """
    whole = float(loss_change.double().mean())
    return float(contributions.double().sum(dim=1).mean()) / whole if whole else math.nan


def directional_change(
    loss: TokenLoss,
    parameters: Mapping[str, Tensor],
    directions: Float[Tensor, "direction parameter"],
    steps: PerDirection,
) -> PerToken:
    """The true `L(theta + step b) - L(theta)` of every token and direction, by two forward passes each: for checks."""
    origin, before = loss.space.flatten(parameters), loss.values(parameters)
    moved = (origin + step * direction for step, direction in zip(steps, directions, strict=True))
    return torch.stack([loss.values(loss.space.unflatten(theta)) - before for theta in moved], dim=1)
