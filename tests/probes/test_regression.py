"""Least-squares probes against numpy, scikit-learn, the reference implementation's fits, and planted answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error, r2_score

from qfl_interp.probes import RegressionProbes, fit_regression, shuffle_labels
from qfl_interp.probes.regression import fit_ridge_path

GOLDEN = Path(__file__).parents[1] / "golden" / "probe_fits.json"
N, D, N_LAYERS, N_LABELS = 500, 9, 2, 3


def draw(condition: float = 1e3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations in float32 with an offset and the given ratio of scales; small integers as labels."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(1, 1 / condition, D)
    x = 3 + rng.standard_normal((N_LAYERS, N_LABELS, N, D)) * scales @ rng.standard_normal((D, D))
    y = np.rint(4 * x[0, :, :, 0] + rng.standard_normal((N_LABELS, N)))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))[None]


def lstsq(x: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, float]:
    """numpy's solution with intercept, in float64, on centred data."""
    z, t = x.double().numpy(), y.double().numpy()
    weight = np.linalg.lstsq(z - z.mean(0), t - t.mean(), rcond=None)[0]
    return weight, float(t.mean() - z.mean(0) @ weight)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("masked", [False, True])
def test_every_site_is_numpys_least_squares_fit(condition, masked):
    x, y = draw(condition)
    mask = torch.from_numpy(np.random.default_rng(1).random((N_LABELS, N)) < 0.6) if masked else None
    probes = fit_regression(x, y, example_mask=mask)
    x_test, y_test = draw(condition, seed=2)
    scores = probes.score(x_test, y_test)
    for layer in range(N_LAYERS):
        for label in range(N_LABELS):
            kept = slice(None) if mask is None else mask[label]
            weight, intercept = lstsq(x[layer, label][kept], y[0, label][kept])
            found = x_test[layer, label].double().numpy() @ weight + intercept
            target = y_test[0, label].numpy()
            assert float(scores.loss[layer, label, 0]) == pytest.approx(mean_squared_error(target, found), rel=1e-6)
            assert float(scores.score[layer, label, 0]) == pytest.approx(r2_score(target, found), rel=1e-6)
            np.testing.assert_allclose(probes.values(x_test)[layer, label, 0], found, rtol=1e-5, atol=1e-5)


def test_a_masked_example_does_not_count():
    x, y = draw()
    mask = torch.ones(N_LABELS, N, dtype=torch.bool)
    mask[1, ::3] = False
    spoilt_x, spoilt_y = x.clone(), y.clone()
    spoilt_x[:, 1, ::3], spoilt_y[:, 1, ::3] = 1e6, 999
    clean, spoilt = (fit_regression(a, b, example_mask=mask) for a, b in ((x, y), (spoilt_x, spoilt_y)))
    torch.testing.assert_close(spoilt.weight, clean.weight, rtol=0, atol=0)
    torch.testing.assert_close(spoilt.train.loss, clean.train.loss, rtol=0, atol=0)
    torch.testing.assert_close(spoilt.train.score, clean.train.score, rtol=0, atol=0)
    each = spoilt.example_loss(spoilt_x, spoilt_y, mask)
    assert torch.equal(each[0, :, 0].isnan(), ~mask)
    torch.testing.assert_close(each.nanmean(-1), spoilt.train.loss)


def test_a_label_that_does_not_vary_is_skipped_even_among_masked_ones():
    x, y = draw()
    y[0, 1] = 7
    y[0, 2, 0] = 8
    y[0, 2, 1:] = 5
    mask = torch.ones(N_LABELS, N, dtype=torch.bool)
    mask[2, 0] = False
    probes = fit_regression(x, y, example_mask=mask)
    assert probes.fitted[:, :, 0].tolist() == [[True, False, False]] * N_LAYERS
    assert probes.train.loss[:, 1:].isnan().all()
    assert (probes.weight[:, 1:] == 0).all()
    assert probes.train.loss[:, 0].isfinite().all()


def test_a_planted_number_is_found_and_a_shuffled_one_is_not():
    x, _ = draw(1.0)
    direction = torch.randn(D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x[1] @ direction.float()).double()[None] + 2.5
    both = torch.cat([y, shuffle_labels(y, np.random.default_rng(0))])
    probes = fit_regression(x, both)
    assert float(probes.train.score[1, :, 0].min()) > 1 - 1e-9
    np.testing.assert_allclose(probes.weight[1, 0, 0], direction, rtol=1e-4)
    assert float(probes.train.score[1, :, 1].max()) < 0.1


