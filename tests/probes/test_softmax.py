"""Softmax probes against scikit-learn in float64, by hand, and on planted answers."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from qfl_interp.probes import SoftmaxProbes, fit_logistic, fit_softmax, shuffle_labels, softmax_newton
from qfl_interp.probes.preconditioners import _sampling_weights

C, K = 100.0, 4
N, D = 400, 10


def draw(strength: float, seed: int = 0, n: int = 2 * N, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """An offset, correlated coordinates, and a class written along directions of its own."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    x = 3 * rng.standard_normal(D) + rng.standard_normal((n, 5)) @ rng.standard_normal((5, D))
    x += 0.5 * rng.standard_normal((n, D)) + strength * rng.standard_normal((k, D))[y]
    return x.astype(np.float32), y


def make_case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """2 N examples: the first half to train on, the second to test."""
    rng = np.random.default_rng(sum(map(ord, name)))
    match name:
        case "random":
            x, y = draw(0.0)
        case "weak":
            x, y = draw(0.4)
        case "strong":
            x, y = draw(1.5)
        case "separable":
            x, y = draw(6.0)
        case "ill_conditioned":  # singular values over six decades
            x, y = draw(0.6)
            u, _ = np.linalg.qr(rng.standard_normal((D, D)))
            x = (x @ u @ np.diag(np.geomspace(1e-3, 1e3, D)) @ u.T).astype(np.float32)
        case "constant_columns":
            x, y = draw(0.6)
            x[:, 2], x[:, 4] = -1e3, x[:, 5]
        case "imbalanced":
            x, y = draw(0.8)
            y = np.where((y > 1) & (rng.random(2 * N) < 0.95), 0, y)
        case _:
            raise AssertionError(name)
    return x, y


CASES = ("random", "weak", "strong", "separable", "ill_conditioned", "constant_columns", "imbalanced")


