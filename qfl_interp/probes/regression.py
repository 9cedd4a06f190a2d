"""Probes of numbers: least squares at all layers, labels and outputs of one feature at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from qfl_interp.probes.result import Activations, ExampleMask, LinearMaps, ProbeMetric, check_axes
from qfl_interp.probes.sites import Site, centred, for_each

Numbers = Num[Tensor, "output label example"]


class RegressionScores(NamedTuple):
    """Scores of every probe, NaN for a probe that was not fitted or where the mask keeps no example.

    Attributes:
        mse: Mean squared error over the examples, in squared units of the label.
        r2: `1 - mse / variance` with the variance of the scored labels; NaN where they do not vary.
    """

    mse: ProbeMetric
    r2: ProbeMetric


def _mean_over(values: Tensor, example_mask: ExampleMask | None) -> Tensor:
    """Mean over the last axis, of the examples the mask keeps."""
    if example_mask is None:
        return values.mean(-1)
    kept = example_mask[:, None, :]
    return torch.where(kept, values, 0).sum(-1) / kept.sum(-1)


def _variance(y: Numbers, example_mask: ExampleMask | None) -> Float[Tensor, "label output"]:
    """Variance of each label and output over the examples the mask keeps."""
    numbers = y.double().transpose(0, 1)
    mean = _mean_over(numbers, example_mask)
    return _mean_over((numbers - mean[..., None]).square(), example_mask)


def _scores(squares: Tensor, y: Numbers, example_mask: ExampleMask | None) -> RegressionScores:
    """Scores from squared errors `[layer, label, output, example]`."""
    mse, variance = _mean_over(squares, example_mask), _variance(y, example_mask)
    return RegressionScores(mse, 1 - mse / torch.where(variance > 0, variance, torch.nan))


@dataclass(frozen=True, repr=False)
class RegressionProbes(LinearMaps):
    """Least-squares probes of one scalar feature: one a layer, label and output; the prediction is `values`.

    Attributes:
        train: Scores on the training examples.
    """

    train: RegressionScores

    def example_loss(
        self, x: Activations, y: Numbers, example_mask: ExampleMask | None = None
    ) -> Float[Tensor, "layer label output example"]:
        """Squared error of every example, NaN where not fitted or masked. Raises as `score` does."""
        check_axes(x, y, example_mask)
        return (self._scored_values(x, y, example_mask) - y.to(self.weight.dtype).transpose(0, 1)).square_()

    def score(self, x: Activations, y: Numbers, example_mask: ExampleMask | None = None) -> RegressionScores:
        """Mean squared error and R2 over the examples the mask keeps.

        Raises:
            ValueError: The shapes do not fit the probes, or an activation is not finite.
        """
        return _scores(self.example_loss(x, y, example_mask), y, example_mask)


def fit_regression(x: Activations, y: Numbers, *, example_mask: ExampleMask | None = None) -> RegressionProbes:
    """Ordinary least squares with intercept, one fit a layer, label and output.

    Each minimises `sum_i (w . x_i + b - y_i)^2`; of several minimisers the one with the smallest `|w|`, as
    numpy's `lstsq`. All arithmetic is in float64, and the outputs of a site share one factorisation of its centred
    activations.

    Args:
        x: Activations, one row an example; any strides, CPU or CUDA.
        y: Labels, any numbers. Shuffled copies of them can be further outputs, at little cost.
        example_mask: True where an example has this label; all have it by default.

    Raises:
        ValueError: Shapes that do not fit, or a label or an activation that is not finite (with its place).

    References:
        Quiet Feature Learning (arXiv 2505.03997), probes of numeric features.
    """
    check_axes(x, y, example_mask)
    n_layers, n_labels, _, d_model = x.shape
    numbers = y.double().transpose(0, 1)
    if example_mask is not None:
        numbers = torch.where(example_mask[:, None, :], numbers, 0)
    if not numbers.isfinite().all():
        label, output, example = (int(i) for i in (~numbers.isfinite()).nonzero()[0])
        raise ValueError(
            f"labels must be finite, got {float(numbers[label, output, example])} at output {output}, label {label}, "
            f"example {example}. Mask examples that have no label."
        )
    fitted = _variance(y, example_mask) > 0
    weight = torch.zeros(n_layers, n_labels, y.shape[0], d_model, dtype=torch.float64, device=x.device)
    intercept = torch.zeros_like(weight[..., 0])
    mean = _mean_over(numbers, example_mask)
    target = numbers - mean[..., None]
    if example_mask is not None:
        target = torch.where(example_mask[:, None, :], target, 0)

    def fit(sites: list[Site]) -> None:
        for layer, label in sites:
            z, centre = centred(x, [(layer, label)], example_mask)
            found = _least_squares(z[0, :, :-1], target[label]) * fitted[label][:, None]
            weight[layer, label] = found
            intercept[layer, label] = (mean[label] - found @ centre[0]) * fitted[label]

    n_workers = torch.get_num_threads() if x.device.type == "cpu" else 1
    for_each(fit, [[(layer, label)] for layer in range(n_layers) for label in range(n_labels)], n_workers)
    everywhere = fitted.expand(n_layers, -1, -1).clone()
    blank = torch.full_like(intercept, torch.nan)
    unscored = RegressionProbes(weight, intercept, everywhere, RegressionScores(blank, blank))
    train = unscored.score(x, y, example_mask)
    return RegressionProbes(weight, intercept, everywhere, train)


def _least_squares(
    z: Float[Tensor, "example d_model"], target: Float[Tensor, "output example"]
) -> Float[Tensor, "output d_model"]:
    """The smallest minimisers of `|z w - target|^2`, both centred.

    With z = Q R and R = U S V', they are `V S^-1 U' Q' target`. Singular values at rounding level count as 0, as in
    numpy's `lstsq`.
    """
    q, r = torch.linalg.qr(z)
    u, singular, vh = torch.linalg.svd(r, full_matrices=False)
    used = singular > torch.finfo(z.dtype).eps * max(z.shape) * singular[0]
    inverse = torch.where(used, 1 / torch.where(used, singular, 1), 0)
    return (target @ q @ u * inverse) @ vh
