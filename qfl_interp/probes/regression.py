"""Probes of numbers: least squares, ridge, at all layers, labels and outputs of one feature at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

from qfl_interp.probes.layer_labels import LayerLabel, centred, for_each_site
from qfl_interp.probes.result import (
    Activations,
    ExampleMask,
    ProbePlanes,
    Probes,
    ProbeScores,
    check_axes,
    independent,
    mean_over,
)

Numbers = Num[Tensor, "output label example"]


def _variance(y: Numbers, example_mask: ExampleMask | None) -> Float[Tensor, "label output"]:
    """Variance of each label and output over the examples the mask keeps."""
    numbers = y.double().transpose(0, 1)
    mean = mean_over(numbers, example_mask)
    return mean_over((numbers - mean[..., None]).square(), example_mask)


def number_scores(
    squares: Float[Tensor, "layer label output example"], y: Numbers, example_mask: ExampleMask | None
) -> ProbeScores:
    """Mean squared error and R2 from squared errors."""
    mse, variance = mean_over(squares, example_mask), _variance(y, example_mask)
    return ProbeScores(mse, 1 - mse / torch.where(variance > 0, variance, torch.nan))


@dataclass(frozen=True, repr=False)
class RegressionProbes(Probes):
    """Least-squares or ridge probes of one scalar feature; the prediction is `values`.

    `converged` is True wherever a probe was fitted: the solution is closed.

    Attributes:
        label_mean: Mean of the training labels; NaN where there are none.
    """

    label_mean: Float[Tensor, "label output"]

    def example_loss(
        self, x: Activations, y: Numbers, example_mask: ExampleMask | None = None
    ) -> Float[Tensor, "layer label output example"]:
        """Squared error of every example, NaN where not fitted or masked. Raises as `score` does."""
        check_axes(x, y, example_mask)
        return (self._scored_values(x, y, example_mask) - y.to(self.weight.dtype).transpose(0, 1)).square_()

    def score(self, x: Activations, y: Numbers, example_mask: ExampleMask | None = None) -> ProbeScores:
        """Mean squared error and R2 over the examples the mask keeps.

        Raises:
            ValueError: The shapes do not fit the probes, or an activation is not finite.
        """
        return number_scores(self.example_loss(x, y, example_mask), y, example_mask)

    def planes(self, layer: int, label: int, outputs: slice) -> ProbePlanes:
        """Where the prediction is the mean training label, which tells nothing of the example."""
        at = self.fitted[layer, label, outputs]
        offsets = self.intercept[layer, label, outputs] - self.label_mean[label, outputs]
        return independent(self.weight[layer, label, outputs][at], offsets[at])

    def tensors(self, outputs: slice) -> dict[str, Tensor]:
        """As for every kind, and the label means."""
        return super().tensors(outputs) | {"label_mean": self.label_mean[:, outputs]}


def fit_regression(
    x: Activations, y: Numbers, *, alpha: float = 0.0, example_mask: ExampleMask | None = None
) -> RegressionProbes:
    """Least squares or ridge regressions with intercept, one a layer, label and output.

    Each minimises `sum_i (w . x_i + b - y_i)^2 + alpha |w|^2`, the intercept unpenalised: scikit-learn's
    `Ridge(alpha)`. With `alpha=0`, of several minimisers the one with the smallest `|w|`, as numpy's `lstsq`. All
    arithmetic is in float64, and the outputs of a site share one factorisation of its centred activations.

    Args:
        x: Activations, one row an example; any strides, CPU or CUDA.
        y: Labels, any numbers. Shuffled copies of them can be further outputs, at little cost.
        alpha: L2 penalty, not negative. The paper uses none.
        example_mask: True where an example has this label; all have it by default.

    Raises:
        ValueError: Shapes that do not fit, a label or an activation that is not finite (with its place), or `alpha`
            out of range.

    References:
        Quiet Feature Learning (arXiv 2505.03997), probes of numeric features.
    """
    return fit_ridge_path(x, y, [alpha], example_mask=example_mask)[0]


def fit_ridge_path(
    x: Activations, y: Numbers, alphas: Sequence[float], *, example_mask: ExampleMask | None = None
) -> list[RegressionProbes]:
    """`fit_regression` for several penalties, which share the factorisations."""
    check_axes(x, y, example_mask)
    if not alphas or not all(math.isfinite(alpha) and alpha >= 0 for alpha in alphas):
        raise ValueError(f"alpha must be finite and not negative, got {list(alphas)}. 0 is least squares.")
    numbers = _finite_numbers(y, example_mask)
    fitted = _variance(y, example_mask) > 0
    n_layers, n_labels, _, d_model = x.shape
    mean = mean_over(numbers, example_mask)
    target = numbers - mean[..., None]
    if example_mask is not None:
        target = torch.where(example_mask[:, None, :], target, 0)
    weight = numbers.new_zeros(len(alphas), n_layers, n_labels, y.shape[0], d_model)
    intercept = torch.zeros_like(weight[..., 0])

    def fit(sites: list[LayerLabel]) -> None:
        for layer, label in sites:
            z, centre = centred(x, [(layer, label)], example_mask)
            found = _ridge(z[0, :, :-1], target[label], alphas) * fitted[label][:, None]
            weight[:, layer, label] = found
            intercept[:, layer, label] = (mean[label] - found @ centre[0]).masked_fill(~fitted[label], 0)

    for_each_site(fit, x, 8 * x.shape[2] * (3 * d_model + 2 * y.shape[0]))
    everywhere = fitted.expand(n_layers, -1, -1).clone()
    blank, n_iter = torch.full_like(intercept[0], torch.nan), torch.zeros_like(everywhere, dtype=torch.int64)
    probes = []
    for alpha, w, b in zip(alphas, weight, intercept, strict=True):
        strength = torch.full_like(b, 1 / alpha if alpha else torch.inf)
        unscored = RegressionProbes(w, b, everywhere, everywhere, n_iter, ProbeScores(blank, blank), strength, mean)
        probes.append(dataclasses.replace(unscored, train=unscored.score(x, y, example_mask)))
    return probes


def _finite_numbers(y: Numbers, example_mask: ExampleMask | None) -> Float[Tensor, "label output example"]:
    """The labels in float64, 0 where masked; ValueError with the place of one that is not finite."""
    numbers = y.double().transpose(0, 1)
    if example_mask is not None:
        numbers = torch.where(example_mask[:, None, :], numbers, 0)
    if not numbers.isfinite().all():
        label, output, example = (int(i) for i in (~numbers.isfinite()).nonzero()[0])
        raise ValueError(
            f"labels must be finite, got {float(numbers[label, output, example])} at output {output}, label {label}, "
            f"example {example}. Mask examples that have no label."
        )
    return numbers


def _ridge(
    z: Float[Tensor, "example d_model"], target: Float[Tensor, "output example"], alphas: Sequence[float]
) -> Float[Tensor, "alpha output d_model"]:
    """The smallest minimisers of `|z w - target|^2 + alpha |w|^2`, both centred.

    With z = Q R and R = U S V', they are `V S (S^2 + alpha)^-1 U' Q' target`. Singular values at rounding level count
    as 0, as in numpy's `lstsq`.
    """
    q, r = torch.linalg.qr(z)
    u, singular, vh = torch.linalg.svd(r, full_matrices=False)
    used = singular > torch.finfo(z.dtype).eps * max(z.shape) * singular[0]
    along = target @ q @ u
    shrunk = [torch.where(used, singular / torch.where(used, singular.square() + alpha, 1), 0) for alpha in alphas]
    return torch.stack([(along * s) @ vh for s in shrunk])
