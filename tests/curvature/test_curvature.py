"""Hessian products and eigenpairs against full matrices from double backward, and against planted spectra."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.func import functional_call

import qfl_interp as qfl
from qfl_interp.curvature import Hessian, eigenpairs, orthonormal, orthonormalise, top_eigenpairs
from qfl_interp.curvature.krylov import KrylovSpace
from qfl_interp.curvature.token_losses import TokenLoss, scored_tokens
from qfl_interp.models.build import build_model
from qfl_interp.models.metrics import masked_loss, scored_span, targets

N_EXAMPLES = 5


class Planted:
    """A symmetric matrix with known eigenvalues and eigenvectors that counts its products."""

    def __init__(self, values, *, dtype=torch.float64, seed=0):
        n = len(values)
        self.vectors = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0].T
        self.values = np.asarray(values, dtype=float)
        self.matrix = torch.from_numpy(self.vectors.T @ (self.values[:, None] * self.vectors)).to(dtype)
        self.n_products = 0

    def __len__(self):
        return len(self.values)

    def product(self, vector):
        self.n_products += 1
        return self.matrix @ vector.to(self.matrix.dtype)

    def eigenvectors(self, *rows):
        return torch.from_numpy(self.vectors[list(rows)])


class Dense(Planted):
    """A matrix given as it is."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.values = matrix.diagonal()
        self.n_products = 0


class Case:
    """A tiny model, its loss in float64 and the whole Hessian by double backward, written without the library's."""

    def __init__(self, style):
        task = qfl.load_task("decimal_addition", length=1)
        self.batch = task.encode(task.sample(np.random.default_rng(0), N_EXAMPLES))
        self.model = build_model(qfl.ModelConfig(d_model=4, n_layers=1, n_heads=2, style=style), task, seed=1)
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():  # away from zero biases and gains of one
            for parameter in self.model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
        self.loss = TokenLoss(self.model, scored_tokens(self.batch), dtype=torch.float64)
        self.theta = torch.cat([p.detach().flatten() for p in self.loss.model.parameters()])
        self.gradient, self.matrix = self.derivatives(self.theta)

    def mean_loss(self, theta):
        parts, start = {}, 0
        for name, parameter in self.loss.model.named_parameters():
            parts[name] = theta[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        span = scored_span(self.batch.loss_mask)
        logits = functional_call(self.loss.model, parts, (self.batch.tokens,))[:, span]
        return masked_loss(logits, targets(self.batch.tokens, self.batch.answer_mask, span))

    def derivatives(self, theta):
        theta = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.mean_loss(theta), theta, create_graph=True)
        eye = torch.eye(len(theta), dtype=theta.dtype)
        rows = [
            torch.autograd.grad(gradient, theta, part, is_grads_batched=True, retain_graph=True)[0]
            for part in eye.split(256)
        ]
        return gradient.detach(), torch.cat(rows)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def case(request):
    return Case(request.param)


def draw(rows, n, seed=0, dtype=torch.float64):
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def complement_spectrum(matrix, basis):
    """Eigenvalues of `Pi H Pi`, largest first, without the zeros that belong to the basis; and its eigenvectors."""
    matrix, basis = matrix.numpy(), basis.double().numpy()
    rest = np.linalg.svd(basis)[2][len(basis) :]
    values, vectors = np.linalg.eigh(rest @ matrix @ rest.T)
    return values[::-1], (vectors.T @ rest)[::-1]


def assert_orthonormal(*rows, atol):
    rows = torch.cat([part.double() for part in rows])
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=atol)


# Products


def test_products_are_those_of_the_full_matrix(case):
    hessian = Hessian(case.loss)
    scale = float(case.matrix.abs().max())
    assert len(hessian) == len(case.theta)
    for vector in draw(3, len(hessian)):
        expected = case.matrix @ vector
        torch.testing.assert_close(hessian.product(vector), expected, rtol=1e-9, atol=1e-11 * scale)
        assert hessian.product(vector).dtype == torch.float64
    assert hessian.n_products == 6
    torch.testing.assert_close(hessian.gradient(), case.gradient, rtol=1e-9, atol=1e-12)
    assert hessian.n_products == 6


