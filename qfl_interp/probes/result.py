"""Fitted probes: their weights, what the fit says of itself, and their scores on other examples."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Activations = Float[Tensor, "layer label example d_model"]
ExampleMask = Bool[Tensor, "label example"]
ProbeMetric = Float[Tensor, "layer label output"]
# A row that adds less than this fraction of its length to the rows before it counts as dependent on them.
_INDEPENDENT = 1e-6


class ProbePlanes(NamedTuple):
    """Affine planes `directions @ x + offsets = 0` whose directions are linearly independent."""

    directions: Float[Tensor, "k d_model"]
    offsets: Float[Tensor, " k"]


class ProbeScores(NamedTuple):
    """Scores of every probe, NaN for a probe that was not fitted or where no example counts.

    Attributes:
        loss: Mean over the examples: log loss in nats, or squared error in squared units of the label.
        score: Fraction of the examples, in [0, 1], whose class has the largest probability; for numbers R2, `1 -
            loss / variance` with the variance of the scored labels, NaN where they do not vary.
    """

    loss: ProbeMetric
    score: ProbeMetric


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


def mean_over(values: Tensor, example_mask: Bool[Tensor, "*any label example"] | None) -> Tensor:
    """Mean of `[..., label, output, example]` over the examples the mask keeps; NaN where it keeps none."""
    if example_mask is None:
        return values.mean(-1)
    kept = example_mask[..., None, :]
    return torch.where(kept, values, 0).sum(-1) / kept.sum(-1)


@dataclass(frozen=True)
class Probes(abc.ABC):
    """Fitted probes of one feature, one a layer, label and output: what the three kinds have in common.

    All tensors are float64 unless they count or say yes or no.

    Attributes:
        weight: Directions in the activation space; 0 where not fitted.
        intercept: 0 where not fitted.
        fitted: False where the labels the probe was to learn do not vary (or there are none): there is nothing to
            learn, the probe is reported as skipped and its scores are NaN.
        converged: The solver's certificate holds; False where not fitted or where it stopped short of it.
        n_iter: Newton steps taken; 0 for a closed form.
        train: Scores on the training examples; NaN for probes that were loaded.
        strength: The inverse penalty `c` of each probe; `1 / alpha` for numbers, infinite without penalty.
        path_loss: Validation losses of all strengths that were tried, in ascending order; None without a choice.
    """

    weight: Float[Tensor, "layer label output *class d_model"]
    intercept: Float[Tensor, "layer label output *class"]
    fitted: Bool[Tensor, "layer label output"]
    converged: Bool[Tensor, "layer label output"]
    n_iter: Int[Tensor, "layer label output"]
    train: ProbeScores
    strength: ProbeMetric
    path_loss: Float[Tensor, "strength layer label output"] | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        n_layers, n_labels, n_outputs, *classes, d_model = self.weight.shape
        return (
            f"{type(self).__name__}({n_layers} layers x {n_labels} labels x {n_outputs} outputs, "
            + "".join(f"{n} classes, " for n in classes)
            + f"d_model={d_model}, skipped={int((~self.fitted).sum())}, "
            f"not converged={int((self.fitted & ~self.converged).sum())})"
        )

    @abc.abstractmethod
    def example_loss(
        self, x: Activations, y: Shaped[Tensor, "output label example"], example_mask: ExampleMask | None = None
    ) -> Float[Tensor, "layer label output example"]:
        """Loss of every example; NaN where not fitted, masked, or of a class the probe never saw."""

    @abc.abstractmethod
    def score(
        self, x: Activations, y: Shaped[Tensor, "output label example"], example_mask: ExampleMask | None = None
    ) -> ProbeScores:
        """Mean loss and score over the examples the mask keeps."""

    @abc.abstractmethod
    def planes(self, layer: int, label: int, outputs: slice) -> ProbePlanes:
        """Where the probe cannot tell its classes apart: affine planes, none if it was not fitted.

        Rows that depend on earlier ones are left out, so that the planes always have common points.
        """

    def all_planes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The planes of every layer and label side by side.

        Returns:
            Directions `[layer, label, k, d_model]`, offsets `[layer, label, k]`, and which of the k there are; of those
            that are not, directions and offsets are 0.
        """
        n_layers, n_labels = self.fitted.shape[:2]
        planes = {(i, j): self.planes(i, j, slice(None)) for i in range(n_layers) for j in range(n_labels)}
        most = max(1, max(len(plane.offsets) for plane in planes.values()))
        directions = self.weight.new_zeros(n_layers, n_labels, most, self.weight.shape[-1])
        offsets, there = directions[..., 0].clone(), torch.zeros(n_layers, n_labels, most, dtype=torch.bool)
        for site, plane in planes.items():
            k = len(plane.offsets)
            directions[site][:k], offsets[site][:k], there[site][:k] = plane.directions, plane.offsets, True
        return directions, offsets, there

    def n_unseen(
        self, y: Shaped[Tensor, "output label example"], example_mask: ExampleMask | None = None
    ) -> Int[Tensor, "label output"]:
        """How many examples have a class that did not occur in training; scores leave them out."""
        return torch.zeros(y.shape[1], y.shape[0], dtype=torch.int64, device=y.device)

    def tensors(self, outputs: slice) -> dict[str, Tensor]:
        """What `kinds.load_probes` needs to score and project later, of some outputs; weights in float32."""
        return {
            "weight": self.weight[:, :, outputs].float(),
            "intercept": self.intercept[:, :, outputs].float(),
            "fitted": self.fitted[:, :, outputs],
            "strength": self.strength[:, :, outputs],
        }

    def values(self, x: Activations) -> Float[Tensor, "layer label output *class example"]:
        """`x @ weight + intercept`, NaN where not fitted. One layer and label of `x` is copied at a time.

        Raises:
            ValueError: `x` has other layers, labels or d_model than the probes.
        """
        n_layers, n_labels, d_model = *self.weight.shape[:2], self.weight.shape[-1]
        if x.ndim != 4 or (*x.shape[:2], x.shape[3]) != (n_layers, n_labels, d_model):
            raise ValueError(
                f"x must be [layer={n_layers}, label={n_labels}, example, d_model={d_model}] as in training, "
                f"got {tuple(x.shape)}."
            )
        rows = self.weight.flatten(2, -2)
        out = rows.new_empty(*rows.shape[:3], x.shape[2])
        for layer in range(n_layers):
            for label in range(n_labels):
                site = x[layer, label].to(rows.dtype)
                torch.mm(rows[layer, label], site.mT, out=out[layer, label])
        out = out.view(*self.weight.shape[:-1], x.shape[2])
        out += self.intercept[..., None]
        return out.masked_fill_(~_trailing(self.fitted, out), torch.nan)

    def _scored_values(
        self, x: Activations, y: Tensor, example_mask: ExampleMask | None
    ) -> Float[Tensor, "layer label output *class example"]:
        """`values`, NaN where not fitted or masked; `ValueError` for other outputs or what is not finite elsewhere."""
        if y.shape[0] != self.weight.shape[2]:
            raise ValueError(f"y must have the probes' {self.weight.shape[2]} outputs, got {y.shape[0]}.")
        values = self.values(x)
        lost = ~values.isfinite() & _trailing(self.fitted, values)
        if example_mask is not None:
            kept = example_mask.view(example_mask.shape[0], *[1] * (values.ndim - 3), -1)
            values.masked_fill_(~kept, torch.nan)
            lost &= kept
        if lost.any():
            layer, label, *_, example = (int(i) for i in lost.nonzero()[0])
            raise ValueError(
                f"activations must be finite, got {x[layer, label, example].tolist()} at layer {layer}, "
                f"label {label}, example {example}. The forward pass overflowed or the model diverged."
            )
        return values


