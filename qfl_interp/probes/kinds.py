"""One front for the probes of every kind of feature: fit, choose a penalty, store and load."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from qfl_interp.config import ProbeConfig
from qfl_interp.data.task import FeatureKind
from qfl_interp.probes.logistic import LogisticProbes, fit_logistic
from qfl_interp.probes.regression import RegressionProbes, fit_regression, fit_ridge_path
from qfl_interp.probes.result import Activations, ExampleMask, Probes, ProbeScores
from qfl_interp.probes.softmax import SoftmaxProbes, fit_softmax

# What the loss of each kind of feature is called.
PROBE_LOSS: Mapping[str, str] = MappingProxyType(
    {"binary": "log_loss", "multilabel": "log_loss", "categorical": "log_loss", "scalar": "mse"}
)
_CLASSES: Mapping[str, type[Probes]] = MappingProxyType(
    {
        "binary": LogisticProbes,
        "multilabel": LogisticProbes,
        "categorical": SoftmaxProbes,
        "scalar": RegressionProbes,
    }
)


class Validation(NamedTuple):
    """Examples a penalty is chosen on; shapes as in training, with other examples."""

    x: Activations
    y: Shaped[Tensor, "output label example"]
    example_mask: ExampleMask | None = None


def _class_of(kind: str) -> type[Probes]:
    """The result class of a kind of feature."""
    if kind not in _CLASSES:
        raise ValueError(f"kind must be one of {sorted(_CLASSES)}, got {kind!r}. It is the feature's, `Feature.kind`.")
    return _CLASSES[kind]


def count_classes(y: Shaped[Tensor, "output label example"], example_mask: ExampleMask | None = None) -> int:
    """One more than the largest class id among the kept examples, and at least 2."""
    ids = y if example_mask is None else torch.where(example_mask, y.long(), 0)
    return max(2, int(ids.max()) + 1)


def _fit_path(
    kind: FeatureKind,
    x: Activations,
    y: Tensor,
    config: ProbeConfig,
    example_mask: ExampleMask | None,
    init: Probes | None,
    n_classes: int,
) -> Iterator[Probes]:
    """The probes of every strength of the configuration, in ascending order, each started from the one before."""
    if kind == "scalar":
        if config.path:
            yield from fit_ridge_path(x, y, [1 / c for c in config.path], example_mask=example_mask)
        else:
            yield fit_regression(x, y, alpha=config.alpha, example_mask=example_mask)
        return
    if init is not None and not isinstance(init, _class_of(kind)):
        raise ValueError(
            f"init must hold probes of the feature's kind, {_class_of(kind).__name__} for {kind!r}, got "
            f"{type(init).__name__}. Start from the previous checkpoint's probes of the same feature."
        )
    for c in config.path or (config.c,):
        settings = {"c": c, "max_iter": config.max_iter, "init": init, "example_mask": example_mask}
        init = (
            fit_softmax(x, y, n_classes=n_classes, **settings)
            if kind == "categorical"
            else fit_logistic(x, y, **settings)
        )
        yield init


def _where(better: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Entry by entry of [layer, label, output, ...], `one` where `better`."""
    return torch.where(better.view(*better.shape, *[1] * (one.ndim - better.ndim)), one, other)


def _better(better: Tensor, one: Probes, other: Probes) -> Probes:
    """The probes of `one` where `better`, of `other` elsewhere."""
    names = ("weight", "intercept", "fitted", "converged", "n_iter", "strength")
    chosen = {name: _where(better, getattr(one, name), getattr(other, name)) for name in names}
    train = ProbeScores(*(_where(better, a, b) for a, b in zip(one.train, other.train, strict=True)))
    return dataclasses.replace(other, train=train, **chosen)


def fit_probes(
    kind: FeatureKind,
    x: Activations,
    y: Shaped[Tensor, "output label example"],
    config: ProbeConfig,
    *,
    example_mask: ExampleMask | None = None,
    validation: Validation | None = None,
    init: Probes | None = None,
    n_classes: int | None = None,
) -> Probes:
    """Probes of a feature of any kind, one a layer, label and output, each at its own optimum.

    "binary" and "multilabel": `fit_logistic`; "categorical": `fit_softmax`; "scalar": `fit_regression`. With
    `config.path` every strength is fitted (ridge penalties `1 / c` for numbers) and each probe keeps the one with the
    lowest loss on the validation examples, the stronger penalty of equals; where there is none to be had (no
    validation example of a label), the strongest penalty. The losses are the result's `path_loss`. A copy with
    shuffled labels among the outputs is chosen for by its own, shuffled, validation labels.

    Args:
        kind: The feature's.
        x: Activations, one row an example.
        y: Labels: 0 or 1, class ids from 0, or numbers.
        config: Strength or path, and steps at most.
        example_mask: True where an example has this label; all have it by default.
        validation: Examples to choose on; needed with a path and unused without.
        init: Probes to start from, those of the previous checkpoint; unused for numbers.
        n_classes: Classes of a categorical feature; by default one more than the largest id in `y` and `validation`.

    Raises:
        ValueError: There is a path but no validation, or what the kind's own function raises.
    """
    _class_of(kind)
    if config.path and validation is None:
        raise ValueError(
            f"a path of strengths needs validation examples to choose on, got path={config.path} and validation=None. "
            "Pass `validation`, or set one strength `c` and leave path empty."
        )
    if kind == "categorical" and n_classes is None:
        n_classes = count_classes(y, example_mask)
        if validation is not None:
            n_classes = max(n_classes, count_classes(validation.y, validation.example_mask))
    best, best_loss, losses = None, None, []
    for probes in _fit_path(kind, x, y, config, example_mask, init, n_classes or 2):
        if validation is None or not config.path:
            return probes
        loss = probes.score(*validation).loss
        losses.append(loss)
        if best is None or best_loss is None:
            best, best_loss = probes, loss
        else:
            better = loss < best_loss
            best, best_loss = _better(better, probes, best), torch.where(better, loss, best_loss)
    assert best is not None
    return dataclasses.replace(best, path_loss=torch.stack(losses))


def load_probes(kind: FeatureKind, tensors: Mapping[str, Tensor]) -> Probes:
    """The probes whose `Probes.tensors` these are: they score and give planes as before, to float32.

    What the fit said of itself is not stored: `converged` is `fitted`, `n_iter` 0, `train` NaN.

    Args:
        kind: The feature's.
        tensors: As stored; other entries are ignored.

    Raises:
        ValueError: The kind is unknown or a tensor is missing.
    """
    cls = _class_of(kind)
    extra = {"categorical": ("classes_present",), "scalar": ("label_mean",)}.get(kind, ())
    missing = sorted({"weight", "intercept", "fitted", "strength", *extra} - set(tensors))
    if missing:
        raise ValueError(
            f"tensors of {kind!r} probes must hold {missing}, got {sorted(tensors)}. "
            "They are of another kind or of another version: fit the probes again."
        )
    fitted = tensors["fitted"]
    blank = torch.full(fitted.shape, torch.nan, dtype=torch.float64, device=fitted.device)
    return cls(
        weight=tensors["weight"].double(),
        intercept=tensors["intercept"].double(),
        fitted=fitted,
        converged=fitted,
        n_iter=torch.zeros_like(fitted, dtype=torch.int64),
        train=ProbeScores(blank, blank),
        strength=tensors["strength"],
        **{name: tensors[name] for name in extra},
    )
