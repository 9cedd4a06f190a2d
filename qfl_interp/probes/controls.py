"""Controls of a probe: labels that say nothing about their example, and answers that do not look at it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Num, Shaped
from torch import Tensor

from qfl_interp.data.task import FeatureKind
from qfl_interp.probes.kinds import count_classes
from qfl_interp.probes.regression import number_scores
from qfl_interp.probes.result import ExampleMask, mean_over
from qfl_interp.probes.softmax import classes_in


class ConstantScores(NamedTuple):
    """Scores of a constant answer; NaN where a probe would not be fitted: where the training labels do not vary.

    Attributes:
        loss: As the probes': log loss in nats, or mean squared error.
        score: As the probes': accuracy, or R2.
    """

    loss: Float[Tensor, "label output"]
    score: Float[Tensor, "label output"]


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


def majority_scores(
    kind: FeatureKind,
    y: Num[Tensor, "output label example"] | Shaped[Tensor, "output label example"],
    y_test: Num[Tensor, "output label test_example"] | Shaped[Tensor, "output label test_example"],
    example_mask: ExampleMask | None = None,
    test_mask: Bool[Tensor, "label test_example"] | None = None,
) -> ConstantScores:
    """Test scores of the best constant answer: what a probe achieves that does not look at the activations.

    For classes the training labels' base rates (loss) and their most frequent class, the lowest id of equals (score);
    for numbers their mean. As for the probes, test examples of a class that does not occur in training are left out.

    Args:
        kind: The feature's.
        y: Training labels.
        y_test: Labels the answer is scored on.
        example_mask: True where a training example has this label; all have it by default.
        test_mask: The same of the test examples.

    Raises:
        ValueError: A label is no class id.
    """
    if kind == "scalar":
        mean = mean_over(y.double().transpose(0, 1), example_mask)
        spread = mean_over((y.double().transpose(0, 1) - mean[..., None]).square(), example_mask)
        squares = (y_test.double().transpose(0, 1) - mean[..., None]).square()
        scores = number_scores(squares[None], y_test, test_mask)
        return ConstantScores(*(value[0].masked_fill(~(spread > 0), torch.nan) for value in scores))
    n_classes = max(count_classes(y, example_mask), count_classes(y_test, test_mask))
    counts, found = (
        classes_in(labels.long(), n_classes, mask) for labels, mask in ((y, example_mask), (y_test, test_mask))
    )
    found = found * (counts > 0)
    n_found = found.sum(-1).masked_fill((counts > 0).sum(-1) < 2, 0)
    surprise = -(counts.double() / counts.sum(-1, keepdim=True)).log()
    loss = torch.where(counts > 0, found * surprise, 0).sum(-1) / n_found
    hits = found.gather(2, counts.argmax(-1, keepdim=True))[..., 0].double() / n_found
    return ConstantScores(*(torch.where(n_found > 0, value, torch.nan) for value in (loss, hits)))
