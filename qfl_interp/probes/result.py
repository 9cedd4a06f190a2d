"""Fitted probes: their weights, what the fit says of itself, and their scores on other examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

Labels = Bool[Tensor, "output label example"] | Integer[Tensor, "output label example"]
Activations = Float[Tensor, "layer label example d_model"]
ExampleMask = Bool[Tensor, "label example"]
ProbeMetric = Float[Tensor, "layer label output"]


class ProbeScores(NamedTuple):
    """Scores of every probe, NaN for a probe that was not fitted or where the mask keeps no example.

    Attributes:
        log_loss: Mean over the examples, in nats.
        accuracy: Fraction of the examples, in [0, 1], whose class has the larger probability.
    """

    log_loss: ProbeMetric
    accuracy: ProbeMetric


def check_axes(x: Tensor, y: Tensor, example_mask: Tensor | None) -> None:
    """Raise unless the axes fit together.

    Raises:
        ValueError: An axis is empty or differs between the arguments.
    """
    if x.ndim != 4 or y.ndim != 3 or 0 in x.shape or 0 in y.shape or y.shape[1:] != x.shape[1:3]:
        raise ValueError(
            "x must be [layer, label, example, d_model] and y [output, label, example], none empty, "
            f"with the same labels and examples; got x {tuple(x.shape)} and y {tuple(y.shape)}. "
            "For one output pass y[None]."
        )
    if example_mask is not None and example_mask.shape != x.shape[1:3]:
        raise ValueError(
            f"example_mask must be [label, example] = {tuple(x.shape[1:3])}, got {tuple(example_mask.shape)}."
        )


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


def mean_scores(
    wrong_logit: Float[Tensor, "layer label output example"], example_mask: ExampleMask | None
) -> ProbeScores:
    """Scores from the logits of the wrong class; a tie is a miss."""
    loss, hit = torch.nn.functional.softplus(wrong_logit), (wrong_logit < 0).to(wrong_logit.dtype)
    hit = hit.masked_fill(wrong_logit.isnan(), torch.nan)
    if example_mask is None:
        return ProbeScores(loss.mean(-1), hit.mean(-1))
    kept = example_mask[:, None, :]
    n_kept = kept.sum(-1)
    return ProbeScores(*(torch.where(kept, v, 0).sum(-1) / n_kept for v in (loss, hit)))


@dataclass(frozen=True)
class LinearMaps:
    """Linear maps of the activations, one a layer, label and output: what all probes have in common.

    Attributes:
        weight: Directions in the activation space; 0 where not fitted.
        intercept: 0 where not fitted.
        fitted: False where the labels the probe was to learn do not vary (or there are none).
    """

    weight: Float[Tensor, "layer label output d_model"]
    intercept: Float[Tensor, "layer label output"]
    fitted: Bool[Tensor, "layer label output"]

    def __repr__(self) -> str:
        n_layers, n_labels, n_outputs, d_model = self.weight.shape
        return (
            f"{type(self).__name__}({n_layers} layers x {n_labels} labels x {n_outputs} outputs, d_model={d_model}, "
            f"skipped={int((~self.fitted).sum())})"
        )

    def values(self, x: Activations) -> Float[Tensor, "layer label output example"]:
        """`x @ weight + intercept`, NaN where not fitted. One layer and label of `x` is copied at a time.

        Raises:
            ValueError: `x` has other layers, labels or d_model than the probes.
        """
        n_layers, n_labels, n_outputs, d_model = self.weight.shape
        if x.ndim != 4 or (*x.shape[:2], x.shape[3]) != (n_layers, n_labels, d_model):
            raise ValueError(
                f"x must be [layer={n_layers}, label={n_labels}, example, d_model={d_model}] as in training, "
                f"got {tuple(x.shape)}."
            )
        out = self.weight.new_empty(n_layers, n_labels, n_outputs, x.shape[2])
        for layer in range(n_layers):
            for label in range(n_labels):
                site = x[layer, label].to(self.weight.dtype)
                torch.mm(self.weight[layer, label], site.mT, out=out[layer, label])
        out += self.intercept[..., None]
        return out.masked_fill_(~self.fitted[..., None], torch.nan)

    def _scored_values(
        self, x: Activations, y: Tensor, example_mask: ExampleMask | None
    ) -> Float[Tensor, "layer label output example"]:
        """`values`, NaN where not fitted or masked and nowhere else.

        Raises:
            ValueError: `y` has other outputs than the probes, or an activation is not finite.
        """
        if y.shape[0] != self.weight.shape[2]:
            raise ValueError(f"y must have the probes' {self.weight.shape[2]} outputs, got {y.shape[0]}.")
        values = self.values(x)
        lost = ~values.isfinite() & self.fitted[..., None]
        if example_mask is not None:
            values.masked_fill_(~example_mask[:, None, :], torch.nan)
            lost &= example_mask[:, None, :]
        if lost.any():
            layer, label, _, example = (int(i) for i in lost.nonzero()[0])
            raise ValueError(
                f"activations must be finite, got {x[layer, label, example].tolist()} at layer {layer}, "
                f"label {label}, example {example}. The forward pass overflowed or the model diverged."
            )
        return values


@dataclass(frozen=True, repr=False)
class LogisticProbes(LinearMaps):
    """Binary logistic probes of one feature: one a layer, label and output.

    Class 1 has probability `sigmoid(x @ weight + intercept)`. The classes are always (0, 1), whichever of
    them occur in the examples that are scored. Everything is float64.

    Attributes:
        weight: Directions in the activation space; 0 where not fitted.
        intercept: In nats; 0 where not fitted.
        fitted: False where the training labels have one class only (or none): there is nothing to separate,
            the probe is reported as skipped and its scores are NaN.
        converged: The training objective is certified to lie within a fraction 1e-11 of its minimum; False
            where not fitted or where `max_iter` steps did not suffice.
        n_iter: Newton steps taken.
        train: Scores on the training examples.
    """

    converged: Bool[Tensor, "layer label output"]
    n_iter: Int[Tensor, "layer label output"]
    train: ProbeScores

    classes: ClassVar[tuple[int, int]] = (0, 1)

    def __repr__(self) -> str:
        n_layers, n_labels, n_outputs, d_model = self.weight.shape
        return (
            f"LogisticProbes({n_layers} layers x {n_labels} labels x {n_outputs} outputs, d_model={d_model}, "
            f"skipped={int((~self.fitted).sum())}, "
            f"not converged={int((self.fitted & ~self.converged).sum())})"
        )

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
        return mean_scores(self._wrong_logits(x, y, example_mask), example_mask)

    def log_loss(self, x: Activations, y: Labels, example_mask: ExampleMask | None = None) -> ProbeMetric:
        """Mean log loss in nats; see `score`, which gives the accuracy at the same price."""
        return self.score(x, y, example_mask).log_loss

    def accuracy(self, x: Activations, y: Labels, example_mask: ExampleMask | None = None) -> ProbeMetric:
        """Fraction of correct predictions; see `score`."""
        return self.score(x, y, example_mask).accuracy
