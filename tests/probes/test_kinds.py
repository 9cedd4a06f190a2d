"""The front for all kinds: agreement with the kind's own function, choice of a penalty, storing, planes, controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error, r2_score

from qfl_interp import ProbeConfig
from qfl_interp.interventions.planes import affine_projection
from qfl_interp.probes import (
    LogisticProbes,
    RegressionProbes,
    SoftmaxProbes,
    Validation,
    fit_logistic,
    fit_probes,
    fit_regression,
    fit_softmax,
    kinds,
    load_probes,
    majority_scores,
    pool_labels,
    share_labels,
)
from qfl_interp.probes.result import independent

N, D, N_LAYERS, N_LABELS = 300, 8, 2, 3
KINDS = ("binary", "multilabel", "categorical", "scalar")


def draw(kind: str, seed: int = 0, n: int = N, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations, the same map to labels whatever the seed, and labels of a kind."""
    rng = np.random.default_rng(seed)
    x = 2 + rng.standard_normal((N_LAYERS, N_LABELS, n, D))
    n_rows = {"binary": 1, "multilabel": 2, "categorical": 4, "scalar": 1}[kind]
    rows = np.random.default_rng(99).standard_normal((n_rows, D))
    signal = np.einsum("kd,lnd->kln", rows, x[0] - 2) + noise * rng.standard_normal((n_rows, N_LABELS, n))
    if kind == "categorical":
        y = signal.argmax(0)[None]
    elif kind == "scalar":
        y = np.rint(3 * signal).astype(np.int64)
    else:
        y = (signal > 0).astype(np.int64)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def config(**changes: Any) -> ProbeConfig:
    values: dict[str, Any] = {"c": 10.0} | changes
    return ProbeConfig(**values)


def direct(kind: str, x: torch.Tensor, y: torch.Tensor, c: float, mask: torch.Tensor | None = None):
    """The kind's own function."""
    if kind == "scalar":
        return fit_regression(x, y, alpha=1 / c, example_mask=mask)
    if kind == "categorical":
        return fit_softmax(x, y, n_classes=4, c=c, max_iter=100, example_mask=mask)
    return fit_logistic(x, y, c=c, max_iter=100, example_mask=mask)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_path_it_is_the_kinds_own_function(kind):
    x, y = draw(kind)
    mask = torch.from_numpy(np.random.default_rng(1).random((N_LABELS, N)) < 0.8)
    probes = fit_probes(kind, x, y, config(alpha=0.1), example_mask=mask)
    expected = direct(kind, x, y, 10.0, mask)
    classes = {"scalar": RegressionProbes, "categorical": SoftmaxProbes}
    assert type(probes) is classes.get(kind, LogisticProbes)
    assert torch.equal(probes.weight, expected.weight)
    assert torch.equal(probes.strength, torch.full_like(probes.strength, 10.0))
    assert probes.converged.all()
    assert probes.path_loss is None
    assert probes.n_unseen(y, mask).tolist() == torch.zeros(N_LABELS, len(y)).tolist()


