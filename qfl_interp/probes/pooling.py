"""One probe for all labels of a feature: the labels' examples in one row, and the probe as every label's own again."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from qfl_interp.probes.result import Activations, ExampleMask, Probes, ProbeScores

# Fields of probes whose first axis is the label; in all others it is the second, behind the layer.
_LABEL_FIRST = ("classes_present", "label_mean")


class Pooled(NamedTuple):
    """A feature's data with one label that holds the examples of all, label after label.

    Attributes:
        x: A view of the given activations where their strides allow it.
        y: Labels of any kind.
        example_mask: None where all examples count.
    """

    x: Float[Tensor, "layer 1 label_example d_model"]
    y: Shaped[Tensor, "output 1 label_example"]
    example_mask: Bool[Tensor, "1 label_example"] | None


def pool_labels(
    x: Activations, y: Shaped[Tensor, "output label example"], example_mask: ExampleMask | None = None
) -> Pooled:
    """The data for one probe a layer that reads every label of a feature, wherever it stands: the paper's option.

    The examples are in the order label 0, label 1, ..., each in the given order. Memory: none beside the arguments
    where labels follow one another in memory (contiguous `x`, or positions in a row of a span of positions);
    otherwise one copy of `x`, `layer label example d_model` numbers: for positions that repeat or are gathered.

    Raises:
        ValueError: No label is left to pool.
    """
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(f"x must hold labels and examples to pool, got {tuple(x.shape)}. Read the feature first.")
    mask = None if example_mask is None else example_mask.reshape(1, -1)
    return Pooled(x.flatten(1, 2)[:, None], y.flatten(1, 2)[:, None], mask)


def share_labels(probes: Probes, n_labels: int) -> Probes:
    """The pooled probe of every layer as the probe of each of `n_labels` labels; without the path's losses.

    Raises:
        ValueError: The probes are not pooled.
    """
    if probes.fitted.shape[1] != 1:
        raise ValueError(f"probes must have one label to share, got {probes.fitted.shape[1]}. Fit them on pooled data.")

    def spread(name: str, value: Any) -> Any:
        if isinstance(value, ProbeScores):
            return ProbeScores(*(spread(name, part) for part in value))
        return value.repeat_interleave(n_labels, dim=0 if name in _LABEL_FIRST else 1)

    names = [f.name for f in dataclasses.fields(probes) if f.name != "path_loss"]
    return dataclasses.replace(probes, **{n: spread(n, getattr(probes, n)) for n in names}, path_loss=None)
