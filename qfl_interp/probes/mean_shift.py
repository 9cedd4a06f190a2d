"""Where the mean activation goes when a label changes: the simplest guess at what the model writes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from qfl_interp.data.task import FeatureKind
from qfl_interp.probes.kinds import count_classes
from qfl_interp.probes.result import Activations, ExampleMask


def mean_shift(
    kind: FeatureKind,
    x: Activations,
    y: Shaped[Tensor, "output label example"],
    *,
    example_mask: ExampleMask | None = None,
) -> Float[Tensor, "layer label row d_model"]:
    """`Cov(x, t) / Var(t)` of the activation with what a label says, t: one row an output, or a class.

    For t in {0, 1}, the outputs of binary and multilabel features and the indicators of a categorical one's classes, it
    is the mean activation where t is 1 less that where it is 0; for a number the slope of the activation's regression
    on it. A probe's weights say how to read a label; they need not be what the model writes, and these, too, are only
    a guess at it: both are correlations.

    Args:
        kind: The feature's.
        x: Activations, one row an example; any strides. One layer and label is copied at a time, to float64.
        y: Labels.
        example_mask: True where an example has this label; all have it by default.

    Returns:
        Zero where t does not vary. The rows of a categorical feature are linearly dependent.

    References:
        Difference-in-means directions: Marks and Tegmark, arXiv 2310.06824 ("mass-mean probing").
    """
    told = y.double()
    if kind == "categorical":
        classes = torch.arange(count_classes(y, example_mask), device=y.device)
        told = (y[:, None] == classes[:, None, None]).flatten(0, 1).double()
    found = torch.zeros(*x.shape[:2], len(told), x.shape[3], dtype=torch.float64, device=x.device)
    for label in range(x.shape[1]):
        kept = slice(None) if example_mask is None else example_mask[label]
        t = told[:, label, kept]
        t = t - t.mean(dim=1, keepdim=True)
        spread = t.square().sum(dim=1, keepdim=True)
        weights = torch.where(spread > 0, t / torch.where(spread > 0, spread, 1), 0)
        for layer in range(x.shape[0]):
            # The weights sum to 0: the activation's own mean drops out.
            found[layer, label] = weights @ x[layer, label, kept].double()
    return found
