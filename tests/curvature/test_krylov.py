"""Krylov spaces against whole matrices: Ritz pairs and residuals after restarts, and what a start can hide."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qfl_interp.curvature.krylov import Deflated, KrylovSpace

N = 60


class Matrix:
    """A random symmetric matrix as an operator, indefinite, with one eigenvalue that stands out a little."""

    def __init__(self, top=1.3):
        values = np.concatenate([[top], np.linspace(1, -2, N - 1)])
        self.vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
        self.values = values
        self.matrix = torch.from_numpy((self.vectors * values) @ self.vectors.T)

    def __len__(self):
        return N

    def product(self, vector):
        return self.matrix @ vector


class FromHere(Deflated):
    """Starts where it is told to."""

    def __init__(self, hessian, start):
        super().__init__(hessian, torch.zeros(0, len(hessian), dtype=torch.float64))
        self.start = start

    def random(self, rng):
        return self.start


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def basis(rows=3):
    vectors = np.random.default_rng(1).standard_normal((N, rows))
    return torch.from_numpy(np.linalg.qr(vectors)[0].T.copy())


def check_ritz(space, matrix, outside, k):
    """Vectors, values and residuals of the space from the matrix alone."""
    ritz = space.ritz(k)
    v = space.vectors(ritz)
    torch.testing.assert_close(v @ v.T, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-12)
    projector = torch.eye(N, dtype=torch.float64) - outside.T @ outside
    torch.testing.assert_close(v @ projector, v, rtol=0, atol=1e-12)
    images = v @ matrix @ projector
    torch.testing.assert_close(ritz.values, (v * images).sum(1), rtol=1e-11, atol=1e-12)
    residuals = (images - ritz.values[:, None] * v).norm(dim=1)
    torch.testing.assert_close(ritz.residuals, residuals, rtol=1e-9, atol=1e-12)


def test_ritz_pairs_and_residuals_are_those_of_the_matrix_before_and_after_restarts():
    matrix, outside = Matrix(), basis()
    space = KrylovSpace(Deflated(matrix, outside), 12, 5, rng())
    for n in range(1, 40):
        space.grow()
        assert len(space) == (n if n <= 12 else 5 + 1 + (n - 13) % 7)
        check_ritz(space, matrix.matrix, outside, min(3, len(space)))


def test_the_whole_complement_is_found_to_rounding():
    matrix, outside = Matrix(), basis()
    space = KrylovSpace(Deflated(matrix, outside), N, 5, rng())
    while not space.whole:
        space.grow()
    rest = np.linalg.svd(outside.numpy())[2][3:]
    expected = np.linalg.eigvalsh(rest @ matrix.matrix.numpy() @ rest.T)[::-1]
    np.testing.assert_allclose(space.ritz(N - 3).values, expected, atol=1e-12)
    assert space.missed(expected[0] - 1e-9) == 0


@pytest.mark.parametrize("size", [8, 40], ids=["with restarts", "without"])
@pytest.mark.parametrize("part", [1e-3, 1e-8], ids=str)
def test_the_bound_holds_for_what_a_start_hides(size, part):
    """A start with a known part along the first eigenvector: the share of starts with less is known too."""
    matrix = Matrix()
    first, others = torch.from_numpy(matrix.vectors).T.split([1, N - 1])
    start = part * first[0] + math.sqrt(1 - part**2) * (torch.randn(N - 1, generator=rng()).double() @ others) / 1.0
    start = start / start.norm()
    hidden = float(start @ first[0])
    space = KrylovSpace(FromHere(matrix, start), size, 4, rng())
    share, hiding = math.sqrt(2 * N / math.pi) * abs(hidden), 0
    for _ in range(30):
        space.grow()
        if float(space.ritz(1).values[0]) < 1.3 - 1e-6:
            assert space.missed(1.3) >= min(1.0, share) * (1 - 1e-6)
            hiding += 1
    assert hiding > (4 if part > 1e-5 else 8)
    # It is no empty bound: once the pair is found, a larger one is hidden from few.
    assert space.missed(1.35) < 1e-3


def test_nothing_is_known_of_what_lies_below_a_value_found():
    space = KrylovSpace(Deflated(Matrix(), basis(0)), 20, 4, rng())
    for _ in range(15):
        space.grow()
    top = float(space.ritz(1).values[0])
    assert space.missed(top - 1e-3) == 1
    assert 0 < space.missed(top + 0.1) < 1


def test_a_closed_space_goes_on_from_another_vector_and_hides_nothing():
    """Of three different eigenvalues a start reaches three dimensions."""
    identity = torch.eye(N, dtype=torch.float64)
    matrix = Matrix()
    matrix.matrix = torch.diag(torch.tensor([3.0, 3.0, 2.0, *[1.0] * (N - 3)], dtype=torch.float64))
    space = KrylovSpace(Deflated(matrix, identity[:0]), 20, 4, rng())
    for _ in range(3):
        assert space.missed(3.1) > 0
        space.grow()
    assert space.missed(3.1) == 0
    space.grow()
    space.grow()
    np.testing.assert_allclose(space.ritz(2).values, [3, 3], rtol=1e-12)
    check_ritz(space, matrix.matrix, identity[:0], 2)
