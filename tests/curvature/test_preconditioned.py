"""Adam's preconditioner against torch's own, edges against quadratics that settle or grow, steps on a parabola."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfl_interp.curvature import (
    AdamState,
    Preconditioned,
    adam_preconditioner,
    adam_state,
    adam_update,
    along_step,
    cosine,
    stability_edge,
    top_eigenpairs,
)
from qfl_interp.curvature.parameter_space import ParameterSpace

N = 40
BETAS, EPS, DECAY = (0.8, 0.95), 1e-3, 0.2


class Dense:
    """A symmetric matrix through its products, in a precision of its own."""

    def __init__(self, matrix, dtype=torch.float64):
        self.matrix = torch.as_tensor(matrix, dtype=dtype)

    def __len__(self):
        return len(self.matrix)

    def product(self, vector):
        return self.matrix @ vector.to(self.matrix.dtype)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def symmetric(rng):
    half = rng.standard_normal((N, N))
    return half + half.T


@pytest.fixture
def diagonal(rng):
    return np.exp(2 * rng.standard_normal(N))


# The operator


def test_products_are_those_of_the_dense_matrix(symmetric, diagonal, rng):
    operator = Preconditioned(Dense(symmetric), torch.from_numpy(diagonal))
    expected = np.sqrt(diagonal)[:, None] * symmetric * np.sqrt(diagonal)
    vector = rng.standard_normal(N)
    assert len(operator) == N
    np.testing.assert_allclose(operator.product(torch.from_numpy(vector)), expected @ vector, rtol=1e-12)


def test_the_top_eigenvalue_is_that_of_the_preconditioned_step(symmetric, diagonal):
    """`P H` is not symmetric but has the same eigenvalues."""
    operator = Preconditioned(Dense(symmetric), torch.from_numpy(diagonal))
    found = top_eigenpairs(operator, tol=1e-8, max_products=400)
    assert bool(found.converged[0])
    expected = np.linalg.eigvals(diagonal[:, None] * symmetric).real.max()
    np.testing.assert_allclose(float(found.values[0]), expected, rtol=1e-8)
    plain = float(top_eigenpairs(Dense(symmetric), tol=1e-8, max_products=400).values[0])
    assert abs(plain / expected - 1) > 0.1


def test_products_keep_the_precision_of_the_hessian(symmetric, diagonal):
    operator = Preconditioned(Dense(symmetric, torch.float32), torch.from_numpy(diagonal))
    assert operator.product(torch.ones(N, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(("bad", "message"), [(0.0, "positive and finite, got 0.0 in entry 3"), (np.nan, "got nan")])
def test_a_preconditioner_must_be_positive(symmetric, diagonal, bad, message):
    diagonal[3] = bad
    with pytest.raises(ValueError, match=message):
        Preconditioned(Dense(symmetric), torch.from_numpy(diagonal))


def test_a_preconditioner_must_fit(symmetric):
    with pytest.raises(ValueError, match=r"must have 40 entries, got 39"):
        Preconditioned(Dense(symmetric), torch.ones(N - 1))


# Adam


def trained(n_updates):
    """Two parameters after some updates of torch's AdamW on made-up gradients, its tensors, and the next gradient."""
    generator = torch.Generator().manual_seed(1)
    parameters = {
        "W": torch.randn(3, 2, generator=generator).double(),
        "b": torch.randn(4, generator=generator).double(),
    }
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(leaves.values(), lr=0.03, betas=BETAS, eps=EPS, weight_decay=DECAY)
    draws = [{name: torch.randn(p.shape, generator=generator).double() for name, p in leaves.items()} for _ in range(9)]
    for gradients in draws[:n_updates]:
        step(leaves, optimizer, gradients)
    tensors = {
        f"{name}/{key}": value.clone() for name, leaf in leaves.items() for key, value in optimizer.state[leaf].items()
    }
    return leaves, optimizer, tensors, draws[n_updates]


def step(leaves, optimizer, gradients):
    for name, leaf in leaves.items():
        leaf.grad = gradients[name].clone()
    optimizer.step()


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


@pytest.mark.parametrize("n_updates", [0, 1, 5])
def test_the_next_update_is_torchs(n_updates):
    leaves, optimizer, tensors, gradients = trained(n_updates)
    space = ParameterSpace({"W": (3, 2), "b": (4,)})
    before = flat(leaves)
    state = adam_state(space, tensors)
    assert state.n_updates == n_updates
    found = adam_update(before, flat(gradients), state, lr=0.03, betas=BETAS, eps=EPS, weight_decay=DECAY)
    step(leaves, optimizer, gradients)
    torch.testing.assert_close(found, flat(leaves) - before, rtol=1e-9, atol=1e-12)


def test_the_preconditioner_divides_out_the_start_at_zero():
    """Of one constant gradient the corrected second moment is its square, however few updates there were."""
    gradient = torch.tensor([0.5, -2.0, 0.0])
    second = torch.zeros(3, dtype=torch.float64)
    for n in range(1, 4):
        second = 0.9 * second + 0.1 * gradient.double() ** 2
        found = adam_preconditioner(AdamState(second, second, n), beta2=0.9, eps=EPS)
        torch.testing.assert_close(found, 1 / (gradient.abs().double() + EPS))


def test_the_state_lies_as_the_parameters_do():
    _, _, tensors, _ = trained(3)
    state = adam_state(ParameterSpace({"W": (3, 2), "b": (4,)}), tensors)
    torch.testing.assert_close(state.first, torch.cat([tensors["W/exp_avg"].flatten(), tensors["b/exp_avg"]]))
    torch.testing.assert_close(state.second, torch.cat([tensors["W/exp_avg_sq"].flatten(), tensors["b/exp_avg_sq"]]))


