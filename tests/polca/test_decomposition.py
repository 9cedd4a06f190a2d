"""Contributions of directions at five accuracies: quadratics whose answer is known, quadrature, a model's own steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from torch.nn import functional

import qfl_interp as qfl
from qfl_interp.curvature.token_losses import TokenLoss, scored_tokens
from qfl_interp.models.build import build_model
from qfl_interp.polca.decomposition import (
    Segment,
    captured_fraction,
    decompose,
    directional_change,
    first_order,
    paper_curvature,
    path_integral,
    second_order,
    simpson_weights,
)

ACCURACIES = ("first", "paper", "second", "trapezoid", "path")


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Quadratics:
    """`g_x . theta + theta' A_x theta / 2` for each of several x, and a step d in an orthonormal basis Q (rows)."""

    def __init__(self, *, shared_axes: bool) -> None:
        n_tokens, n = 4, 5
        self.q = torch.linalg.qr(randn(n, n, seed=1))[0].mT.contiguous()
        self.g, self.d = randn(n_tokens, n, seed=2), randn(n, seed=3)
        if shared_axes:  # the basis holds the eigenvectors of every token's Hessian
            self.a = torch.einsum("bi,xb,bj->xij", self.q, randn(n_tokens, n, seed=4) + 1, self.q)
        else:
            half = randn(n_tokens, n, n, seed=5)
            self.a = half + half.mT

    def loss(self, theta):
        return self.g @ theta + 0.5 * torch.einsum("i,xij,j->x", theta, self.a, theta)

    def interval(self, n_nodes=3):
        slopes = [
            (self.g + self.a @ (s * self.d)) @ self.q.mT for s in torch.linspace(0, 1, n_nodes, dtype=torch.float64)
        ]
        curvature = torch.einsum("bi,xij,bj->xb", self.q, self.a, self.q)
        return Segment(self.q @ self.d, slopes, curvature, curvature.mean(dim=0))

    def along_each(self):
        """The true change of the loss when only one coordinate of the step is taken."""
        steps = self.q @ self.d
        return torch.stack([self.loss(step * b) for step, b in zip(steps, self.q, strict=True)], dim=1)


# Quadratics


def test_the_path_adds_up_to_the_change_of_a_quadratic_and_the_others_do_not():
    toy = Quadratics(shared_axes=False)
    change = toy.loss(toy.d)
    sums = {a: decompose(a, toy.interval()).contributions.sum(dim=1) for a in ACCURACIES}
    for accuracy in ("path", "trapezoid"):
        torch.testing.assert_close(sums[accuracy], change, rtol=1e-12, atol=1e-12)
    for accuracy in ("first", "paper", "second"):
        assert (sums[accuracy] - change).abs().min() > 1e-2, accuracy


def test_the_path_shares_cross_terms_equally():
    """Along b the mean slope of a quadratic is that in the middle: `<b, g + A d / 2>`."""
    toy = Quadratics(shared_axes=False)
    expected = ((toy.g + toy.a @ toy.d / 2) @ toy.q.mT) * (toy.q @ toy.d)
    torch.testing.assert_close(decompose("path", toy.interval()).contributions, expected, rtol=1e-12, atol=1e-12)


def test_second_order_is_the_true_change_along_each_direction_of_a_quadratic():
    toy = Quadratics(shared_axes=False)
    found = decompose("second", toy.interval())
    torch.testing.assert_close(found.contributions, toy.along_each(), rtol=1e-12, atol=1e-12)
    assert found.n_guarded == 0


def test_first_order_is_the_slope_times_the_step():
    toy = Quadratics(shared_axes=False)
    expected = torch.einsum("xi,bi,b->xb", toy.g, toy.q, toy.q @ toy.d)
    torch.testing.assert_close(decompose("first", toy.interval()).contributions, expected, rtol=1e-12, atol=1e-12)


def test_the_papers_ratio_is_exact_where_its_assumption_holds():
    """Every token's Hessian has the basis as its eigenvectors: then all but the first order agree."""
    toy = Quadratics(shared_axes=True)
    found = {a: decompose(a, toy.interval()).contributions for a in ACCURACIES}
    for accuracy in ("paper", "second", "trapezoid", "path"):
        torch.testing.assert_close(found[accuracy], toy.along_each(), rtol=1e-10, atol=1e-10)
    assert (found["first"] - toy.along_each()).abs().max() > 0.1