def test_least_squares_has_no_penalty():
    x, y = draw("scalar")
    probes = fit_probes("scalar", x, y, config())
    assert torch.isposinf(probes.strength).all()
    assert torch.equal(probes.weight, fit_regression(x, y).weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_keeps_each_probes_best_strength(kind):
    """Against a plain loop over strengths, fitted cold, scored on the validation examples."""
    x, y = draw(kind, n=40, noise=2.0)
    held_x, held_y = draw(kind, seed=1)
    path = (1e-4, 1e-2, 1.0, 100.0)
    mask = torch.from_numpy(np.random.default_rng(1).random((N_LABELS, N)) < 0.8)
    chosen = fit_probes(kind, x, y, config(path=path), validation=Validation(held_x, held_y, mask), n_classes=4)
    fits = [direct(kind, x, y, c) for c in path]
    losses = torch.stack([fit.score(held_x, held_y, mask).loss for fit in fits])
    assert chosen.path_loss is not None
    torch.testing.assert_close(chosen.path_loss, losses, rtol=1e-4, atol=1e-5)
    best = losses.argmin(0)
    assert len(best.unique()) > 1, "all probes choose alike: the test would miss a mix-up"
    torch.testing.assert_close(chosen.strength, torch.tensor(path, dtype=torch.float64)[best])
    for at in np.ndindex(*best.shape):
        fit = fits[int(best[at])]
        torch.testing.assert_close(chosen.weight[at], fit.weight[at], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(chosen.intercept[at], fit.intercept[at], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(chosen.train.loss[at], fit.train.loss[at], rtol=1e-4, atol=1e-5)


def test_a_label_without_validation_examples_gets_the_strongest_penalty():
    x, y = draw("binary")
    mask = torch.ones(N_LABELS, N, dtype=torch.bool)
    mask[1] = False
    probes = fit_probes("binary", x, y, config(path=(100.0, 0.01)), validation=Validation(x, y, mask))
    assert (probes.strength[:, 1] == 0.01).all()
    assert (probes.strength[:, 0] == 100.0).all()


def test_front_refuses_what_it_cannot_do():
    x, y = draw("binary")
    with pytest.raises(ValueError, match="needs validation examples to choose on"):
        fit_probes("binary", x, y, config(path=(1.0, 2.0)))
    with pytest.raises(ValueError, match="init must hold probes of the feature's kind, SoftmaxProbes"):
        fit_probes("categorical", x, y, config(), init=fit_logistic(x, y, c=1.0, max_iter=5))
    with pytest.raises(ValueError, match=r"kind must be one of \['binary', 'categorical', .*, got 'ordinal'"):
        kinds._class_of("ordinal")  # asked of the check itself: in the tests the annotations would catch it first
    with pytest.raises(ValueError, match=r"'scalar' probes must hold \['label_mean'\]"):
        load_probes("scalar", fit_logistic(x, y, c=1.0, max_iter=5).tensors(slice(None)))


def test_warm_start_is_passed_on():
    x, y = draw("categorical")
    first = fit_probes("categorical", x, y, config())
    assert (fit_probes("categorical", x, y, config(), init=first).n_iter < first.n_iter).all()


@pytest.mark.parametrize("kind", KINDS)
def test_stored_probes_score_as_before_on_other_activations(kind):
    x, y = draw(kind)
    both = torch.cat([y, y.flip(-1)])
    probes = fit_probes(kind, x, both, config())
    tensors = probes.tensors(slice(len(y)))
    assert tensors["weight"].dtype == tensors["intercept"].dtype == torch.float32
    loaded = load_probes(kind, tensors | {"place": torch.zeros(3)})
    other_x, other_y = draw(kind, seed=5)
    mask = torch.from_numpy(np.random.default_rng(1).random((N_LABELS, N)) < 0.5)
    own = probes.score(other_x, torch.cat([other_y, other_y]), mask)
    for found, expected in zip(loaded.score(other_x, other_y, mask), own, strict=True):
        torch.testing.assert_close(found, expected[:, :, : len(y)], rtol=1e-4, atol=1e-5)
    for label in range(N_LABELS):
        for found, expected in zip(
            loaded.planes(1, label, slice(None)), probes.planes(1, label, slice(len(y))), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "scalar"])
def test_probes_cannot_tell_on_their_planes(kind):
    x, y = draw(kind)
    y[:, 1] = y[:, 1, :1]  # nothing to learn at label 1
    probes = fit_probes(kind, x, y, config())
    assert probes.planes(0, 1, slice(None)).directions.shape == (0, D)
    directions, offsets = probes.planes(1, 2, slice(None))
    assert directions.shape == (len(y), D)
    unit, shift = affine_projection(directions, offsets)
    point = x[1, 2, 0].double()
    moved = torch.zeros(N_LAYERS, N_LABELS, 1, D, dtype=torch.float64)
    moved[1, 2, 0] = point - (unit @ point + shift) @ unit
    neutral = y[:, 2].double().mean(1) if kind == "scalar" else torch.zeros(len(y)).double()
    torch.testing.assert_close(probes.values(moved)[1, 2, :, 0], neutral, rtol=0, atol=1e-9)


def test_dependent_rows_are_left_out():
    rows = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 0], [1.0, 1e-3, 0], [5.0, 7.0, 0], [0, 0, 1e-8]])
    planes = independent(rows, torch.arange(6.0))
    assert planes.offsets.tolist() == [0, 3, 5]
    assert torch.equal(planes.directions, rows[[0, 3, 5]])


