"""Linear regression in context against lstsq, autograd and the moments of its numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.seeding import generator
from qfl_interp.tasks._regression import best_rate, gradient_step, least_squares, ridge
from qfl_interp.tasks.linear_regression import UNIT


def _task(**options) -> qfl.Task:
    return qfl.load_task("linear_regression", length=9, d=3, **options)


def _labels(task, examples, name) -> np.ndarray:
    return task.features[name].labels(examples)


@pytest.mark.parametrize("options", [{}, {"noise": 0.5}, {"alternating": True}], ids=str)
def test_least_squares_is_numpys_of_least_norm(options):
    task = _task(**options)
    examples = task.sample(generator(0, "lstsq"), 50)
    (x, y), found = task.pairs(examples), _labels(task, examples, "least_squares")
    for i in range(50):
        for r in range(1, task.length):
            w = np.linalg.lstsq(x[i, :r], y[i, :r], rcond=None)[0]
            np.testing.assert_allclose(found[i, r - 1], w @ x[i, r], rtol=1e-7, atol=1e-9)


def test_least_squares_of_inputs_that_repeat():
    """Inputs inside of the span of those before, exactly, and a zero one."""
    x = np.array([[[1.0, 2], [2, 4], [0, 0], [1, 1], [3, 5], [1, 0]]])
    y = np.array([[1.0, 3, 1, 2, 0, 0]])
    found = least_squares(x, y)[0]
    for r in range(1, 6):
        w = np.linalg.lstsq(x[0, :r], y[0, :r], rcond=None)[0]
        np.testing.assert_allclose(found[r - 1], w @ x[0, r], rtol=1e-9, atol=1e-12)


def test_gradient_step_is_autograds():
    task = _task(noise=0.3)
    examples = task.sample(generator(1, "step"), 20)
    x, y = (torch.from_numpy(part) for part in task.pairs(examples))
    found = _labels(task, examples, "gradient_step")
    for i in range(20):
        for r in range(1, task.length):
            w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
            ((x[i, :r] @ w - y[i, :r]) ** 2).sum().div(2).backward()
            moved = -task.step_rate(r) * w.grad
            np.testing.assert_allclose(found[i, r - 1], float(moved @ x[i, r]), rtol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_the_rate_is_the_best_one_and_the_baseline_its_error(noise):
    """Against a scan over rates on data: the error is least there, and as large as the closed form says."""
    task = _task(noise=noise)
    x, y = task.pairs(task.sample(generator(2, "rate"), 40_000))
    step = gradient_step(x, y, noise)
    for r in (1, 4, 8):
        one = step[:, r - 1] / best_rate(r, 3, noise)  # the step at rate 1
        fitted = float((one * y[:, r]).mean() / (one**2).mean())
        assert abs(fitted / best_rate(r, 3, noise) - 1) < 0.04
    errors = (step - y[:, 1:]) ** 2 / 2
    assert abs(errors.mean() - task.baselines["gradient_step"]) < 4 * errors.mean(axis=1).std() / 200
    constant = y[:, 1:] ** 2 / 2
    assert abs(constant.mean() - task.baselines["base_rate"]) < 4 * constant.mean(axis=1).std() / 200


def test_ridge_is_the_regularised_solution_and_the_best_under_noise():
    task = _task(noise=0.5)
    examples = task.sample(generator(3, "ridge"), 5000)
    (x, y), found = task.pairs(examples), _labels(task, examples, "ridge")
    penalty = 3 * 0.5**2
    for r in (1, 2, 3, 8):
        gram = np.einsum("bri,brj->bij", x[:, :r], x[:, :r]) + penalty * np.eye(3)
        w = np.linalg.solve(gram, np.einsum("bri,br->bi", x[:, :r], y[:, :r])[..., None])[..., 0]
        np.testing.assert_allclose(found[:, r - 1], (w * x[:, r]).sum(axis=1), rtol=1e-7, atol=1e-9)
    error = {name: ((_labels(task, examples, name) - y[:, 1:]) ** 2).mean() for name in task.features}
    others = [((ridge(x, y, factor * penalty) - y[:, 1:]) ** 2).mean() for factor in (0.25, 4)]
    assert error["ridge"] < min(error["gradient_step"], error["least_squares"], *others)


def test_without_noise_enough_pairs_say_everything_and_ridge_is_left_out():
    task = _task()
    examples = task.sample(generator(4, "exact"), 200)
    y = task.pairs(examples)[1]
    np.testing.assert_allclose(_labels(task, examples, "least_squares")[:, 3:], y[:, 4:], atol=0.01)
    assert set(task.features) == {"gradient_step", "least_squares"}


@pytest.mark.parametrize("alternating", [False, True])
def test_layout_by_hand(alternating):
    task = qfl.load_task("linear_regression", length=2, d=2, alternating=alternating)
    one = round(1 / UNIT)
    batch = task.encode(np.array([[1, 2, 3, 4, 5, 6]]) * one)
    if alternating:
        assert batch.tokens[0].tolist() == [[1, 2, 0], [0, 0, 3], [4, 5, 0], [0, 0, 6]]
        assert batch.loss_mask[0].tolist() == [False, False, False, True]
        assert task.features["least_squares"].positions(np.zeros((1, 6), dtype=int)).tolist() == [[2]]
    else:
        assert batch.tokens[0].tolist() == [[1, 2, 0, 0, 0], [4, 5, 1, 2, 3], [0, 0, 4, 5, 6]]
        assert batch.loss_mask[0].tolist() == [False, False, True]
        assert task.features["least_squares"].positions(np.zeros((1, 6), dtype=int)).tolist() == [[1]]
    assert batch.targets[0, -1].tolist() == [6]


def test_pairs_have_the_same_inputs_and_another_w():
    task = _task()
    pairs = task.sample_pairs(generator(5, "pairs"), 30, "least_squares", 4)
    (x, y), (other_x, other_y) = task.pairs(pairs.clean), task.pairs(pairs.corrupted)
    np.testing.assert_array_equal(x, other_x)
    assert (y != other_y).all(axis=1).all()


def test_numbers_are_as_they_are_said_to_be():
    """Moments of x, y and w, within four standard errors."""
    task = _task(noise=0.5)
    x, y = task.pairs(task.sample(generator(6, "moments"), 20_000))
    assert abs(x.mean()) < 4 / math.sqrt(x.size)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / x.size)
    assert abs(y[:, 0].var() - 1.25) < 4 * np.std(y[:, 0] ** 2) / math.sqrt(len(y))


def test_what_is_no_example_is_refused():
    task = _task()
    with pytest.raises(ValueError, match=r"rows of 9 pairs of 3 \+ 1 numbers within 256"):
        task.encode(np.zeros((2, 5), dtype=np.int32))
    with pytest.raises(ValueError, match="within 256"):
        task.encode(np.full((2, 36), 2**24, dtype=np.int32))
    tokens = task.encode(task.sample(generator(7, "bad"), 2)).tokens
    with pytest.raises(ValueError, match="must be vectors of shape"):
        task.decode(tokens[:, :3])
    with pytest.raises(ValueError, match="must be what `encode` gives"):
        task.decode(tokens + 1e-6)
    with pytest.raises(ValueError, match="must be what `encode` gives"):
        task.decode(tokens.flip(1))
    with pytest.raises(ValueError, match=r"d of task 'linear_regression' must be an integer in \[1, 32\]"):
        qfl.load_task("linear_regression", d=0)