def test_the_papers_ratio_is_not_exact_elsewhere():
    toy = Quadratics(shared_axes=False)
    assert (decompose("paper", toy.interval()).contributions - toy.along_each()).abs().max() > 0.1


def test_more_panels_are_used():
    toy = Quadratics(shared_axes=False)
    three, seven = (decompose("path", toy.interval(n)).contributions for n in (3, 7))
    torch.testing.assert_close(three, seven, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("accuracy", "missing"), [("second", "curvature"), ("paper", "dataset_curvature")])
def test_what_an_accuracy_needs_is_asked_for(accuracy, missing):
    interval = Quadratics(shared_axes=False).interval()._replace(**{missing: None})
    with pytest.raises(ValueError, match=f"needs {missing} at the start of the interval, got None"):
        decompose(accuracy, interval)


def test_an_unknown_accuracy_is_refused():
    interval = Segment(randn(3, seed=1), [randn(10, 3, seed=2)])
    with pytest.raises((ValueError, TypeError), match="third"):
        decompose("third", interval)


# The paper's ratio


def test_the_ratio_is_between_the_ends_whatever_is_known_between_them():
    step, dataset, *nodes = randn(3, seed=20), randn(3, seed=21), *randn(3, 10, 3, seed=22)
    ends = decompose("paper", Segment(step, [nodes[0], nodes[2]], dataset_curvature=dataset))
    whole = decompose("paper", Segment(step, nodes, dataset_curvature=dataset))
    assert torch.equal(ends.contributions, whole.contributions)


def test_the_mean_of_the_papers_curvature_is_the_datasets():
    before, after, dataset = randn(50, 3, seed=6), randn(50, 3, seed=7), randn(3, seed=8)
    found = paper_curvature(before, after, dataset)
    torch.testing.assert_close(found.curvature.mean(dim=0), dataset, rtol=1e-10, atol=1e-10)
    change = (after - before).numpy()
    np.testing.assert_allclose(found.curvature.numpy(), dataset.numpy() * change / change.mean(axis=0), rtol=1e-12)
    assert not found.guarded.any()


def test_a_vanishing_denominator_is_guarded_and_counted():
    """Changes of slope by direction: mean 0; all 0; mean just above and just below the floor; one sign."""
    spread = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    shifts = torch.tensor([0.0, 0.0, 1.1e-3, 0.9e-3, 2.0], dtype=torch.float64)
    change = spread[:, None] * torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]) + shifts
    dataset = torch.tensor([3.0, 4.0, 5.0, 6.0, 7.0], dtype=torch.float64)
    found = paper_curvature(torch.zeros_like(change), change, dataset)
    assert found.guarded.tolist() == [True, True, False, True, False]
    # The floor is relative: slopes along a direction that the loss hardly knows are as good as any.
    tiny = paper_curvature(torch.zeros_like(change), 1e-6 * change, dataset)
    assert tiny.guarded.tolist() == found.guarded.tolist()
    torch.testing.assert_close(tiny.curvature, found.curvature)
    for direction in (0, 1, 3):
        assert found.curvature[:, direction].tolist() == [dataset[direction]] * 4
    torch.testing.assert_close(found.curvature[:, 4], 7 * torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64))
    interval = Segment(torch.ones(5).double(), [torch.zeros_like(change), change], dataset_curvature=dataset)
    assert decompose("paper", interval).n_guarded == 3


# Quadrature, sums


@pytest.mark.parametrize("n_nodes", [3, 5, 9])
def test_simpson_equals_scipys(n_nodes):
    values = randn(n_nodes, 4, 2, seed=n_nodes)
    expected = scipy.integrate.simpson(values.numpy(), dx=1 / (n_nodes - 1), axis=0)
    step = torch.tensor([2.0, -3.0], dtype=torch.float64)
    found = path_integral(list(values), step)
    np.testing.assert_allclose(found.numpy(), expected * step.numpy(), rtol=1e-12, atol=1e-12)
    assert math.isclose(sum(simpson_weights(n_nodes)), 1.0, rel_tol=1e-12)


