"""Directions of weight space against full eigendecompositions, and what refuses to find any."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.curvature import Hessian, orthonormal
from qfl_interp.curvature.parameter_space import ParameterSpace
from qfl_interp.curvature.token_losses import TokenLoss, scored_tokens
from qfl_interp.models.build import build_model, parameters_to_save
from qfl_interp.polca import basis as basis_module
from qfl_interp.polca.basis import (
    added_directions,
    basis_bytes,
    hessian_directions,
    orthogonality,
    random_directions,
    top_parameters,
    trajectory_directions,
)
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.polca.probe_gradient import probe_gradient
from qfl_interp.probes import fit_probes


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_orthonormal(rows, tolerance=1e-6):
    gram = rows.double() @ rows.double().mT
    torch.testing.assert_close(gram, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def task():
    return qfl.load_task("addition", length=2)


@pytest.fixture(scope="module")
def losses(task):
    """The answer tokens of two models of 242 parameters, as two checkpoints would have them; float64."""
    scored = scored_tokens(task.encode(task.sample(np.random.default_rng(0), 8)))
    config = qfl.ModelConfig(d_model=4, n_layers=1, n_heads=1)
    return [TokenLoss(build_model(config, task, seed=seed), scored, dtype=torch.float64) for seed in (1, 2)]


def full_hessian(loss):
    """Of the mean loss, every entry by double backward."""
    theta = loss.space.flatten(loss.parameters())
    mean = lambda x: loss(loss.space.unflatten(x)).mean()  # noqa: E731
    return torch.func.jacrev(torch.func.jacrev(mean))(theta).numpy()


# Algorithm 1


def test_each_checkpoint_adds_the_top_eigenvector_of_what_is_left(losses):
    n = len(losses[0].space)
    found = torch.empty(0, n, dtype=torch.float64)
    for loss, k in zip(losses, (2, 3), strict=True):
        new = hessian_directions(Hessian(loss), found, k, tol=1e-6, max_products=1000)
        projection = np.eye(n) - found.numpy().T @ found.numpy()
        values, vectors = np.linalg.eigh(projection @ full_hessian(loss) @ projection)
        np.testing.assert_allclose(new.eigenvalues.numpy(), values[::-1][:k], rtol=1e-6)
        overlap = np.abs(new.vectors.numpy() @ vectors[:, ::-1][:, :k])
        np.testing.assert_allclose(overlap, np.eye(k), atol=1e-4)
        assert new.converged.all()
        assert new.n_products > 0
        found = torch.cat([found, new.vectors])
    assert_orthonormal(found, 1e-9)


def test_an_eigensolver_cut_short_says_so(losses):
    new = hessian_directions(
        Hessian(losses[0]), torch.empty(0, len(losses[0].space)).double(), tol=1e-12, max_products=10
    )
    assert not new.converged.any()
    assert new.residuals[0] > 1e-12


@pytest.mark.slow
def test_float32_directions_are_orthonormal(losses, task):
    model = build_model(qfl.ModelConfig(d_model=4, n_layers=1, n_heads=1), task, seed=1)
    hessian = Hessian(TokenLoss(model, losses[0].scored))
    found = torch.empty(0, len(losses[0].space))
    for _ in range(4):
        found = torch.cat([found, hessian_directions(hessian, found).vectors])
    assert found.dtype == torch.float32
    assert_orthonormal(found)
    # The four largest of one Hessian, found one by one, are those of its spectrum.
    values = np.linalg.eigvalsh(full_hessian(losses[0]))[::-1][:4]
    np.testing.assert_allclose(hessian.along(found).numpy(), values, rtol=1e-2)


# Other bases


def test_added_vectors_are_what_the_basis_lacks():
    found = torch.linalg.qr(randn(6, 2))[0].mT.contiguous()
    vectors = randn(2, 6, seed=1)
    new = added_directions(found, vectors, "gradients")
    rest = vectors - vectors @ found.mT @ found  # Gram-Schmidt by hand
    first = rest[0] / rest[0].norm()
    second = rest[1] - (rest[1] @ first) * first
    for row, expected in zip(new.vectors, (first, second / second.norm()), strict=True):
        assert abs(float(row @ expected)) == pytest.approx(1.0, abs=1e-10)
    assert_orthonormal(torch.cat([found, new.vectors]), 1e-10)
    assert new.eigenvalues.isnan().all()
    assert new.n_products == 0


@pytest.mark.parametrize("dependent", ["zero", "in the basis", "twice"])
def test_a_dependent_vector_is_refused(dependent):
    found = torch.eye(5)[:2].double()
    vector = randn(5, seed=2)
    rows = {
        "zero": torch.zeros(1, 5).double(),
        "in the basis": 3 * found[:1] - found[1:2],
        "twice": torch.stack([vector, -2 * vector]),
    }[dependent]
    with pytest.raises(
        ValueError, match=rf"gradients must be linearly independent.*the 2 directions.*got 1 of {len(rows)}"
    ):
        added_directions(found, rows, "gradients")


def test_random_directions_follow_their_generator():
    def draw(seed, n=4):
        return random_directions(n, 300, torch.Generator().manual_seed(seed)).vectors

    assert_orthonormal(draw(0))
    assert torch.equal(draw(0), draw(0))
    assert (draw(0) @ draw(1).mT).abs().max() < 0.5
    complete = random_directions(30, 30, torch.Generator().manual_seed(0), dtype=torch.float64).vectors
    assert_orthonormal(complete, 1e-12)
    with pytest.raises(ValueError, match="got 1 of 31 that are not"):
        random_directions(31, 30, torch.Generator().manual_seed(0))


def test_top_parameters_are_axes_by_magnitude():
    found = top_parameters(torch.tensor([0.5, -3.0, 0.0, 2.0, -0.5]), 3)
    assert found.vectors.tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="at most the number of parameters, 5, got 6"):
        top_parameters(torch.zeros(5), 6)


def test_trajectory_directions_are_the_right_singular_vectors(monkeypatch):
    for module in (basis_module, orthonormal):
        monkeypatch.setattr(module, "_BLOCK", 7)  # several blocks
    movement = randn(5, 40, seed=3) * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)[:, None]
    _, singular, right = np.linalg.svd(movement.numpy(), full_matrices=False)
    found = trajectory_directions(movement.clone(), 3)
    overlap = np.abs(found.vectors.numpy() @ right[:3].T)
    np.testing.assert_allclose(overlap, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(found.eigenvalues.numpy(), singular[:3] ** 2 / 5, rtol=1e-9)
    assert_orthonormal(found.vectors, 1e-9)


def test_a_movement_of_too_few_dimensions_is_refused():
    movement = randn(2, 9, seed=4)
    flat = torch.stack([movement[0], 2 * movement[0], movement[1]])
    assert len(trajectory_directions(flat.clone(), 2).vectors) == 2
    with pytest.raises(ValueError, match="at least 3 dimensions, got 2 from 3 checkpoints"):
        trajectory_directions(flat, 3)


# Probes


KINDS = {"binary": 1, "multilabel": 2, "categorical": 1, "scalar": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_probe_gradients_are_the_slopes_of_the_probes_own_loss(task, kind):
    """Against central differences of `Probes.example_loss` on the model with other weights, along random directions."""
    model = build_model(qfl.ModelConfig(d_model=4, n_layers=2, n_heads=1), task, seed=1).to(
        torch.float64, print_details=False
    )
    rng = np.random.default_rng(0)
    tokens = task.encode(task.sample(rng, 40)).tokens
    high = 3 if kind in ("categorical", "scalar") else 2
    y = torch.from_numpy(rng.integers(high, size=(KINDS[kind], 2, 40)))
    positions = torch.from_numpy(rng.integers(2, 8, size=(2, 40)))
    positions[0, :5] = -1  # these examples have no such label
    places = torch.tensor([1, 0])

    def activations():
        _, cache = model.run_with_cache(tokens)
        resid = torch.stack([cache[f"blocks.{layer}.hook_resid_post"] for layer in range(2)])
        return torch.stack([resid[:, torch.arange(40), p] for p in positions.clamp(min=0)], dim=1)

    kept = positions >= 0
    with torch.no_grad():
        classes = 9 if kind == "categorical" else None
        probes = fit_probes(kind, activations(), y, qfl.ProbeConfig(c=1.0), example_mask=kept, n_classes=classes)
    if kind == "categorical":
        y[0, 1, 3] = 7  # a class no probe has seen: it does not count

    @torch.no_grad()
    def mean_loss():
        loss = probes.example_loss(activations(), y, kept)
        return torch.cat([loss[place, label].flatten() for label, place in enumerate(places)]).nanmean()

    before = {name: tensor.clone() for name, tensor in parameters_to_save(model).items()}
    gradient = probe_gradient(model, probes, places, tokens, y, positions, chunk=16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parameters_to_save(model).items())
    if kind == "categorical":
        other = y.clone()
        other[0, 1, 3] = 20  # nor does one the probes have no weights for
        assert torch.equal(gradient, probe_gradient(model, probes, places, tokens, other, positions, chunk=16))
    space = ParameterSpace.of(model)
    for seed in range(3):
        direction = randn(len(space), seed=seed)
        ends = []
        for sign in (1, -1):
            for name, part in space.unflatten(sign * 1e-5 * direction).items():
                model.get_parameter(name).data.copy_(before[name] + part)
            ends.append(float(mean_loss()))
        slope = (ends[0] - ends[1]) / 2e-5
        assert float(gradient @ direction) == pytest.approx(slope, rel=1e-5, abs=1e-9)
        assert abs(slope) > 1e-4


def test_a_feature_without_a_probe_has_no_gradient(task):
    model = build_model(qfl.ModelConfig(d_model=4, n_layers=1, n_heads=1), task, seed=1)
    x, y = randn(1, 1, 6, 4), torch.zeros(1, 1, 6, dtype=torch.int64)  # labels that do not vary
    probes = fit_probes("binary", x, y, qfl.ProbeConfig())
    tokens = task.encode(task.sample(np.random.default_rng(0), 6)).tokens
    for place, positions in ((-1, 3), (0, 3), (0, -1)):
        with pytest.raises(ValueError, match="must be fitted for some label that the examples have"):
            probe_gradient(model, probes, torch.tensor([place]), tokens, y, torch.full((1, 6), positions))


# What is refused


def test_orthogonality_is_the_largest_error_of_each(monkeypatch):
    monkeypatch.setattr(orthonormal, "_BLOCK", 6)  # two columns of three rows
    rows = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.1, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]])
    np.testing.assert_allclose(orthogonality(rows).numpy(), [0.1, 0.1, 0.75], rtol=1e-6)


def test_memory_is_estimated():
    n = 10_000_000
    assert basis_bytes(50, n) == 2 * 50 * 4 * n + 5 * 8 * 50**2  # projecting: twice
    assert basis_bytes(10, n) == (10 * 4 + 24 * 8) * n + 5 * 8 * 10**2  # finding: beside 24 vectors of float64
    assert basis_bytes(10, n, n_vectors=60) == (10 * 4 + 60 * 8) * n + 5 * 8 * 10**2
    assert basis_bytes(10, n, dtype=torch.float64) == (10 * 8 + 24 * 8) * n + 5 * 8 * 10**2
    assert basis_bytes(50, n, at_once=True) == (3 * 50 * 4 + 24 * 8) * n + 5 * 8 * 50**2
    assert basis_bytes(50, n, jobs=4) == 4 * 2 * 50 * 4 * n + 5 * 8 * 50**2
    assert basis_bytes(10, n, at_once=True, n_vectors=60) == (3 * 10 * 4 + 60 * 8) * n + 5 * 8 * 10**2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_checkpoint": 0}, "per_checkpoint must be at least 1, got 0"),
        ({"n_directions": 0}, "n_directions must be at least 1, got 0"),
        ({"n_panels": 0}, "n_panels must be at least 1, got 0"),
        ({"n_examples": 0}, "n_examples must be at least 1, got 0"),
        ({"n_hessian": 0}, "n_hessian must be at least 1, got 0"),
        (
            {"max_products": 13, "per_checkpoint": 2},
            r"max_products must be at least .* = 14, got 13",
        ),
        ({"tol": 0.0}, "tol must lie between 0 and 1, got 0.0"),
        ({"tol": float("nan")}, "tol must be a finite number, got nan"),
        ({"seed": -1}, "seed must lie in"),
        ({"basis": "probe"}, "feature must be given with basis='probe' and only then"),
        ({"feature": "carry"}, "feature must be given with basis='probe' and only then"),
    ],
)
def test_a_configuration_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PolcaConfig(**changes)


# What this suite's type checker would stop before the rule speaks: a process without it.
_TYPE_RULES = """
from qfl_interp.polca.config import PolcaConfig
for changes in ({"basis": "fourier"}, {"accuracy": "third"}, {"n_panels": 1.5}):
    try:
        PolcaConfig(**changes)
    except ValueError as error:
        print(error)
"""


def test_an_unknown_name_or_type_is_refused_with_the_choices():
    done = subprocess.run([sys.executable, "-c", _TYPE_RULES], capture_output=True, text=True, check=True)
    names = "('hessian', 'shuffled', 'random', 'parameters', 'gradient', 'trajectory', 'probe')"
    assert done.stdout.splitlines() == [
        f"basis must be one of {names}, got 'fourier'.",
        "accuracy must be one of ('path', 'trapezoid', 'second', 'paper', 'first'), got 'third'.",
        "n_panels must be an integer, got 1.5.",
    ]


def test_a_configuration_goes_through_json():
    config = PolcaConfig(basis="probe", feature="carry", double=True, tol=1e-2)
    assert PolcaConfig.from_dict(config.to_dict()) == config
    assert config.digest() != PolcaConfig().digest()
