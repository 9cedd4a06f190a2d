"""Logistic probes at all layers, labels and outputs of one feature, as one batched convex problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8, Integer
from torch import Tensor

from qfl_interp.probes.layer_labels import LayerLabel, centred, for_each_site
from qfl_interp.probes.newton import Solution, solve
from qfl_interp.probes.result import (
    Activations,
    ExampleMask,
    ProbeMetric,
    ProbePlanes,
    Probes,
    ProbeScores,
    check_axes,
    check_settings,
    independent,
    mean_over,
)

Labels = Bool[Tensor, "output label example"] | Integer[Tensor, "output label example"]
# With no warm start every fourth example is solved first, roughly: most of the way at a quarter of the cost.
_PART = 4
_PART_GAP = 1e-4


def check_examples(x: Tensor, y: Tensor, example_mask: Tensor | None) -> None:
    """Raise unless the axes fit together and the labels are 0 or 1.

    Raises:
        ValueError: An axis is empty or differs between the arguments, or a label is neither 0 nor 1.
    """
    check_axes(x, y, example_mask)
    wrong = (y != 0) & (y != 1)
    if example_mask is not None:
        wrong &= example_mask
    if wrong.any():
        output, label, example = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"labels must be 0 or 1, got {int(y[output, label, example])} at output {output}, label {label}, "
            f"example {example}. Mask examples that have no label; other kinds of feature need another probe."
        )


def logistic_scores(
    wrong_logit: Float[Tensor, "layer label output example"],
    example_mask: Bool[Tensor, "*layer label example"] | None,
) -> ProbeScores:
    """Scores from the logits of the wrong class; a tie is half a hit, what a guess would score."""
    loss, hit = torch.nn.functional.softplus(wrong_logit), (1 - wrong_logit.sign()) / 2
    hit = hit.masked_fill(wrong_logit.isnan(), torch.nan)
    return ProbeScores(mean_over(loss, example_mask), mean_over(hit, example_mask))


@dataclass(frozen=True, repr=False)
class LogisticProbes(Probes):
    """Binary logistic probes of one feature: class 1 has probability `sigmoid(x @ weight + intercept)`.

    The classes are always (0, 1), whichever of them occur in the examples that are scored. `converged` certifies
    that the training objective lies within a fraction 1e-11 of its minimum.
    """

    classes: ClassVar[tuple[int, int]] = (0, 1)

    def logits(self, x: Activations) -> Float[Tensor, "layer label output example"]:
        """Log odds of class 1, NaN where not fitted: `values`."""
        return self.values(x)

    def _wrong_logits(
        self, x: Activations, y: Labels, example_mask: ExampleMask | None
    ) -> Float[Tensor, "layer label output example"]:
        """Logits of the wrong class, NaN where not fitted or masked and nowhere else."""
        check_examples(x, y, example_mask)
        sign = (1 - 2 * y.to(self.weight.dtype)).transpose(0, 1)
        return self._scored_values(x, y, example_mask).mul_(sign)

    def example_loss(
        self, x: Activations, y: Labels, example_mask: ExampleMask | None = None
    ) -> Float[Tensor, "layer label output example"]:
        """Log loss of every example in nats, NaN where not fitted or masked. Raises as `score` does."""
        return torch.nn.functional.softplus(self._wrong_logits(x, y, example_mask))

    def score(self, x: Activations, y: Labels, example_mask: ExampleMask | None = None) -> ProbeScores:
        """Mean log loss and accuracy over the examples the mask keeps; any mix of classes may occur in them.

        Raises:
            ValueError: The shapes do not fit the probes, a label is neither 0 nor 1, or an activation is not
                finite.
        """
        return logistic_scores(self._wrong_logits(x, y, example_mask), example_mask)

    def log_loss(self, x: Activations, y: Labels, example_mask: ExampleMask | None = None) -> ProbeMetric:
        """Mean log loss in nats; see `score`, which gives the accuracy at the same price."""
        return self.score(x, y, example_mask).loss

    def accuracy(self, x: Activations, y: Labels, example_mask: ExampleMask | None = None) -> ProbeMetric:
        """Fraction of correct predictions, a tie counting one half; see `score`."""
        return self.score(x, y, example_mask).score

    def planes(self, layer: int, label: int, outputs: slice) -> ProbePlanes:
        """The decision planes `w . x + b = 0` of the fitted outputs."""
        at = self.fitted[layer, label, outputs]
        return independent(self.weight[layer, label, outputs][at], self.intercept[layer, label, outputs][at])


def _site_bytes(n_examples: int, d_model: int, n_outputs: int) -> int:
    """Working memory of one site: its data, and about 10 vectors and 4 matrices an output."""
    n_columns = d_model + 1
    return 8 * (n_examples * (n_columns + 10 * n_outputs) + 4 * n_outputs * n_columns**2)


def _signs(
    y: Labels, example_mask: ExampleMask | None
) -> tuple[Int8[Tensor, "label output example"], Bool[Tensor, "label output"]]:
    """+1 for class 1, -1 for class 0, 0 where masked; and where both classes occur."""
    sign = (2 * y.to(torch.int8) - 1).transpose(0, 1)
    if example_mask is not None:
        sign = sign * example_mask[:, None, :]
    return sign, (sign > 0).any(-1) & (sign < 0).any(-1)


def _dot_means(
    weight: Float[Tensor, "site output d_model"], means: Float[Tensor, "site d_model"]
) -> Float[Tensor, "site output"]:
    """The logit that centring takes away, and the intercept has to give back."""
    return torch.einsum("sod,sd->so", weight, means)


def _fit_sites(
    x: Activations,
    sites: list[LayerLabel],
    sign: Int8[Tensor, "site output example"],
    fitted: Bool[Tensor, "site output"],
    init: Float[Tensor, "site output column"] | None,
    c: float,
    max_iter: int,
    example_mask: ExampleMask | None,
) -> Solution:
    """The probes of some sites; without `init` they start from the solution of a part of the examples."""
    z, means = centred(x, sites, example_mask)
    if init is not None:
        start = init.clone()
        start[..., -1] += _dot_means(init[..., :-1], means)
    else:
        start = z.new_zeros(*fitted.shape, z.shape[2])
        some = sign[..., ::_PART]
        if some.shape[-1] >= 4 * z.shape[2]:
            both = (some > 0).any(-1) & (some < 0).any(-1)
            part = z[:, ::_PART]
            goal = {"c": _PART * c, "max_iter": max_iter, "gap": _PART_GAP}
            start = solve(part, some.to(z.dtype), start, both, **goal).coef
    found = solve(z, sign.to(z.dtype), start, fitted, c=c, max_iter=max_iter)
    coef = found.coef * fitted[..., None]
    coef[..., -1] -= _dot_means(coef[..., :-1], means)
    return found._replace(coef=coef)


def fit_logistic(
    x: Activations,
    y: Labels,
    *,
    c: float,
    max_iter: int,
    init: LogisticProbes | None = None,
    example_mask: ExampleMask | None = None,
) -> LogisticProbes:
    """Logistic regressions with L2 penalty, one a layer, label and output, each at its own optimum.

    Each minimises `c * sum_i log_loss_i + ||w||^2 / 2` in nats, the intercept unpenalised: scikit-learn's
    `LogisticRegression(C=c)`. All arithmetic is in float64, whatever the dtype of `x`, so that badly scaled
    or correlated coordinates cost no accuracy. The same input gives the same bits on the same machine
    with the same number of threads (`torch.get_num_threads`, the cores that are used).

    Memory beyond the arguments and the result: about 1.3 `CHUNK_BYTES` (64 MiB) in all, or, where a layer and
    label needs more than its thread's share, `8 n_example (2 d_model + 10 n_output) + 32 n_output d_model^2`
    bytes a thread.

    Args:
        x: Activations, one row an example; any strides (nothing is made contiguous), CPU or CUDA.
        y: Labels 0 or 1. Outputs share the activations: those of a multilabel feature, and shuffled copies of
            the labels, which cost little beside the real ones.
        c: Inverse L2 strength, positive. The paper uses 100.
        max_iter: Newton steps at most, at least 1; 2 to 12 are the rule.
        init: Probes to start from where they beat the base rate: those of the previous checkpoint. The
            optimum is the same, only the way is shorter.
        example_mask: True where an example has this label; all have it by default.

    Raises:
        ValueError: Shapes that do not fit, a label other than 0 or 1, an activation that is not finite (with
            its place), or `c` or `max_iter` out of range.

    References:
        Quiet Feature Learning (arXiv 2505.03997), linear probes: C = 100.
    """
    check_examples(x, y, example_mask)
    n_layers, n_labels, n_examples, d_model = x.shape
    shape = (n_layers, n_labels, y.shape[0])
    check_settings(c, max_iter, init, (*shape, d_model))
    sign, fitted = _signs(y, example_mask)
    coef = torch.zeros(*shape, d_model + 1, dtype=torch.float64, device=x.device)
    loss, accuracy = torch.zeros_like(coef[..., 0]), torch.zeros_like(coef[..., 0])
    converged = torch.zeros(shape, dtype=torch.bool, device=x.device)
    n_iter = torch.zeros(shape, dtype=torch.int64, device=x.device)

    def fit(sites: list[LayerLabel]) -> None:
        at = tuple(torch.tensor(index, device=x.device) for index in zip(*sites, strict=True))
        part = None if init is None else torch.cat([init.weight[at], init.intercept[at][..., None]], -1)
        found = _fit_sites(x, sites, sign[at[1]], fitted[at[1]], part, c, max_iter, example_mask)
        coef[at], converged[at], n_iter[at] = found.coef, found.converged, found.n_iter
        mask = None if example_mask is None else example_mask[at[1]]
        loss[at], accuracy[at] = (value[0] for value in logistic_scores(found.wrong_logit[None], mask))

    for_each_site(fit, x, _site_bytes(n_examples, d_model, y.shape[0]))
    everywhere = fitted.expand(shape).clone()
    train = ProbeScores(*(value.masked_fill(~everywhere, torch.nan) for value in (loss, accuracy)))
    strength = torch.full_like(loss, c)
    return LogisticProbes(coef[..., :-1], coef[..., -1], everywhere, converged, n_iter, train, strength)
