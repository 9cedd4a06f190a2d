"""Probes against scikit-learn in float64, the reference implementation's fits, and planted answers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from qfl_interp.probes import LogisticProbes, fit_logistic, shuffle_labels

C = 100.0
N, D = 600, 12
GOLDEN = Path(__file__).parent / "golden" / "probe_fits.json"


def objective(x: np.ndarray, y: np.ndarray, weight: np.ndarray, intercept: float) -> float:
    """scikit-learn's: C * sum of log losses + ||w||^2 / 2."""
    logit = x.astype(np.float64) @ weight + intercept
    return float(C * np.logaddexp(0, np.where(y == 1, -logit, logit)).sum() + weight @ weight / 2)


def mean_loss(x: np.ndarray, y: np.ndarray, weight: np.ndarray, intercept: float) -> float:
    logit = x.astype(np.float64) @ weight + intercept
    return float(np.logaddexp(0, np.where(y == 1, -logit, logit)).mean())


def reference(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """The optimum by scikit-learn's Newton solver in float64, to 1e-10, in standardised coordinates.

    The change of coordinates is undone in the penalty by no solver of scikit-learn, so only a shift is applied.
    """
    x = x.astype(np.float64)
    mean = x.mean(0)
    model = LogisticRegression(C=C, tol=1e-10, max_iter=10_000, solver="newton-cholesky")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its line search gives up at rounding level
        model.fit(x - mean, y)
    weight = model.coef_[0]
    return weight, float(model.intercept_[0] - weight @ mean)


def residual_stream(rng: np.random.Generator, n: int, strength: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Low rank structure, an offset, noise, and one bit written along a direction."""
    y = rng.integers(0, 2, n)
    latent = rng.standard_normal((n, 6)) / np.sqrt(1 + np.arange(6))
    x = 3 * rng.standard_normal(D) + latent @ rng.standard_normal((6, D)) + noise * rng.standard_normal((n, D))
    return x + strength * np.outer(y - 0.5, rng.standard_normal(D)), y


def make_case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """2 N examples in float32: the first half to train on, the second to test."""
    rng = np.random.default_rng(sum(map(ord, name)))
    n = 2 * N
    x, y = residual_stream(rng, n, 0.0, 0.3)
    match name:
        case "random":
            y = rng.integers(0, 2, n)
        case "weak":
            x, y = residual_stream(rng, n, 0.35, 0.5)
        case "strong":
            x, y = residual_stream(rng, n, 1.3, 0.3)
        case "separable":
            x, y = residual_stream(rng, n, 6.0, 0.3)
        case "scaled":  # one direction, along no axis, 1000 times larger than the rest
            x, y = residual_stream(rng, n, 0.5, 0.5)
            u = rng.standard_normal(D)
            x = x + 1000 * np.outer(rng.standard_normal(n), u / np.linalg.norm(u))
        case "ill_conditioned":  # singular values over six decades
            x, y = residual_stream(rng, n, 1.0, 0.5)
            u, _ = np.linalg.qr(rng.standard_normal((D, D)))
            x = x @ u @ np.diag(np.geomspace(1e-3, 1e3, D)) @ u.T
        case "constant_columns":
            x, y = residual_stream(rng, n, 0.5, 0.5)
            x[:, :3] = np.array([0.0, 7.1, -1e4])
            x[:, 4] = x[:, 5]
        case "imbalanced":
            y = (rng.random(n) < 0.01).astype(int)
            y[[0, N]] = 1
            x = x + 0.8 * np.outer(y, rng.standard_normal(D))
    return x.astype(np.float32), y


CASES = (
    "random",
    "weak",
    "strong",
    "separable",
    "scaled",
    "ill_conditioned",
    "constant_columns",
    "imbalanced",
)


def fit_one(x: np.ndarray, y: np.ndarray, **kwargs) -> LogisticProbes:
    """One layer, label and output."""
    options = {"c": C, "max_iter": 100} | kwargs
    return fit_logistic(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None], **options)


def score_one(probes: LogisticProbes, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    scores = probes.score(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None])
    return scores.log_loss.item(), scores.accuracy.item()


@pytest.mark.parametrize("name", CASES)
def test_optimum_is_scikit_learns(name):
    x, y = make_case(name)
    weight, intercept = reference(x[:N], y[:N])
    probes = fit_one(x[:N], y[:N])
    assert probes.fitted.all()
    assert probes.converged.all()
    best = objective(x[:N], y[:N], weight, intercept)
    ours = objective(x[:N], y[:N], probes.weight[0, 0, 0].numpy(), probes.intercept.item())
    assert ours <= best * (1 + 1e-6)
    assert ours >= best * (1 - 1e-4), "the reference itself is off: this case proves nothing"
    expected = mean_loss(x[N:], y[N:], weight, intercept)
    loss, accuracy = score_one(probes, x[N:], y[N:])
    assert loss == pytest.approx(expected, abs=1e-4)
    logit = x[N:].astype(np.float64) @ weight + intercept
    assert accuracy == pytest.approx(((logit > 0) == y[N:]).mean(), abs=2 / N)
    assert probes.train.log_loss.item() == pytest.approx(mean_loss(x[:N], y[:N], weight, intercept), abs=1e-5)


def test_cases_cover_what_they_say():
    losses = {name: fit_one(*(a[:N] for a in make_case(name))).train.log_loss.item() for name in CASES}
    assert losses["random"] > 0.65
    assert 0.2 < losses["weak"] < 0.6
    assert 0.0005 < losses["strong"] < 0.05
    assert losses["separable"] < 0.001


def test_separable_data_converges_to_the_reference_weights():
    x, y = make_case("separable")
    weight, intercept = reference(x[:N], y[:N])
    probes = fit_one(x[:N], y[:N])
    np.testing.assert_allclose(probes.weight[0, 0, 0], weight, rtol=1e-3, atol=1e-3 * np.abs(weight).max())
    assert probes.intercept.item() == pytest.approx(intercept, rel=1e-3, abs=1e-3 * np.abs(weight).max())


def golden(kind: str) -> list[dict]:
    return [fit for fit in json.loads(GOLDEN.read_text())["fits"] if fit["kind"] == kind]


@pytest.mark.parametrize("fit", golden("binary"), ids=str)
def test_golden_binary(fit):
    x_train, x_test = np.array(fit["X_train"]), np.array(fit["X_test"])
    y_train, y_test = np.array(fit["y_train"]), np.array(fit["y_test"])
    probes = fit_one(x_train, y_train)
    loss, accuracy = score_one(probes, x_test, y_test)
    found = {
        "train_acc": probes.train.accuracy.item(),
        "train_log_loss": probes.train.log_loss.item(),
        "test_acc": accuracy,
        "test_log_loss": loss,
    }
    assert found == pytest.approx(fit["metrics"], rel=1e-3)
    np.testing.assert_allclose(probes.weight[0, 0], fit["coef"], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(probes.intercept[0, 0], fit["intercept"], rtol=1e-2, atol=1e-2)
