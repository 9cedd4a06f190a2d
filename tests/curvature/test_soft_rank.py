"""Soft ranks against numpy's singular values, planted spectra and their inequalities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from qfl_interp.curvature.soft_rank import (
    _gram,
    _of_spectrum,
    gradient_weighted,
    soft_ranks,
)


def soft_ranks_of_gram(gram):
    """The soft ranks from a checked Gram matrix."""
    return _of_spectrum(torch.linalg.eigvalsh(_gram(gram, "gram")))


def by_numpy(x):
    """From squared singular values."""
    s = np.linalg.svd(x, compute_uv=False) ** 2
    p = s / s.sum()
    kept = p[p > 0]
    return 1 / p.max(), 1 / (p**2).sum(), np.exp(-(kept * np.log(kept)).sum())


@pytest.mark.parametrize(("n", "d"), [(7, 3), (3, 7), (5, 5)])
@pytest.mark.parametrize("centre", [False, True])
def test_features_of_either_shape(n, d, centre):
    x = np.random.default_rng(n).normal(size=(n, d)) + 2.0
    expected = by_numpy(x - x.mean(axis=0) if centre else x)
    np.testing.assert_allclose(soft_ranks(torch.from_numpy(x), centre=centre), expected, rtol=1e-10)


def test_a_planted_spectrum():
    """Eigenvalues 4, 2, 2 of 8: shares 1/2, 1/4, 1/4."""
    found = soft_ranks(torch.diag(torch.tensor([4.0, 2.0, 2.0])).sqrt())
    assert found.stable_rank == pytest.approx(2)
    assert found.participation_ratio == pytest.approx(1 / (1 / 4 + 1 / 16 + 1 / 16))
    assert found.entropy_rank == pytest.approx(2**1.5)


def test_gram_and_features_agree():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k = x @ x.T
    np.testing.assert_allclose(soft_ranks_of_gram(k), soft_ranks(x), rtol=1e-10)


def test_scale_and_rotation_change_nothing():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, generator=g, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64)).Q
    for scale in (1e-150, 1.0, 1e150):
        np.testing.assert_allclose(soft_ranks(scale * x @ q), soft_ranks(x), rtol=1e-10)


def test_inequalities_on_random_matrices():
    """Stable <= participation <= entropy <= rank, participation <= stable^2, stable <= gradient-weighted."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        n, rank = int(rng.integers(2, 9)), int(rng.integers(1, 9))
        x = torch.from_numpy(rng.normal(size=(n, rank)) * np.exp(rng.normal(size=rank)))
        b = torch.from_numpy(rng.normal(size=(n, 3)))
        found = soft_ranks(x)
        order = (1, *found, min(n, rank))
        assert all(low <= high * (1 + 1e-9) for low, high in itertools.pairwise(order))
        assert found.participation_ratio <= found.stable_rank**2 * (1 + 1e-9)
        assert found.stable_rank <= gradient_weighted(x @ x.T, b @ b.T) * (1 + 1e-9)


def test_gradient_weighted_by_hand_and_at_its_ends():
    """K = diag(3, 1), C = diag(1, 2): tr K = 4, tr CK = 5, tr CK^2 = 11."""
    k = torch.diag(torch.tensor([3.0, 1.0]))
    assert gradient_weighted(k, torch.diag(torch.tensor([1.0, 2.0]))) == pytest.approx(20 / 11)
    ranks = soft_ranks_of_gram(k)
    assert gradient_weighted(k, torch.eye(2)) == pytest.approx(ranks.participation_ratio)
    assert gradient_weighted(k, torch.diag(torch.tensor([1.0, 0.0]))) == pytest.approx(ranks.stable_rank)
    # Off-diagonal residuals count: C = [[1, 1], [1, 1]], K = [[2, 1], [1, 2]]: CK = 3 ones, CK^2 = 9 ones.
    k = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert gradient_weighted(k, torch.ones(2, 2)) == pytest.approx(4 * 6 / 18)
    # A matrix that is not normal in their product: tr(C K^2), not tr((C K)^2).
    k, c = torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert gradient_weighted(k, c) == pytest.approx(3 * 5 / (5 + 3 * 2))


def test_a_common_offset_hides_nothing_when_centred():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    assert soft_ranks(x + 1e6).stable_rank == pytest.approx(1, abs=1e-9)
    assert soft_ranks(x + 1e6, centre=True).stable_rank == pytest.approx(2)


@pytest.mark.parametrize(
    ("features", "centre", "message"),
    [
        (torch.ones(1, 3), False, "at least 2 examples, got 1"),
        (torch.zeros(3, 2), False, "must have a non-zero entry"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), False, "must be finite, got 1 of 4"),
        (torch.tensor([[1.0, float("inf")], [0.0, 1.0]]), False, "must be finite"),
        (torch.full((4, 2), 0.1), True, "must differ between examples"),
    ],
)
def test_bad_features_are_refused(features, centre, message):
    with pytest.raises(ValueError, match=message):
        soft_ranks(features, centre=centre)


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.ones(1, 1), "at least 2 examples"),
        (torch.zeros(2, 2), "non-zero entry"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric and positive semidefinite, got an asymmetry of 0.5"),
        (torch.tensor([[1.0, 0.0], [0.0, -1.0]]), "lowest diagonal entry of -1"),
        (torch.tensor([[0.5, 1.0], [1.0, 0.5]]), "positive semidefinite, got eigenvalues from -0.5 to 1.5"),
    ],
)
def test_bad_grams_are_refused(gram, message):
    with pytest.raises(ValueError, match=message):
        soft_ranks_of_gram(gram)


def test_gradient_weighted_refuses_what_has_no_value():
    with pytest.raises(ValueError, match=r"must have the gram's shape \(2, 2\), got \(3, 3\)"):
        gradient_weighted(torch.eye(2), torch.eye(3))
    with pytest.raises(ValueError, match="features are not zero"):
        gradient_weighted(torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0])))
