"""From probe metrics by layer and label to the paper's summaries: best layer, thirds, baselines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

# Names of the thirds, in order; summaries hold one entry for each and one for "all".
THIRDS = ("beginning", "middle", "end")

# The selected layer of a label that no layer could be fitted on.
NOT_FITTED = -1


@dataclass(frozen=True, repr=False)
class Summary:
    """A loss averaged over the labels of one group.

    Attributes:
        geometric_mean: As the paper plots it; 0 if any value is 0, NaN if the group is empty.
        arithmetic_mean: NaN if the group is empty; shows the bad labels that a geometric mean hides.
        n: Labels in the group.
    """

    geometric_mean: float
    arithmetic_mean: float
    n: int

    def __repr__(self) -> str:
        return f"{self.geometric_mean:.4g} (arithmetic {self.arithmetic_mean:.4g}, n={self.n})"


def geometric_mean(values: Float[np.ndarray, "*rest label"]) -> Float[np.ndarray, "*rest"]:
    """The geometric mean over the last axis, in float64; 0 where any value is 0 (its limit, no warning)."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(np.asarray(values, dtype=np.float64)).mean(axis=-1)))


def select_layer(train_metric: Float[np.ndarray, "layer label"]) -> Int[np.ndarray, " label"]:
    """The layer with the lowest training metric for each label; the earliest of equal ones.

    The metric is log loss or mean squared error, NaN where none was fitted.

    Returns:
        A layer a label; `NOT_FITTED` where every layer is NaN.

    References:
        arXiv 2505.03997: the block is chosen on training loss, its test loss is reported.
    """
    metric = np.asarray(train_metric, dtype=np.float64)
    layer = np.argmin(np.where(np.isnan(metric), np.inf, metric), axis=0)
    return np.where(np.isnan(metric).all(axis=0), NOT_FITTED, layer)


def at_layer(metric: Float[np.ndarray, "layer label"], layer: Int[np.ndarray, " label"]) -> Float[np.ndarray, " label"]:
    """Each label's metric at its layer; NaN where the layer is `NOT_FITTED`."""
    chosen = np.asarray(metric, dtype=np.float64)[layer, np.arange(layer.size)]
    return np.where(layer == NOT_FITTED, np.nan, chosen)


def thirds(n: int) -> dict[str, slice]:
    """The ranks of each third among n fitted labels: [0, n // 3), [n // 3, 2 n // 3), [2 n // 3, n)."""
    edges = (0, n // 3, 2 * n // 3, n)
    return {name: slice(edges[i], edges[i + 1]) for i, name in enumerate(THIRDS)}


def label_groups(fitted: Bool[np.ndarray, " label"]) -> dict[str, Int[np.ndarray, " member"]]:
    """The label indices of each third and of "all".

    Thirds go by rank among the fitted labels, as in the paper, so a label that could not be fitted shifts
    later ones; the indices returned are those of the labels themselves.
    """
    members = np.flatnonzero(fitted)
    return {name: members[part] for name, part in thirds(members.size).items()} | {"all": members}


def summarise(
    train_metric: Float[np.ndarray, "layer label"], test_metric: Float[np.ndarray, "_ _"]
) -> dict[str, Summary]:
    """The test metric of each label's best layer by training metric, averaged over thirds and over all.

    The untrained model's probes summarised the same way are the clean baseline.

    Returns:
        One summary each for "beginning", "middle", "end" and "all".

    Raises:
        ValueError: The shapes differ, or a reported value is negative or not finite.
    """
    if train_metric.shape != test_metric.shape:
        raise ValueError(
            f"train_metric and test_metric must have one shape, got {train_metric.shape} and "
            f"{test_metric.shape}. Pass both for the same layers and labels."
        )
    return _summaries(at_layer(test_metric, select_layer(train_metric)))


def reference_baseline(test_metric: Float[np.ndarray, "model layer label"]) -> dict[str, Summary]:
    """The random baseline as the paper computes it: per label the minimum *test* metric over layers.

    It is chosen on the test set, unlike the trained probes, which favours the baseline a little. Several
    untrained models enter by their geometric mean per label.

    Raises:
        ValueError: A reported value is negative or not finite, or a label was fitted in some models only.
    """
    metric = np.asarray(test_metric, dtype=np.float64)
    best = np.where(np.isnan(metric), np.inf, metric).min(axis=1)
    fitted = np.isfinite(best)
    if np.any(fitted.any(axis=0) != fitted.all(axis=0)):
        raise ValueError("every untrained model must be fitted at the same labels. Probe them on the same data.")
    by_label = geometric_mean(np.where(fitted, _not_negative(best), np.nan).T)
    return _summaries(by_label)


def _summaries(by_label: Shaped[np.ndarray, " label"]) -> dict[str, Summary]:
    """The summaries of one value a label; NaN = not fitted."""
    groups = label_groups(~np.isnan(by_label))
    values = _not_negative(by_label)
    found = {}
    for name, members in groups.items():
        part = values[members]
        if part.size and not np.isfinite(part).all():
            raise ValueError(f"metrics must be finite, got {part} in {name!r}. Look at the probe's fit.")
        means = (float(geometric_mean(part)), float(part.mean())) if part.size else (np.nan, np.nan)
        found[name] = Summary(*means, part.size)
    return found


def _not_negative(values: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """The values, none of which may be negative (NaN may)."""
    if np.any(values < 0):
        raise ValueError(
            f"metrics must be at least 0 for a geometric mean, got {np.nanmin(values):g}. "
            "Pass log losses or mean squared errors, not r2."
        )
    return values
