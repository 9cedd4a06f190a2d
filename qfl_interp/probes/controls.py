"""Controls of a probe: labels that say nothing about their example."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from qfl_interp.probes.result import ExampleMask


def shuffle_labels(
    y: Shaped[Tensor, "output label example"], rng: np.random.Generator, example_mask: ExampleMask | None = None
) -> Tensor:
    """The labels permuted over the examples, every output and label column by a permutation of its own.

    Class counts stay. With a mask, labels move among the examples it keeps; the others stay in place.

    Args:
        y: Labels `[output, label, example]` of any dtype.
        rng: Draws the permutations; the same state gives the same labels.
        example_mask: True where an example has this label.
    """
    shuffled = y.clone()
    for output in range(y.shape[0]):
        for label in range(y.shape[1]):
            kept = np.arange(y.shape[2])
            if example_mask is not None:
                kept = kept[example_mask[label].cpu().numpy()]
            source, target = (torch.from_numpy(i).to(y.device) for i in (rng.permutation(kept), kept))
            shuffled[output, label, target] = y[output, label, source]
    return shuffled