@pytest.mark.parametrize("condition", [1e8, 1e11])
def test_badly_scaled_coordinates_cost_no_accuracy(condition):
    """In float64: normal equations would see nothing of a coordinate 1e-8 as large as another."""
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.standard_normal((1, 1, N, D)) * np.geomspace(1, 1 / condition, D))
    truth = np.arange(1.0, D + 1) * np.geomspace(1, condition, D)
    y = torch.from_numpy((x[0, 0].numpy() @ truth)[None, None] + 5)
    probes = fit_regression(x, y)
    np.testing.assert_allclose(probes.weight[0, 0, 0], truth, rtol=1e-4 if condition > 1e9 else 1e-6)
    assert float(probes.train.score) > 1 - 1e-9


def test_dependent_coordinates_give_the_smallest_weights():
    x, y = draw(1.0)
    x[..., 4], x[..., 5] = x[..., 3], 1.0
    probes = fit_regression(x, y)
    weight, _ = lstsq(x[0, 0], y[0, 0])
    np.testing.assert_allclose(probes.weight[0, 0, 0], weight, rtol=1e-6, atol=1e-9)


def test_golden():
    fits = [fit for fit in json.loads(GOLDEN.read_text())["fits"] if "mse" in str(fit["metrics"])]
    assert fits, "the file holds a regression"
    for fit in fits:
        x, x_test = (torch.tensor(fit[name])[None, None] for name in ("X_train", "X_test"))
        y, y_test = (torch.tensor(fit[name])[None, None] for name in ("y_train", "y_test"))
        probes = fit_regression(x, y)
        for split, scores in (("train", probes.train), ("test", probes.score(x_test, y_test))):
            for name, found in (("mse", scores.loss), ("r2", scores.score)):
                expected = next(v for k, v in fit["metrics"].items() if split in k and name in k)
                assert float(found) == pytest.approx(expected, rel=1e-3), (split, name)
        np.testing.assert_allclose(probes.weight.ravel(), np.ravel(fit["coef"]), rtol=1e-2, atol=1e-2)


def test_bad_input_is_refused():
    x, y = draw()
    bad = y.double()
    bad[0, 1, 3] = torch.nan
    with pytest.raises(ValueError, match="labels must be finite, got nan at output 0, label 1, example 3"):
        fit_regression(x, bad)
    spoilt = x.clone()
    spoilt[1, 2, 5, 0] = torch.inf
    with pytest.raises(ValueError, match="activations must be finite, got inf at layer 1, label 2, example 5"):
        fit_regression(spoilt, y)
    probes = fit_regression(x, y)
    assert isinstance(probes, RegressionProbes)
    with pytest.raises(ValueError, match="y must have the probes' 1 outputs, got 2"):
        probes.score(x, torch.cat([y, y]))
    with pytest.raises(ValueError, match="activations must be finite"):
        probes.score(spoilt, y)
    assert "2 layers x 3 labels x 1 outputs" in repr(probes)


@pytest.mark.parametrize("alpha", [0.1, 30.0])
@pytest.mark.parametrize("masked", [False, True])
def test_ridge_is_scikit_learns(alpha, masked):
    x, y = draw(1e3)
    mask = torch.from_numpy(np.random.default_rng(1).random((N_LABELS, N)) < 0.6) if masked else None
    both = torch.cat([y, y.flip(-1)])
    probes = fit_regression(x, both, alpha=alpha, example_mask=mask)
    x_test, y_test = draw(1e3, seed=2)
    scores = probes.score(x_test, torch.cat([y_test, y_test]))
    assert (probes.strength == 1 / alpha).all()
    for layer, label, output in np.ndindex(N_LAYERS, N_LABELS, 2):
        kept = slice(None) if mask is None else mask[label]
        model = Ridge(alpha=alpha).fit(x[layer, label][kept].double().numpy(), both[output, label][kept].numpy())
        found = model.predict(x_test[layer, label].double().numpy())
        expected = mean_squared_error(y_test[0, label].numpy(), found)
        assert float(scores.loss[layer, label, output]) == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(probes.weight[layer, label, output], model.coef_, rtol=1e-6, atol=1e-8)


def test_ridge_shrinks_and_its_path_shares_one_factorisation(monkeypatch):
    x, y = draw()
    calls = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(1) or svd(*a, **k))
    path = fit_ridge_path(x, y, [0.0, 1.0, 100.0])
    assert len(calls) == N_LAYERS * N_LABELS
    norms = torch.stack([probes.weight.norm(dim=-1) for probes in path])
    assert (norms[:-1] > norms[1:]).all()
    torch.testing.assert_close(path[1].weight, fit_regression(x, y, alpha=1.0).weight)


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_bad_penalties_are_refused(alpha):
    x, y = draw()
    with pytest.raises(ValueError, match="alpha must be finite and not negative"):
        fit_regression(x, y, alpha=alpha)
