"""What the probes of a feature see of some examples: activations where it is read, and its labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qfl_interp.activations.spans import SiteSpan
from qfl_interp.data.task import Feature
from qfl_interp.shapes import Examples

# A label that a smaller share of the training examples has is not fitted: there would be more weights than data.
_MIN_SHARE = 0.05


def labels_of(feature: Feature, examples: Examples) -> Tensor:
    """Labels as probes want them: [output, label, example]."""
    # A copy: a task may hand out an array that must not be written to.
    labels = torch.from_numpy(np.array(feature.labels(examples), order="C"))
    return labels[..., None].movedim(0, 2).movedim(1, 0) if labels.ndim == 2 else labels.permute(2, 1, 0)


class FeatureData(NamedTuple):
    """One feature's activations and labels on some examples.

    Attributes:
        x: [place, label, example, d].
        y: [output, label, example].
        kept: Which examples have the label; none of those of a label that is too rare to fit.
    """

    x: Tensor
    y: Tensor
    kept: Tensor


def feature_data(feature: Feature, span: SiteSpan, examples: Examples) -> FeatureData:
    """What a feature's probes see of some examples."""
    x, present = span.read(feature.positions(examples))
    return FeatureData(x, labels_of(feature, examples), present)


def not_rare(data: FeatureData) -> FeatureData:
    """The data without labels that fewer than 5 % of the examples have."""
    return data._replace(kept=data.kept & (data.kept.double().mean(dim=1, keepdim=True) >= _MIN_SHARE))