def test_moments_that_do_not_fit_are_refused():
    _, _, tensors, _ = trained(3)
    space = ParameterSpace({"W": (3, 2), "b": (4,)})
    with pytest.raises(ValueError, match="1 that differ"):
        adam_state(ParameterSpace({"W": (3, 2), "b": (5,)}), tensors)
    with pytest.raises(ValueError, match=r"equally many updates, got \[3, 4\]"):
        adam_state(space, tensors | {"b/step": torch.tensor(4.0)})
    with pytest.raises(ValueError, match="must be finite and the second ones not negative"):
        adam_state(space, tensors | {"b/exp_avg_sq": -tensors["b/exp_avg_sq"]})
    with pytest.raises(ValueError, match="must be finite"):
        adam_state(space, tensors | {"b/exp_avg": tensors["b/exp_avg"] * torch.nan})
    with pytest.raises(ValueError, match="at least 1 update of the optimiser, got 0"):
        adam_preconditioner(adam_state(space, {}), beta2=0.9, eps=EPS)


# The edge


def length_after(curvature, lr, momentum, n=4000):
    """How far from its minimum a parabola's descent with a moving average of gradients ends, from 1."""
    x, average, largest = 1.0, 0.0, 0.0
    for index in range(n):
        average = momentum * average + (1 - momentum) * curvature * x
        x -= lr * average
        if index > n - 50:
            largest = max(largest, abs(x))
        if abs(x) > 1e6:
            return abs(x)
    return largest


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_parabola_settles_below_the_edge_and_grows_above_it(momentum):
    edge = stability_edge(0.01, momentum=momentum)
    assert length_after(0.995 * edge, 0.01, momentum) < 1e-3
    assert length_after(1.005 * edge, 0.01, momentum) > 1e3


def test_the_edges_the_papers_name():
    assert stability_edge(0.01) == pytest.approx(200)
    assert stability_edge(0.01, momentum=0.9) == pytest.approx(3800)


@pytest.mark.parametrize("lr", [0.0, -1.0, np.inf, np.nan])
def test_no_step_no_edge(lr):
    with pytest.raises(ValueError, match="lr must be positive and finite"):
        stability_edge(lr)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum_is_a_share(momentum):
    with pytest.raises(ValueError, match="momentum must lie in"):
        stability_edge(0.1, momentum=momentum)


# Along a step


@pytest.fixture
def parabola(symmetric, rng):
    """`g' x + x' H x / 2`."""
    gradient = rng.standard_normal(N)
    return gradient, lambda x: gradient @ x + x @ symmetric @ x / 2


def test_the_coefficients_are_the_parabolas(symmetric, parabola, rng):
    gradient, loss = parabola
    direction = rng.standard_normal(N)
    found = along_step(Dense(symmetric), torch.from_numpy(gradient), torch.from_numpy(direction))
    for s in (1.0, -0.7, 2.5):
        np.testing.assert_allclose(found.c1 * s + found.c2 * s**2, loss(s * direction), rtol=1e-10)
    np.testing.assert_allclose(found.norm, np.linalg.norm(direction))
    np.testing.assert_allclose(found.curvature, direction @ symmetric @ direction / (direction @ direction))
    np.testing.assert_allclose(found.sharpness, 2 * found.c2 / abs(found.c1))


def test_beyond_two_the_step_raises_the_loss(symmetric, parabola):
    """Along -g of a convex parabola, with the length on both sides of the edge."""
    gradient, _ = parabola
    convex = symmetric @ symmetric
    loss = lambda x: gradient @ x + x @ convex @ x / 2  # noqa: E731
    critical = 2 * (gradient @ gradient) / (gradient @ convex @ gradient)
    for share, rises in ((0.9, False), (1.1, True)):
        direction = -share * critical * gradient
        found = along_step(Dense(convex), torch.from_numpy(gradient), torch.from_numpy(direction))
        assert (found.sharpness > 2) == rises == (loss(direction) > 0)
        np.testing.assert_allclose(found.sharpness, 2 * share)


def test_the_sharpness_of_a_step_downhill_over_a_hill_is_negative(symmetric, parabola):
    gradient, _ = parabola
    found = along_step(Dense(-np.eye(N)), torch.from_numpy(gradient), torch.from_numpy(-gradient))
    assert found.c1 < 0
    assert found.sharpness == pytest.approx(-1)
    assert found.curvature == pytest.approx(-1)


def test_steps_far_below_float32s_square_keep_their_curvature(symmetric):
    tiny = 1e-25 * torch.ones(N, dtype=torch.float64)
    found = along_step(Dense(symmetric, torch.float32), torch.ones(N), tiny)
    assert found.curvature == pytest.approx(symmetric.mean() * N, rel=1e-5)


def test_no_step(symmetric):
    found = along_step(Dense(symmetric), torch.ones(N), torch.zeros(N))
    assert (found.norm, found.c1, found.c2) == (0, 0, 0)
    assert np.isnan([found.curvature, found.sharpness]).all()


def test_vectors_of_another_space_are_refused(symmetric):
    with pytest.raises(ValueError, match="must have 40 entries, as many as the Hessian has rows, got 41 and 41"):
        along_step(Dense(symmetric), torch.ones(N + 1), torch.ones(N + 1))


def test_cosines():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])
    assert cosine(one, other) == pytest.approx(0.6)
    assert cosine(one, -2 * one) == -1
    assert np.isnan(cosine(one, 0 * one))