@pytest.mark.parametrize("kind", KINDS)
def test_majority_is_scikit_learns_dummy(kind):
    _, y = draw(kind)
    _, y_test = draw(kind, seed=1)
    y, y_test = y.clone(), y_test.clone()
    mask, mask_test = (torch.from_numpy(np.random.default_rng(s).random((N_LABELS, N)) < 0.6) for s in (1, 2))
    if kind == "categorical":
        mask &= y[0] != 3
    y[~mask.expand_as(y)], y_test[~mask_test.expand_as(y)] = 77, 77
    found = majority_scores(kind, y, y_test, mask, mask_test)
    for label in range(N_LABELS):
        for output in range(len(y)):
            train, test = y[output, label, mask[label]].numpy(), y_test[output, label, mask_test[label]].numpy()
            nothing = np.zeros((len(train), 1)), np.zeros((len(test), 1))
            if kind == "scalar":
                guess = DummyRegressor().fit(nothing[0], train).predict(nothing[1])
                expected = mean_squared_error(test, guess), r2_score(test, guess)
            else:
                test = test[np.isin(test, train)]
                model = DummyClassifier(strategy="prior").fit(nothing[0], train)
                nothing = np.zeros((len(test), 1))
                rates = model.predict_proba(nothing)
                expected = log_loss(test, rates, labels=model.classes_), accuracy_score(test, model.predict(nothing))
            for value, wanted in zip(found, expected, strict=True):
                assert float(value[label, output]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_majority_is_nan_where_a_probe_is_not_fitted(kind):
    x, y = draw(kind)
    y[:, 1] = y[:, 1, :1]
    scores = majority_scores(kind, y, y)
    fitted = fit_probes(kind, x, y, config(), n_classes=4).fitted[0]
    assert fitted.any()
    assert not fitted.all()
    assert torch.equal(scores.loss.isnan(), ~fitted)
    assert torch.equal(scores.score.isnan(), ~fitted)


def test_pooled_probe_is_one_on_the_examples_of_all_labels():
    x, y = draw("categorical")
    mask = torch.from_numpy(np.random.default_rng(1).random((N_LABELS, N)) < 0.7)
    pooled = pool_labels(x, y, mask)
    probes = fit_probes("categorical", pooled.x, pooled.y, config(), example_mask=pooled.example_mask)
    by_hand = torch.cat([x[:, label, mask[label]] for label in range(N_LABELS)], 1)[:, None]
    labels = torch.cat([y[:, label, mask[label]] for label in range(N_LABELS)], 1)[:, None]
    expected = fit_softmax(by_hand, labels, n_classes=4, c=10.0, max_iter=100)
    torch.testing.assert_close(probes.weight, expected.weight, rtol=1e-4, atol=1e-5)
    shared = share_labels(probes, N_LABELS)
    each = shared.example_loss(x, y, mask)
    assert each.shape == (N_LAYERS, N_LABELS, 1, N)
    torch.testing.assert_close(each[:, :, 0][:, mask], probes.example_loss(*pooled)[:, 0, 0][:, mask.flatten()])
    torch.testing.assert_close(each.nanmean((1, 3)), probes.train.loss[:, 0])
    assert (shared.n_unseen(y, mask) == 0).all()
    with pytest.raises(ValueError, match=f"must have one label to share, got {N_LABELS}"):
        share_labels(shared, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_probe_is_every_labels(kind):
    x, y = draw(kind)
    probes = fit_probes(kind, *pool_labels(x, y)[:2], config())
    shared = share_labels(probes, N_LABELS)
    for label in range(N_LABELS):
        own = shared.score(x, y)
        alone = probes.score(x[:, label : label + 1], y[:, label : label + 1])
        torch.testing.assert_close(own.loss[:, label], alone.loss[:, 0])
        for mine, one in zip(shared.planes(0, label, slice(None)), probes.planes(0, 0, slice(None)), strict=True):
            torch.testing.assert_close(mine, one)


def test_pooling_copies_only_what_it_must():
    x, y = draw("binary")
    pooled = pool_labels(x, y)
    assert pooled.example_mask is None
    assert pooled.x.data_ptr() == x.data_ptr()
    assert pooled.y.data_ptr() == y.data_ptr()
    wide = torch.randn(N_LAYERS, N_LABELS + 2, N, D)[:, 1:-1]
    assert pool_labels(wide, y).x.data_ptr() == wide.data_ptr()
    same = x[:, :1].expand(-1, N_LABELS, -1, -1)
    copied = pool_labels(same, y).x
    assert copied.data_ptr() != same.data_ptr()
    assert torch.equal(copied[0, 0, 2 * N :], same[0, 2])
    with pytest.raises(ValueError, match="must hold labels and examples to pool"):
        pool_labels(x[:, :0], y[:, :0])
