"""Mean shifts against class means and scikit-learn's regression slopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from qfl_interp.probes import mean_shift

N_LAYERS, N_LABELS, N, D = 2, 3, 60, 5


@pytest.fixture
def x():
    return torch.from_numpy(np.random.default_rng(0).normal(3, 2, (N_LAYERS, N_LABELS, N, D)).astype(np.float32))


@pytest.mark.parametrize("masked", [False, True])
def test_classes_are_told_apart_by_their_means(x, masked):
    rng = np.random.default_rng(1)
    mask = torch.from_numpy(rng.random((N_LABELS, N)) < 0.6) if masked else None
    binary = torch.from_numpy(rng.integers(2, size=(2, N_LABELS, N)))
    classes = torch.from_numpy(rng.integers(3, size=(1, N_LABELS, N)))
    several = mean_shift("multilabel", x, binary, example_mask=mask)
    indicators = mean_shift("categorical", x, classes, example_mask=mask)
    assert several.shape == (N_LAYERS, N_LABELS, 2, D)
    assert indicators.shape == (N_LAYERS, N_LABELS, 3, D)
    for layer in range(N_LAYERS):
        for label in range(N_LABELS):
            kept = mask[label] if masked else torch.ones(N, dtype=torch.bool)
            for found, told in (
                (several, binary[:, label]),
                (indicators, classes[0, label] == torch.arange(3)[:, None]),
            ):
                for row, t in enumerate(told.bool()):
                    at = x[layer, label].double()
                    expected = at[kept & t].mean(0) - at[kept & ~t].mean(0)
                    torch.testing.assert_close(found[layer, label, row], expected, rtol=1e-9, atol=1e-9)


def test_numbers_have_a_slope(x):
    y = torch.from_numpy(np.random.default_rng(2).normal(size=(1, N_LABELS, N)))
    found = mean_shift("scalar", x, y)
    for label in range(N_LABELS):
        slope = LinearRegression().fit(y[0, label, :, None].numpy(), x[1, label].double().numpy()).coef_[:, 0]
        np.testing.assert_allclose(found[1, label, 0], slope, rtol=1e-9)


def test_what_does_not_vary_has_no_direction(x):
    y = torch.zeros(1, N_LABELS, N, dtype=torch.int64)
    y[:, 0, ::2] = 1
    found = mean_shift("binary", x, y)
    assert (found[:, 0] != 0).all()
    assert (found[:, 1:] == 0).all()