def _trailing(fitted: Tensor, values: Tensor) -> Tensor:
    """`fitted` with as many axes as `values`."""
    return fitted.view(*fitted.shape, *[1] * (values.ndim - 3))


def check_settings(c: float, max_iter: int, init: Probes | None, shape: tuple[int, ...]) -> None:
    """Raise unless a Newton solver's settings are in range and `init` has weights of this shape.

    Raises:
        ValueError: One of them does not.
    """
    if not (math.isfinite(c) and c > 0):
        raise ValueError(f"c must be positive and finite, got {c}. The paper uses 100.")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}. 100 is plenty.")
    if init is not None and init.weight.shape != shape:
        raise ValueError(
            f"init must hold probes with weights [layer, label, output, ..., d_model] = {shape}, got "
            f"{tuple(init.weight.shape)}. Start from probes of the same feature and model, or leave it out."
        )


def independent(directions: Float[Tensor, "k d_model"], offsets: Float[Tensor, " k"]) -> ProbePlanes:
    """The rows that are no combination of the rows before them, with their offsets."""
    kept = independent_rows(directions)
    return ProbePlanes(directions[kept], offsets[kept])


def independent_rows(directions: Float[Tensor, "k d_model"]) -> list[int]:
    """Which rows are no combination of the rows before them."""
    basis = directions.new_zeros(0, directions.shape[1], dtype=torch.float64)
    kept = []
    for k, row in enumerate(directions.double()):
        rest = row - basis.mT @ (basis @ row)
        rest = rest - basis.mT @ (basis @ rest)  # once more: the first pass leaves rounding
        if rest.norm() > _INDEPENDENT * row.norm():
            basis = torch.cat([basis, rest[None] / rest.norm()])
            kept.append(k)
    return kept