def reference(x: np.ndarray, y: np.ndarray, c: float = C) -> LogisticRegression:
    """scikit-learn's Newton solver in float64; centring only moves the intercept."""
    mean = x.astype(np.float64).mean(0)
    model = LogisticRegression(C=c, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its line search gives up at rounding level
        model.fit(x.astype(np.float64) - mean, y)
    model.intercept_ = model.intercept_ - model.coef_ @ mean
    return model


def log_loss(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> float:
    """Mean over the examples."""
    logs = model.predict_log_proba(x.astype(np.float64))
    return float(-logs[np.arange(len(y)), np.searchsorted(model.classes_, y)].mean())


def fit(x: np.ndarray, y: np.ndarray, **kwargs) -> SoftmaxProbes:
    """One layer, label and output."""
    options = {"n_classes": K, "c": C, "max_iter": 100} | kwargs
    return fit_softmax(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None], **options)


def as_batch(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None]


@pytest.mark.parametrize("name", CASES)
def test_optimum_is_scikit_learns(name):
    x, y = make_case(name)
    model, probes = reference(x[:N], y[:N]), fit(x[:N], y[:N])
    assert probes.fitted.all()
    assert probes.converged.all()
    scores = probes.score(*as_batch(x[N:], y[N:]))
    assert float(scores.loss) == pytest.approx(log_loss(model, x[N:], y[N:]), abs=1e-3)
    assert float(scores.score) == pytest.approx(model.score(x[N:].astype(np.float64), y[N:]), abs=1.01 / N)
    assert float(probes.train.loss) == pytest.approx(log_loss(model, x[:N], y[:N]), abs=1e-5)
    ours, theirs = (
        C * N * loss + (weight**2).sum() / 2
        for loss, weight in (
            (float(probes.train.loss), probes.weight.numpy()),
            (log_loss(model, x[:N], y[:N]), model.coef_),
        )
    )
    assert ours <= theirs * (1 + 1e-8)
    assert ours >= theirs * (1 - 1e-4), "the reference itself is off: this case proves nothing"


def test_cases_cover_what_they_say():
    losses = {name: float(fit(*(a[:N] for a in make_case(name))).train.loss) for name in CASES}
    assert losses["random"] > 1.2
    assert 0.2 < losses["weak"] < 1.2
    assert losses["strong"] < 0.2
    assert losses["separable"] < 0.001


def test_gradient_vanishes_and_rows_sum_to_zero():
    """By autograd, on the objective as it is written in the docstring."""
    x, y = make_case("weak")
    probes = fit(x, y)
    weight = probes.weight[0, 0, 0].clone().requires_grad_()
    intercept = probes.intercept[0, 0, 0].clone().requires_grad_()
    logits = torch.from_numpy(x).double() @ weight.T + intercept
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
    objective = C * loss + weight.square().sum() / 2
    gradients = torch.autograd.grad(objective, (weight, intercept))
    for gradient in gradients:
        assert float(gradient.norm()) < 1e-3 * float(objective.detach()) ** 0.5
    torch.testing.assert_close(probes.weight.sum(3), torch.zeros(1, 1, 1, D).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(probes.intercept.sum(3), torch.zeros(1, 1, 1).double(), rtol=0, atol=1e-10)


def test_the_hessians_sample_is_used_and_reaches_the_optimum(monkeypatch):
    """Overlap in some classes and none in others: the product preconditioner alone takes many inner steps."""
    used = []
    sample = softmax_newton.sample_preconditioner
    monkeypatch.setattr(softmax_newton, "sample_preconditioner", lambda *a: used.append(1) or sample(*a))
    monkeypatch.setattr(softmax_newton, "_INNER_PRODUCT_MAX", 3)
    x, y = draw(1.0, k=6, n=N)
    probes = fit(x, y, n_classes=6)
    assert used
    assert probes.converged.all()
    assert float(probes.train.loss) == pytest.approx(log_loss(reference(x, y), x, y), abs=1e-6)
    used.clear()
    monkeypatch.setattr(softmax_newton, "_SAMPLE_COLUMNS_MAX", 10)
    without = fit(x, y, n_classes=6)
    assert not used
    torch.testing.assert_close(without.weight, probes.weight, rtol=1e-3, atol=1e-3)


def test_a_class_that_is_missing_is_left_out_and_counted():
    x, y = make_case("weak")
    seen = y[:N] != 2
    probes = fit(x[:N][seen], y[:N][seen])
    assert probes.classes_present.tolist() == [[[True, True, False, True]]]
    assert (probes.weight[..., 2, :] == 0).all()
    model = reference(x[:N][seen], y[:N][seen])
    known = y[N:] != 2
    data = as_batch(x[N:], y[N:])
    scores = probes.score(*data)
    assert float(scores.loss) == pytest.approx(log_loss(model, x[N:][known], y[N:][known]), abs=1e-4)
    assert float(scores.score) == pytest.approx(model.score(x[N:][known], y[N:][known]), abs=1e-9)
    assert probes.n_unseen(data[1]).tolist() == [[int((~known).sum())]]
    assert probes.example_loss(*data)[0, 0, 0].isnan().tolist() == (~known).tolist()
    probability = torch.softmax(probes.logits(data[0]), 3)[0, 0, 0]
    assert (probability[2] == 0).all()
    np.testing.assert_allclose(probability[[0, 1, 3]].T, model.predict_proba(x[N:].astype(np.float64)), atol=1e-4)


def test_two_classes_left_give_the_binary_probe():
    x, y = make_case("strong")
    two = np.where(y % 2 == 0, 1, 3)
    probes = fit(x, two)
    x_t, y_t = as_batch(x, (two == 3).astype(int))
    binary = fit_logistic(x_t, y_t, c=C, max_iter=100)
    difference = probes.weight[..., 3, :] - probes.weight[..., 1, :]
    torch.testing.assert_close(difference, binary.weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(probes.train.loss, binary.train.loss, rtol=1e-6, atol=1e-8)


def test_one_class_is_not_fitted():
    x, y = make_case("weak")
    probes = fit(x, np.full_like(y, 3))
    assert not probes.fitted.any()
    assert not probes.converged.any()
    assert (probes.weight == 0).all()
    assert probes.train.loss.isnan().all()
    assert probes.example_loss(*as_batch(x, y)).isnan().all()
    assert probes.score(*as_batch(x, y)).score.isnan().all()
    assert probes.planes(0, 0, slice(1)).directions.shape == (0, D)
    assert "4 classes, d_model=10, skipped=1, not converged=0" in repr(probes)


def stack() -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers, three labels, two outputs (the second shuffled)."""
    cases = [make_case(name) for name in ("weak", "strong", "random")]
    x = torch.stack([torch.from_numpy(case[0]) for case in cases])[None]
    y = torch.stack([torch.from_numpy(case[1]) for case in cases])[None]
    x = torch.cat([x, x.flip(-1) + torch.linspace(0, 1, 2 * N)[:, None]])
    return x, torch.cat([y, shuffle_labels(y, np.random.default_rng(1))])


@pytest.mark.parametrize("chunk", [1, 2**26])
def test_a_batch_equals_its_problems_one_by_one(monkeypatch, chunk):
    monkeypatch.setattr("qfl_interp.probes.layer_labels.CHUNK_BYTES", chunk)
    x, y = stack()
    probes = fit_softmax(x, y, n_classes=K, c=C, max_iter=100)
    for layer in range(2):
        for label in range(3):
            for output in range(2):
                at = (layer, label, output)
                one = fit(x[layer, label].numpy(), y[output, label].numpy())
                torch.testing.assert_close(probes.weight[at], one.weight[0, 0, 0], rtol=1e-3, atol=1e-4)
                assert float(probes.train.loss[at]) == pytest.approx(float(one.train.loss), abs=1e-7)


def test_mask_equals_the_subset():
    x, y = stack()
    mask = torch.from_numpy(np.random.default_rng(0).random((3, 2 * N)) < 0.5)
    garbage, spoilt = torch.where(mask[None, :, :, None], x, torch.nan), torch.where(mask, y, -7)
    probes = fit_softmax(garbage, spoilt, n_classes=K, c=C, max_iter=100, example_mask=mask)
    scores, each = probes.score(garbage, spoilt, mask), probes.example_loss(garbage, spoilt, mask)
    torch.testing.assert_close(scores.loss, probes.train.loss)
    for label in range(3):
        kept = mask[label]
        subset = x[:, label, kept][:, None], y[:, label, kept][:, None]
        alone = fit_softmax(*subset, n_classes=K, c=C, max_iter=100)
        torch.testing.assert_close(probes.weight[:, label], alone.weight[:, 0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(probes.intercept[:, label], alone.intercept[:, 0], rtol=1e-3, atol=1e-3)
        for ours, theirs in zip(scores, alone.train, strict=True):
            torch.testing.assert_close(ours[:, label], theirs[:, 0], rtol=1e-5, atol=1e-6)
        assert (each[:, label].isnan() == ~kept).all()


def test_same_input_gives_the_same_bits_and_strides_do_not_matter():
    x, y = stack()
    first, second = (fit_softmax(x, y, n_classes=K, c=C, max_iter=100) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.intercept, second.intercept)
    strided = x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    assert not strided.is_contiguous()
    other = fit_softmax(strided, y, n_classes=K, c=C, max_iter=100)
    torch.testing.assert_close(other.weight, first.weight, rtol=1e-4, atol=1e-4)


def test_too_few_steps_are_reported():
    x, y = stack()
    short = fit_softmax(x, y, n_classes=K, c=C, max_iter=1)
    assert not short.converged[0, 1, 0]
    assert short.n_iter.max() == 1
    full = fit_softmax(x, y, n_classes=K, c=C, max_iter=100)
    assert full.converged.all()
    assert short.train.loss[0, 1, 0] > full.train.loss[0, 1, 0] + 1e-4


def test_warm_start_reaches_the_same_optimum_sooner():
    x, y = stack()
    cold = fit_softmax(x, y, n_classes=K, c=C, max_iter=100)
    again = fit_softmax(x, y, n_classes=K, c=C, max_iter=100, init=cold)
    assert (again.n_iter <= 1).all()
    torch.testing.assert_close(again.train.loss, cold.train.loss, rtol=1e-8, atol=1e-10)
    hopeless = dataclasses.replace(cold, weight=-1e4 * cold.weight)
    warm = fit_softmax(x, y, n_classes=K, c=C, max_iter=100, init=hopeless)
    assert warm.converged.all()
    torch.testing.assert_close(warm.train.loss, cold.train.loss, rtol=1e-6, atol=1e-8)


def test_planted_classes_are_found_and_shuffled_ones_are_at_chance():
    x, y = make_case("strong")
    x_t, y_t = as_batch(x, y)
    both = torch.cat([y_t, shuffle_labels(y_t, np.random.default_rng(0))])
    probes = fit_softmax(x_t[:, :, :N], both[:, :, :N], n_classes=K, c=C, max_iter=100)
    scores = probes.score(x_t[:, :, N:], both[:, :, N:])
    assert float(scores.score[0, 0, 0]) > 0.9
    # chance is 1/4; four standard errors of N trials
    assert float(scores.score[0, 0, 1]) < 0.25 + 4 * np.sqrt(0.25 * 0.75 / N)


def test_planes_are_where_all_present_logits_are_equal():
    x, y = make_case("weak")
    seen = y != 1
    probes = fit(x[seen], y[seen])
    directions, offsets = probes.planes(0, 0, slice(1))
    assert directions.shape == (2, D)
    point = x[0].astype(np.float64)
    moved = point - np.linalg.pinv(directions.numpy()) @ (directions.numpy() @ point + offsets.numpy())
    logits = probes.logits(torch.from_numpy(moved)[None, None, None])[0, 0, 0, :, 0]
    np.testing.assert_allclose(logits[[0, 2, 3]], logits[0].expand(3), atol=1e-6)
    assert torch.isneginf(logits[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"y": a["y"] + 1}, r"class ids in \[0, 4\), got 4 at output 0, label 0"),
        (lambda a: a | {"y": a["y"] - 1}, r"class ids in \[0, 4\), got -1 at output 0, label 0"),
        (lambda a: a | {"n_classes": 1}, "n_classes must be at least 2, got 1"),
        (lambda a: a | {"c": 0.0}, "c must be positive"),
        (lambda a: a | {"max_iter": 0}, "max_iter must be at least 1"),
        (lambda a: a | {"init": fit_softmax(**a | {"x": a["x"][..., :5]})}, "init must hold"),
    ],
    ids=["class too high", "negative class", "n_classes", "c", "max_iter", "init"],
)
def test_bad_arguments(change, message):
    x, y = stack()
    arguments = {"x": x, "y": y, "n_classes": K, "c": C, "max_iter": 2}
    fit_softmax(**arguments)
    with pytest.raises(ValueError, match=message):
        fit_softmax(**change(arguments))


def test_non_finite_activations_are_named():
    x, y = stack()
    probes = fit_softmax(x, y, n_classes=K, c=C, max_iter=100)
    x[0, 1, 7, 3] = torch.nan
    with pytest.raises(ValueError, match="got nan at layer 0, label 1, example 7, coordinate 3"):
        fit_softmax(x, y, n_classes=K, c=C, max_iter=100)
    with pytest.raises(ValueError, match="layer 0, label 1, example 7"):
        probes.score(x, y)


def test_intercepts_off_their_best_are_not_certified():
    """Without activations the weights' gradient is 0 whatever the intercepts: these alone decide."""
    y = torch.from_numpy(make_case("weak")[1])[None, None]
    n, kept = y.shape[2], torch.ones(1, y.shape[2], dtype=torch.bool)
    z = torch.cat([torch.zeros(1, n, D), torch.ones(1, n, 1)], -1).double()
    design, some = softmax_newton.Design(z), torch.ones(1, 1, dtype=torch.bool)
    start = torch.zeros(1, 1, K, D + 1, dtype=torch.float64)
    rows = softmax_newton._start(design, y, kept, torch.ones(1, 1, K, dtype=torch.bool), start, some, some.double())

    def certified(shift: float) -> bool:
        """Of the base rate with one intercept shifted."""
        logit = rows.logit + shift * torch.eye(K)[:1, :, None].double()
        moved = dataclasses.replace(rows, prob=torch.softmax(logit, 1))
        gradient = torch.zeros(1, K, D + 1, dtype=torch.float64)
        gradient[..., -1] = moved.prob.sum(-1) - torch.bincount(y[0, 0], minlength=K)
        # twice the true excess is about n p (1 - p) shift^2: 150 for a shift of 1, 1.5e-8 for one of 1e-5
        return bool(softmax_newton._certified(design, moved, gradient, torch.tensor([1e-6]).double()))

    assert certified(0.0)
    assert certified(1e-5)
    assert not certified(1e-2)


def test_a_sample_of_few_that_are_in_doubt():
    """A model that is certain of nearly all examples: those in doubt are all drawn, and no others."""
    doubt = torch.tensor([0.0, 0.3, 0.0, 1e-9, 0.0], dtype=torch.float64)
    assert _sampling_weights(doubt, 100).tolist() == [0, 1, 0, 1, 0]
    assert _sampling_weights(torch.zeros(3, dtype=torch.float64), 100).tolist() == [0, 0, 0]
    assert _sampling_weights(torch.full((8,), 0.5, dtype=torch.float64), 2).tolist() == [0.25] * 8