def test_curvature_along_directions_of_any_length(case):
    hessian = Hessian(case.loss)
    directions = draw(4, len(hessian)) * torch.tensor([[1.0], [2.0], [0.5], [0.0]])
    expected = torch.einsum("dp,pq,dq->d", directions, case.matrix, directions)
    torch.testing.assert_close(hessian.along(directions), expected, rtol=1e-9, atol=1e-12)
    assert hessian.n_products == 4
    assert hessian.along(directions[:0]).shape == (0,)


@pytest.mark.parametrize("chunk", [1, 2, N_EXAMPLES, 1000])
def test_chunks_change_nothing_but_rounding(case, chunk):
    hessian = Hessian(case.loss, chunk=chunk)
    vector = draw(1, len(hessian))[0]
    torch.testing.assert_close(hessian.product(vector), case.matrix @ vector, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(hessian.gradient(), case.gradient, rtol=1e-9, atol=1e-12)


def test_chunks_bound_how_many_sequences_are_differentiated(case, monkeypatch):
    seen = []
    call = TokenLoss.__call__

    def spy(self, parameters):
        seen.append(len(self.scored.tokens))
        return call(self, parameters)

    monkeypatch.setattr(TokenLoss, "__call__", spy)
    Hessian(case.loss, chunk=2).product(case.theta)
    assert seen == [2, 2, 1]


def test_float32_products_are_close_to_the_exact_ones(case):
    hessian = Hessian(TokenLoss(case.model, case.loss.scored))
    vector = draw(1, len(hessian))[0]
    product = hessian.product(vector)
    assert product.dtype == hessian.gradient().dtype == hessian.along(vector[None]).dtype == torch.float32
    expected = case.matrix @ vector
    scale = float(expected.abs().max())
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(hessian.along(vector[None])[0].double(), vector @ expected, rtol=1e-4, atol=0)


def test_the_hessian_is_that_at_the_parameters_given(case):
    there = case.theta + 0.2 * draw(1, len(case.theta), seed=3)[0]
    given = case.loss.space.unflatten(there.clone())
    hessian = Hessian(case.loss, given)
    for part in given.values():
        part.zero_()  # a caller's later change does not reach it
    gradient, matrix = case.derivatives(there)
    vector = draw(1, len(hessian))[0]
    torch.testing.assert_close(hessian.product(vector), matrix @ vector, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(hessian.gradient(), gradient, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(gradient, case.gradient, rtol=1e-2)


def test_the_model_is_the_same_to_the_bit_after_every_call(case):
    model = copy.deepcopy(case.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = TokenLoss(model, case.loss.scored)
    assert loss.model is model
    hessian = Hessian(loss, chunk=2)
    vectors = draw(2, len(hessian), dtype=torch.float32)

    def unchanged():
        after = model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert torch.is_grad_enabled()

    for call in (
        hessian.gradient,
        lambda: hessian.product(vectors[0]),
        lambda: hessian.along(vectors),
        lambda: top_eigenpairs(hessian, deflate=orthonormalise(vectors), max_products=10),
    ):
        call()
        unchanged()
    with torch.no_grad():
        inside = hessian.product(vectors[0])
    assert torch.equal(inside, hessian.product(vectors[0]))


def test_divergence_is_an_error_and_not_a_number(case):
    theta = case.loss.space.unflatten(case.theta.clone())
    theta["unembed.W_U"][0, 0] = float("nan")
    hessian = Hessian(case.loss, theta)
    with pytest.raises(ValueError, match="gradient of the mean loss must be finite"):
        hessian.gradient()
    for call in (hessian.product, lambda v: hessian.along(v[None])):
        with pytest.raises(ValueError, match="Hessian-vector product must be finite, got nan"):
            call(case.theta)


def test_bad_input_of_the_hessian_is_refused(case):
    with pytest.raises(ValueError, match="chunk must be at least 1 sequence, got 0"):
        Hessian(case.loss, chunk=0)
    with pytest.raises(ValueError, match="names and shapes"):
        Hessian(case.loss, {"W": torch.zeros(2)})
    with pytest.raises(ValueError, match=f"must have {len(case.theta)} coordinates"):
        Hessian(case.loss).product(case.theta[1:])


# Eigenpairs of models


def check_pairs(pairs, matrix, basis, k, *, tol):
    """Everything that holds for pairs of any Hessian, from the dense matrix alone."""
    values, _ = complement_spectrum(matrix, basis)
    v = pairs.vectors.double()
    assert v.shape == (k, len(matrix))
    assert_orthonormal(basis, v, atol=1e-6 if pairs.vectors.dtype == torch.float32 else 1e-12)
    # An eigenvalue is within the residual of the truth, and for a simple one the error is of second order.
    np.testing.assert_allclose(pairs.values, values[:k], rtol=tol)
    image = v @ matrix
    image = image - image @ basis.T.double() @ basis.double()
    residuals = (image - pairs.values.double()[:, None] * v).norm(dim=1) / pairs.values.double().abs()
    torch.testing.assert_close(pairs.residuals.double(), residuals, rtol=0.05, atol=1e-5)
    assert bool(pairs.converged.all())
    assert bool((residuals <= tol * 1.01 + 1e-5).all())


def test_deflated_pairs_of_a_model_match_a_dense_solver(case):
    basis = orthonormalise(draw(3, len(case.theta), seed=5))
    hessian = Hessian(case.loss)
    hessian.product(case.theta)
    pairs = top_eigenpairs(hessian, 2, deflate=basis)
    check_pairs(pairs, case.matrix, basis, 2, tol=1e-3)
    assert pairs.n_products == hessian.n_products - 1
    # As many as Lanczos with a restart every ten vectors takes, and fewer than it takes for certain.
    assert 5 <= pairs.n_products <= 45


@pytest.mark.parametrize(("k", "n_deflated"), [(1, 6), (4, 0), (4, 1)])
def test_eigenpairs_of_a_models_matrix_match_a_dense_solver(case, k, n_deflated):
    basis = orthonormalise(draw(n_deflated, len(case.theta), seed=5))
    pairs = top_eigenpairs(Dense(case.matrix), k, deflate=basis, tol=1e-6)
    check_pairs(pairs, case.matrix, basis, k, tol=1e-6)
    np.testing.assert_allclose(pairs.values, complement_spectrum(case.matrix, basis)[0][:k], rtol=1e-9)
    if n_deflated == 0:
        _, vectors = complement_spectrum(case.matrix, basis)
        overlap = (pairs.vectors.numpy() @ vectors[:k].T) ** 2
        np.testing.assert_allclose(overlap, np.eye(k), atol=1e-6)


def test_one_pair_at_a_time_deflated_walks_down_the_spectrum(case):
    basis = case.matrix.new_zeros(0, len(case.theta))
    found = []
    for seed in range(5):
        pairs = top_eigenpairs(Dense(case.matrix), deflate=basis, tol=1e-7, seed=seed)
        found.append(float(pairs.values[0]))
        basis = torch.cat([basis, pairs.vectors])
    np.testing.assert_allclose(found, np.linalg.eigvalsh(case.matrix.numpy())[::-1][:5], rtol=1e-6)
    assert_orthonormal(basis, atol=1e-12)


def test_float32_pairs_are_within_the_tolerance_and_orthonormal(case):
    basis = orthonormalise(draw(6, len(case.theta), seed=5, dtype=torch.float32))
    pairs = top_eigenpairs(Hessian(TokenLoss(case.model, case.loss.scored)), deflate=basis)
    assert pairs.vectors.dtype == pairs.values.dtype == pairs.residuals.dtype == torch.float32
    check_pairs(pairs, case.matrix, basis, 1, tol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("basis_on", ["cpu", "cuda"])
def test_pairs_on_a_gpu_are_those_of_the_cpu(case, basis_on):
    basis = orthonormalise(draw(3, len(case.theta), seed=5))
    model = copy.deepcopy(case.loss.model).to("cuda", print_details=False)
    hessian = Hessian(TokenLoss(model, case.loss.scored, dtype=torch.float64))
    pairs = top_eigenpairs(hessian, 2, deflate=basis.to(basis_on), tol=1e-6)
    assert {part.device.type for part in pairs[:4]} == {"cuda"}
    torch.testing.assert_close(hessian.product(case.theta).cpu(), case.matrix @ case.theta, rtol=1e-8, atol=1e-10)
    on_cpu = type(pairs)(*(part.cpu() for part in pairs[:4]), pairs.n_products)
    check_pairs(on_cpu, case.matrix, basis, 2, tol=1e-6)
    again = top_eigenpairs(hessian, 2, deflate=basis.to(basis_on), tol=1e-6)
    assert torch.equal(pairs.vectors, again.vectors)


# Planted spectra


def test_planted_pairs_are_found():
    planted = Planted([7.0, 5.0, 3.0, *np.linspace(-6, 2, 47)])
    pairs = top_eigenpairs(planted, 3, tol=1e-8)
    np.testing.assert_allclose(pairs.values, [7, 5, 3], rtol=1e-12)
    overlap = (pairs.vectors @ planted.eigenvectors(0, 1, 2).T).abs()
    torch.testing.assert_close(overlap, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-7)
    assert pairs.n_products == planted.n_products


def test_the_largest_is_not_the_one_of_largest_magnitude():
    pairs = top_eigenpairs(Planted([1.0, *np.linspace(-100, 0.5, 49)]), tol=1e-8)
    np.testing.assert_allclose(pairs.values, [1.0], rtol=1e-9)


def test_deflated_eigenvectors_do_not_come_back():
    planted = Planted([7.0, 5.0, 3.0, *np.linspace(-6, 2, 47)])
    pairs = top_eigenpairs(planted, 2, deflate=planted.eigenvectors(0, 2), tol=1e-8)
    np.testing.assert_allclose(pairs.values, [5, 2], rtol=1e-9)


def test_the_zeros_of_the_projected_directions_are_no_eigenvalues():
    """With 20 positive directions deflated all that is left is negative; 0 would be the projection's own."""
    planted = Planted([*np.linspace(10, 1, 20), -1.0, -2.0, *np.linspace(-9, -3, 28)])
    for k in (1, 2, 4):
        pairs = top_eigenpairs(planted, k, deflate=planted.eigenvectors(*range(20)), tol=1e-6)
        np.testing.assert_allclose(pairs.values, [-1, -2, -3, -3 - 6 / 27][:k], rtol=1e-9)
        assert bool(pairs.converged.all())
        assert_orthonormal(planted.eigenvectors(*range(20)), pairs.vectors, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_small_complement_is_diagonalised_whole(k):
    planted = Planted([9.0, 8.0, 7.0, 6.0, 5.0, *np.linspace(4, -4, 15)])
    pairs = top_eigenpairs(planted, k, deflate=planted.eigenvectors(*range(5, 20)), tol=1e-9)
    np.testing.assert_allclose(pairs.values, [9, 8, 7, 6, 5][:k], rtol=1e-12)
    assert pairs.n_products == 5
    with pytest.raises(ValueError, match=r"k must lie in \[1, 5\].* 15 deflated directions in 20 parameters, got 6"):
        top_eigenpairs(planted, 6, deflate=planted.eigenvectors(*range(5, 20)))


def test_every_pair_of_a_small_matrix():
    planted = Planted([3.0, 1.0, -2.0])
    np.testing.assert_allclose(top_eigenpairs(planted, 3).values, [3, 1, -2], rtol=1e-12)


@pytest.mark.parametrize("values", [[4.0] * 30, [4.0, *[0.0] * 29]], ids=["identity", "rank one"])
def test_spectra_on_which_lanczos_ends_early(values):
    pairs = top_eigenpairs(Planted(values), 2, tol=1e-6)
    np.testing.assert_allclose(pairs.values, values[:2], atol=1e-9)
    assert_orthonormal(pairs.vectors, atol=1e-12)


def test_a_constant_loss_is_refused():
    with pytest.raises(ValueError, match=r"must not send the start to zero.*Is the loss constant"):
        top_eigenpairs(Planted([0.0] * 30))


@pytest.mark.parametrize("tol", [1e-2, 1e-8])
@pytest.mark.parametrize("below", [[], [3.0, 2.5]], ids=["a gap", "other pairs"])
def test_pairs_that_share_an_eigenvalue(below, tol):
    """One start sees one vector of the two, and then the next eigenvalue as if it were the second."""
    planted = Planted([5.0, 5.0, *below, *np.linspace(-1, 1, 398)])
    pairs = top_eigenpairs(planted, 2, tol=tol)
    np.testing.assert_allclose(pairs.values, [5, 5], rtol=tol)
    assert pairs.converged.tolist() == [True, True]
    inside = pairs.vectors @ planted.eigenvectors(0, 1).T
    torch.testing.assert_close(inside @ inside.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=tol)
    assert pairs.n_products == planted.n_products


def test_an_eigenvalue_of_four_vectors():
    planted = Planted([5.0] * 4 + [3.0] * 2 + [*np.linspace(-1, 1, 394)])
    pairs = top_eigenpairs(planted, 5, tol=1e-3)
    np.testing.assert_allclose(pairs.values, [5, 5, 5, 5, 3], rtol=1e-3)
    assert bool(pairs.converged.all())


def test_a_pair_that_stands_out_takes_a_few_products():
    """Krylov spaces of 5 vectors: a random vector, and less of it with every product."""
    planted = Planted([100.0, *np.linspace(-1, 1, 999)])
    pairs = top_eigenpairs(planted, tol=1e-2)
    assert planted.n_products <= 6
    np.testing.assert_allclose(pairs.values, [100], rtol=1e-4)


def test_few_starts_hide_the_first_of_two_close_eigenvalues():
    """Residuals within the tolerance are not enough: of many starts they show the second alone."""
    planted = Planted([1.03, 1.0, *np.linspace(-0.7, 0.7, 198)])
    found = [float(top_eigenpairs(planted, tol=1e-2, seed=seed).values[0]) for seed in range(300)]
    # One in a hundred, and four standard errors.
    assert np.mean(np.array(found) < 1.03 - 1e-2) <= 0.01 + 4 * (0.01 / 300) ** 0.5


@pytest.mark.parametrize("max_products", [14, 40, 100])
def test_when_products_run_out_the_best_found_is_marked(max_products):
    planted = Planted([101.0, 100.9, *np.linspace(0, 100.8, 398)])
    pairs = top_eigenpairs(planted, 2, tol=1e-10, max_products=max_products)
    assert pairs.n_products == planted.n_products <= max_products
    assert not bool(pairs.converged.any())
    assert bool((pairs.residuals > 1e-10).all())
    assert_orthonormal(pairs.vectors, atol=1e-12)
    # A random vector is at 50; no vector is above the top.
    assert 70 < float(pairs.values[1]) <= float(pairs.values[0]) <= 101
    matrix = planted.matrix
    torch.testing.assert_close(pairs.values, torch.einsum("kp,pq,kq->k", pairs.vectors, matrix, pairs.vectors))
    residuals = (pairs.vectors @ matrix - pairs.values[:, None] * pairs.vectors).norm(dim=1) / pairs.values
    torch.testing.assert_close(pairs.residuals, residuals)


def test_pairs_within_the_tolerance_are_not_converged_before_the_search_has_ended():
    """The second and third are too close for the products there are: others may be missing beside the first."""
    planted = Planted([103.0, 100.0, 99.99, *np.linspace(0, 99.98, 397)])
    pairs = top_eigenpairs(planted, 2, tol=1e-8, max_products=120)
    assert float(pairs.residuals[0]) <= 1e-8 < float(pairs.residuals[1])
    assert not bool(pairs.converged.any())
    np.testing.assert_allclose(pairs.values[0], 103, rtol=1e-12)
    assert 99.9 < float(pairs.values[1]) <= 100
    assert planted.n_products == 120
    assert top_eigenpairs(planted, 2, tol=1e-3, max_products=300).converged.tolist() == [True, True]


@pytest.mark.parametrize(("max_products", "reached"), [(60, 99.95), (120, 99.9999), (300, 99.9999)])
def test_more_products_come_closer_to_the_top(max_products, reached):
    pairs = top_eigenpairs(Planted(np.linspace(0, 100, 400)), tol=1e-12, max_products=max_products)
    assert reached < float(pairs.values[0]) <= 100


@pytest.mark.parametrize("k", [1, 2, 8, 25])
def test_the_vectors_counted_are_those_of_the_space_and_the_pairs(k, monkeypatch):
    rows, grow = [], KrylovSpace.grow

    def spy(self):
        rows.append(len(self._rows))
        grow(self)

    monkeypatch.setattr(KrylovSpace, "grow", spy)
    pairs = top_eigenpairs(Planted(np.linspace(0, 100, 300)), k, tol=1e-13, max_products=120)
    assert not pairs.converged.all()
    # Beside the space: the pairs, as many candidates to join them, and a few vectors that a step works with.
    assert eigenpairs.solver_vectors(k) == max(rows) + 2 * k + 7


def test_the_seed_decides_every_bit():
    planted = Planted([7.0, 5.0, *np.linspace(-6, 2, 48)])
    first, again, other = (top_eigenpairs(planted, 2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.vectors, other.vectors)


def test_vectors_that_are_drawn_where_the_space_ends_are_seeded():
    """Of two eigenvalues a start reaches two dimensions; the third vector has to be drawn."""
    diagonal = Dense(torch.diag(torch.tensor([4.0, 4.0, 4.0, *[1.0] * 27], dtype=torch.float64)))
    first, again = (top_eigenpairs(diagonal, 3) for _ in range(2))
    assert torch.equal(first.vectors, again.vectors)
    np.testing.assert_allclose(first.values, [4, 4, 4], rtol=1e-12)


def test_the_global_generators_are_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    top_eigenpairs(Dense(4.0 * torch.eye(30, dtype=torch.float64)), 2)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002


def test_a_float32_matrix_and_basis_stay_orthonormal():
    planted = Planted([100.0, 50.0, 10.0, *np.linspace(-5, 1, 297)], dtype=torch.float32)
    basis = orthonormalise(planted.eigenvectors(0)[0:1].float() + 1e-3 * draw(1, 300, dtype=torch.float32))
    pairs = top_eigenpairs(planted, 2, deflate=basis)
    assert pairs.vectors.dtype == torch.float32
    assert_orthonormal(basis, pairs.vectors, atol=1e-6)


BASIS = torch.eye(20, dtype=torch.float64)[:2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, r"k must lie in \[1, 20\]"),
        ({"k": 21}, r"k must lie in \[1, 20\].*got 21"),
        ({"k": 19, "deflate": BASIS}, r"k must lie in \[1, 18\].*got 19"),
        ({"deflate": 2 * BASIS}, r"deflate must have orthonormal rows .*<row 0, row 0> = 4\."),
        ({"deflate": BASIS[[0, 0]]}, r"<row 0, row 1> = 1\. Pass it through orthonormalise"),
        ({"deflate": BASIS * float("nan")}, "deflate must have orthonormal rows"),
        ({"deflate": BASIS[:, :19]}, r"deflate must have rows of 20 parameters, got shape \(2, 19\)"),
        ({"tol": 0.0}, r"tol must be positive, got 0\.0"),
        ({"max_products": 5}, r"at least 3 k \+ 3 = 6 for k = 1, got 5"),
    ],
)
def test_bad_eigenproblems_are_refused(options, words):
    planted = Planted(np.arange(20.0))
    with pytest.raises(ValueError, match=words):
        top_eigenpairs(planted, **options)
    assert planted.n_products == 0


def test_a_product_that_is_not_finite_stops_the_solver():
    planted = Planted(np.arange(20.0))
    planted.matrix[3, 4] = float("inf")
    with pytest.raises(ValueError, match="product of the Hessian with a vector must be finite"):
        top_eigenpairs(planted)
    assert planted.n_products == 1


def test_the_least_number_of_products_suffices():
    for k in (1, 2, 5):
        planted = Planted(np.arange(60.0))
        assert len(top_eigenpairs(planted, k, max_products=3 * k + 3).values) == k
        assert planted.n_products <= 3 * k + 3


# Orthonormal rows


def test_orthonormal_rows_are_those_of_gram_schmidt():
    vectors = draw(5, 40)
    q, r = np.linalg.qr(vectors.numpy().T)
    expected = (q * np.sign(np.diag(r))).T
    np.testing.assert_allclose(orthonormalise(vectors), expected, atol=1e-13)
    np.testing.assert_allclose(orthonormalise(1e-20 * vectors), expected, atol=1e-13)
    against = orthonormalise(vectors[:2])
    np.testing.assert_allclose(orthonormalise(vectors[2:], against), expected[2:], atol=1e-13)
    assert torch.equal(vectors, draw(5, 40))


def test_dependent_vectors_are_left_out():
    a, b, c = draw(3, 40)
    rows = orthonormalise(torch.stack([a, 0 * a, 3 * a, b, a - 2 * b, c]))
    torch.testing.assert_close(rows, orthonormalise(torch.stack([a, b, c])), rtol=0, atol=1e-12)
    assert orthonormalise(torch.stack([a - b, b]), orthonormalise(torch.stack([a, b]))).shape == (0, 40)
    assert orthonormalise(torch.zeros(0, 40)).shape == (0, 40)
    assert len(orthonormalise(draw(50, 40))) == 40


@pytest.mark.parametrize(("share", "n_kept"), [(1e-4, 2), (1e-7, 1)])
def test_the_share_that_is_new_decides(share, n_kept):
    a, b = torch.eye(40, dtype=torch.float64)[:2] * 1e3
    vectors = torch.stack([a, a + share * b])
    assert len(orthonormalise(vectors)) == n_kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearly_dependent_vectors_come_out_orthonormal(dtype):
    """One pass leaves an error of rounding over what is new: 6e-8 / 1e-5 in float32."""
    shared = draw(1, 2000)
    vectors = (shared + 1e-5 * draw(12, 2000, seed=1)).to(dtype)
    against = orthonormalise((shared + 1e-5 * draw(1, 2000, seed=2)).to(dtype))
    rows = orthonormalise(vectors, against)
    assert rows.dtype == dtype
    assert len(rows) == 12
    assert_orthonormal(against, rows, atol=1e-6 if dtype == torch.float32 else 1e-10)


def test_blocks_of_columns_change_nothing_but_rounding(monkeypatch):
    vectors, against = draw(5, 101), orthonormalise(draw(3, 101, seed=1))
    whole = orthonormalise(vectors, against)
    monkeypatch.setattr(orthonormal, "_BLOCK", 30)
    torch.testing.assert_close(orthonormalise(vectors, against), whole, rtol=0, atol=1e-13)
    assert_orthonormal(against, orthonormalise(vectors, against), atol=1e-13)
    with pytest.raises(ValueError, match=r"<row 2, row 2> = 1\.21"):
        orthonormalise(vectors, against * torch.tensor([[1.0], [1.0], [1.1]]))


@pytest.mark.parametrize(
    ("vectors", "against", "words"),
    [
        (torch.full((2, 5), float("nan")), None, r"vectors to orthonormalise must be finite, got nan at \[0, 0\]"),
        (torch.ones(2, 5), torch.ones(1, 5), r"against must have orthonormal rows .*<row 0, row 0> = 5\."),
        (torch.ones(2, 5), torch.ones(1, 4), r"against must have rows of 5 parameters, got shape \(1, 4\)"),
    ],
    ids=["nan", "not orthonormal", "width"],
)
def test_bad_vectors_are_refused(vectors, against, words):
    with pytest.raises(ValueError, match=words):
        orthonormalise(vectors, against)
