"""Softmax probes of a categorical feature, at all its layers, labels and outputs, as one batched convex problem."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from qfl_interp.probes.layer_labels import LayerLabel, centred, for_each_site
from qfl_interp.probes.result import (
    Activations,
    ExampleMask,
    ProbePlanes,
    Probes,
    ProbeScores,
    check_axes,
    check_settings,
    independent,
)
from qfl_interp.probes.softmax_newton import solve_softmax

Classes = Integer[Tensor, "output label example"]


def classes_in(y: Classes, n_classes: int, example_mask: ExampleMask | None) -> Int[Tensor, "label output class"]:
    """How many of the examples the mask keeps have each class.

    Raises:
        ValueError: A label is no class id in `[0, n_classes)`, with its place.
    """
    wrong = (y < 0) | (y >= n_classes)
    if example_mask is not None:
        wrong &= example_mask
    if wrong.any():
        output, label, example = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"labels must be class ids in [0, {n_classes}), got {int(y[output, label, example])} at output {output}, "
            f"label {label}, example {example}. Mask examples that have no label, or raise n_classes."
        )
    ids = _class_ids(y, n_classes).transpose(0, 1)
    kept = torch.ones_like(ids) if example_mask is None else example_mask[:, None].expand_as(ids).to(ids.dtype)
    return ids.new_zeros(*ids.shape[:2], n_classes).scatter_add_(2, ids, kept)


def _class_ids(y: Classes, n_classes: int) -> Int[Tensor, "output label example"]:
    """Labels as indices; what masked examples hold may be anything."""
    return y.long().clamp(0, n_classes - 1)


@dataclass(frozen=True, repr=False)
class SoftmaxProbes(Probes):
    """Softmax probes of one categorical feature: class k has a probability proportional to `exp(x @ w_k + b_k)`.

    Weights and intercepts sum to 0 over the classes that occurred in training; the others have probability 0 (and
    weights 0), and examples of theirs are left out of the scores and counted by `n_unseen`. `converged` certifies
    that the training objective lies within a fraction 1e-9 of its minimum.

    Attributes:
        classes_present: The classes that occurred among the training labels.
    """

    classes_present: Bool[Tensor, "label output class"]

    def logits(self, x: Activations) -> Float[Tensor, "layer label output class example"]:
        """Log probabilities up to a constant an example; `-inf` for absent classes, NaN where not fitted."""
        return self._over_classes(self.values(x))

    def _over_classes(self, values: Tensor) -> Float[Tensor, "layer label output class example"]:
        """`values`, `-inf` for absent classes."""
        absent = ~self.classes_present[..., None] & self.fitted[..., None, None]
        return values.masked_fill_(absent, -torch.inf)

    def n_unseen(self, y: Classes, example_mask: ExampleMask | None = None) -> Int[Tensor, "label output"]:
        """How many examples have a class that did not occur in training; scores leave them out."""
        counts = classes_in(y, self.classes_present.shape[2], example_mask)
        return (counts * ~self.classes_present).sum(-1)

    def _losses(
        self, x: Activations, y: Classes, example_mask: ExampleMask | None
    ) -> tuple[Float[Tensor, "layer label output example"], Float[Tensor, "layer label output example"]]:
        """Log loss and whether the class is the likeliest, NaN where not fitted, masked or unseen."""
        check_axes(x, y, example_mask)
        n_classes = self.classes_present.shape[2]
        classes_in(y, n_classes, example_mask)
        ids = _class_ids(y, n_classes).transpose(0, 1)
        logits = self._over_classes(self._scored_values(x, y, example_mask))
        at = ids.expand(len(self.weight), -1, -1, -1)[..., None, :]
        loss = logits.logsumexp(-2) - logits.gather(-2, at)[..., 0, :]
        hit = (logits.argmax(-2) == ids).to(loss.dtype)
        unseen = ~self.classes_present.gather(2, ids)
        nowhere = loss.isnan() | unseen | ~self.fitted[..., None]
        return loss.masked_fill(nowhere, torch.nan), hit.masked_fill(nowhere, torch.nan)

    def example_loss(
        self, x: Activations, y: Classes, example_mask: ExampleMask | None = None
    ) -> Float[Tensor, "layer label output example"]:
        """Log loss of every example in nats, NaN where not fitted, masked or unseen. Raises as `score` does."""
        return self._losses(x, y, example_mask)[0]

    def score(self, x: Activations, y: Classes, example_mask: ExampleMask | None = None) -> ProbeScores:
        """Mean log loss and accuracy over the examples the mask keeps whose class occurred in training.

        Raises:
            ValueError: The shapes do not fit the probes, a label is no class id, or an activation is not finite.
        """
        return ProbeScores(*(values.nanmean(-1) for values in self._losses(x, y, example_mask)))

    def planes(self, layer: int, label: int, outputs: slice) -> ProbePlanes:
        """Where all logits are equal: each present class less the last one, of every fitted output."""
        n_outputs = self.fitted.shape[2]
        rows, offsets = [self.weight.new_zeros(0, self.weight.shape[-1])], [self.weight.new_zeros(0)]
        for output in range(n_outputs)[outputs]:
            if self.fitted[layer, label, output]:
                present = self.classes_present[label, output]
                weight, intercept = self.weight[layer, label, output], self.intercept[layer, label, output]
                *first, last = present.nonzero()[:, 0].tolist()
                rows.append(weight[first] - weight[last])
                offsets.append(intercept[first] - intercept[last])
        return independent(torch.cat(rows), torch.cat(offsets))

    def tensors(self, outputs: slice) -> dict[str, Tensor]:
        """As for every kind, and the classes present."""
        return super().tensors(outputs) | {"classes_present": self.classes_present[:, outputs]}


def fit_softmax(
    x: Activations,
    y: Classes,
    *,
    n_classes: int,
    c: float,
    max_iter: int,
    init: SoftmaxProbes | None = None,
    example_mask: ExampleMask | None = None,
) -> SoftmaxProbes:
    """Softmax regressions with L2 penalty, one a layer, label and output, each at its own optimum.

    Each minimises `c * sum_i log_loss_i + ||W||^2 / 2` in nats, the intercepts unpenalised: scikit-learn's
    `LogisticRegression(C=c)`. A class without an example at some label and output is left out there, and where only
    two are left, `c` is halved, so that they get the binary probe of strength `c` (its weights are the difference of
    the two rows, which share the penalty); scikit-learn does both. All arithmetic is in float64. The same input gives
    the same bits on the same machine with the same number of threads.

    Memory beyond the arguments and the result: about 1.3 `CHUNK_BYTES` (64 MiB) in all, or, where a layer and label
    needs more than its thread's share, `8 n_example (2 d_model + 12 n_output n_class)` bytes and, for a problem that
    needs the Hessian, up to 100 MiB, a thread.

    Args:
        x: Activations, one row an example; any strides, CPU or CUDA.
        y: Class ids from 0. Outputs share the activations: the labels, and shuffled copies of them.
        n_classes: Number of classes of the feature, whichever occur.
        c: Inverse L2 strength, positive.
        max_iter: Newton steps at most, at least 1; 4 to 30 are the rule.
        init: Probes to start from where they beat the base rate: those of the previous checkpoint.
        example_mask: True where an example has this label; all have it by default.

    Raises:
        ValueError: Shapes that do not fit, a label that is no class id, an activation that is not finite (with its
            place), or `n_classes`, `c` or `max_iter` out of range.
    """
    check_axes(x, y, example_mask)
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, got {n_classes}. Count the feature's classes from 0.")
    n_layers, n_labels, n_examples, d_model = x.shape
    shape = (n_layers, n_labels, y.shape[0])
    check_settings(c, max_iter, init, (*shape, n_classes, d_model))
    present = classes_in(y, n_classes, example_mask) > 0
    fitted = present.sum(-1) >= 2
    strength = torch.where(present.sum(-1) == 2, c / 2, c).double()
    target = _class_ids(y, n_classes).transpose(0, 1)
    kept = torch.ones(x.shape[1:3], dtype=torch.bool, device=x.device) if example_mask is None else example_mask
    coef = torch.zeros(*shape, n_classes, d_model + 1, dtype=torch.float64, device=x.device)
    converged = torch.zeros(shape, dtype=torch.bool, device=x.device)
    n_iter = torch.zeros(shape, dtype=torch.int64, device=x.device)

    def fit(sites: list[LayerLabel]) -> None:
        at = tuple(torch.tensor(index, device=x.device) for index in zip(*sites, strict=True))
        z, means = centred(x, sites, example_mask)
        start = torch.zeros_like(coef[at])
        if init is not None:
            start = torch.cat([init.weight[at], init.intercept[at][..., None]], -1)
            start[..., -1] += torch.einsum("sokd,sd->sok", init.weight[at], means)
        label = at[1]
        problems = (target[label], kept[label], present[label], start, fitted[label])
        found = solve_softmax(z, *problems, c=strength[label], max_iter=max_iter)
        solved = found.coef * fitted[label][..., None, None]
        solved[..., -1] -= torch.einsum("sokd,sd->sok", solved[..., :-1], means)
        coef[at], converged[at], n_iter[at] = solved, found.converged, found.n_iter

    for_each_site(fit, x, 8 * n_examples * (d_model + 1 + 12 * y.shape[0] * n_classes))
    everywhere = fitted.expand(shape).clone()
    blank = torch.full(shape, torch.nan, dtype=torch.float64, device=x.device)
    weight, intercept = coef[..., :-1], coef[..., -1]
    unscored = SoftmaxProbes(
        weight, intercept, everywhere, converged, n_iter, ProbeScores(blank, blank), torch.full_like(blank, c), present
    )
    return dataclasses.replace(unscored, train=unscored.score(x, y, example_mask))