@pytest.mark.parametrize("n_nodes", [1, 2, 4])
def test_an_even_number_of_nodes_is_refused(n_nodes):
    with pytest.raises(ValueError, match=f"odd number of nodes, at least 3, got {n_nodes}"):
        path_integral([torch.zeros(1, 1)] * n_nodes, torch.ones(1))


def test_the_captured_fraction_is_of_the_means():
    contributions = torch.tensor([[-1.0, -0.5], [0.0, 0.5]])  # tokens sum to -1.5 and 0.5, mean -0.5
    assert captured_fraction(contributions, torch.tensor([-1.0, -3.0])) == pytest.approx(0.25)
    assert captured_fraction(contributions, torch.tensor([1.0, 0.0])) == pytest.approx(-1.0)
    assert math.isnan(captured_fraction(contributions, torch.tensor([1.0, -1.0])))


# A real model


@pytest.fixture(scope="module")
def loss():
    """A tiny model's answer tokens, in float64."""
    task = qfl.load_task("addition", length=2)
    model = build_model(qfl.ModelConfig(d_model=8, n_layers=1, n_heads=2, style="gpt2"), task, seed=1)
    examples = task.sample(np.random.default_rng(0), 6)
    return TokenLoss(model, scored_tokens(task.encode(examples)), dtype=torch.float64)


@pytest.fixture(scope="module")
def directions(loss):
    return torch.linalg.qr(randn(len(loss.space), 3, seed=10))[0].mT.contiguous()


def slopes(loss, theta, directions, *, order=1):
    """First or second derivatives along each direction by nested forward mode."""

    def along(function, b):
        return lambda x: torch.func.jvp(function, (x,), (b,))[1]

    found = []
    for b in directions:
        function = lambda vector: loss(loss.space.unflatten(vector))  # noqa: E731
        for _ in range(order):
            function = along(function, b)
        found.append(function(theta))
    return torch.stack(found, dim=1)


def test_directional_change_moves_the_models_own_weights(loss, directions):
    steps = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
    parameters = loss.parameters()
    kept = {name: tensor.clone() for name, tensor in parameters.items()}
    found = directional_change(loss, parameters, directions, steps)
    scored = loss.scored

    def naive():
        logits = loss.model(scored.tokens)[scored.example, scored.position]
        return functional.cross_entropy(logits, scored.target, reduction="none")

    with torch.no_grad():
        before = naive()
        for index, (step, b) in enumerate(zip(steps, directions, strict=True)):
            for name, part in loss.space.unflatten(step * b).items():
                loss.model.get_parameter(name).add_(part)
            torch.testing.assert_close(found[:, index], naive() - before, rtol=1e-9, atol=1e-12)
            for name, tensor in kept.items():
                loss.model.get_parameter(name).copy_(tensor)
    assert found[:, :2].abs().min() > 1e-6
    assert (found[:, 2] == 0).all()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in loss.parameters().items())


@pytest.mark.parametrize(("accuracy", "order"), [("first", 2), ("second", 3), ("trapezoid", 3), ("path", 5)])
def test_errors_shrink_with_the_order_of_each_accuracy(loss, directions, accuracy, order):
    """Half the step, the error falls `2^order` times: what is left out is of that order in the step."""
    theta = loss.space.flatten(loss.parameters())
    errors = []
    for scale in (0.2, 0.1):
        steps = torch.full((len(directions),), scale, dtype=torch.float64)
        true = directional_change(loss, loss.parameters(), directions, steps)
        contributions = []
        for index, b in enumerate(directions):
            one = b[None]
            nodes = [slopes(loss, theta + s * scale * b, one) for s in (0.0, 0.5, 1.0)]
            interval = Segment(steps[index : index + 1], nodes, slopes(loss, theta, one, order=2))
            contributions.append(decompose(accuracy, interval).contributions)
        errors.append(float((torch.cat(contributions, dim=1) - true).square().mean().sqrt()))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


def test_first_and_second_order_by_hand():
    gradients = torch.tensor([[1.0, 2.0]])
    curvature, step = torch.tensor([[10.0, -4.0]]), torch.tensor([0.5, -1.0])
    assert first_order(gradients, step).tolist() == [[0.5, -2.0]]
    assert second_order(gradients, curvature, step).tolist() == [[0.5 + 1.25, -2.0 - 2.0]]
