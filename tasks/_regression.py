"""Closed forms of linear regression in context: what is predicted for each input from the pairs before it.

All of them take `x [batch, pair, d]` and `y [batch, pair]` in float64 and give `[batch, pair - 1]`: the prediction for
x_r from the pairs 0 .. r - 1, for r = 1, 2, ...
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

Inputs = Float64[np.ndarray, "batch pair d"]
Outputs = Float64[np.ndarray, "batch pair"]
Predictions = Float64[np.ndarray, "batch prefix"]

# A new input whose part outside of the span of those before it is this small beside it is in the span.
_IN_SPAN = 1e-9


def best_rate(n_pairs: int, d: int, noise: float) -> float:
    """The rate of one step from 0 along `sum y_i x_i` with the least expected error on a new input.

    With x ~ N(0, I), w ~ N(0, I / d), y = w.x + noise: `E w.g = n` and `E |g|^2 = n (n + d + 1) + n d noise^2` of
    `g = sum y_i x_i`, so that `E |w - eta g|^2` is least at `eta = 1 / (n + d + 1 + d noise^2)`.
    """
    return 1 / (n_pairs + d + 1 + d * noise**2)


def gradient_step(x: Inputs, y: Outputs, noise: float) -> Predictions:
    """`eta sum_i y_i x_i . x_r`: of a linear model after one step of gradient descent from 0, at `best_rate`.

    The step goes along the gradient of `sum_i (w . x_i - y_i)^2 / 2` over the pairs so far.
    """
    n, d = x.shape[1:]
    ahead = np.cumsum(y[:, :-1, None] * x[:, :-1], axis=1)
    rates = np.array([best_rate(r, d, noise) for r in range(1, n)])
    return rates * (ahead * x[:, 1:]).sum(axis=2)


def gradient_step_error(n_pairs: int, d: int, noise: float) -> float:
    """The expected squared error of `gradient_step` after so many pairs, on an output with its noise."""
    return 1 - n_pairs * best_rate(n_pairs, d, noise) + noise**2


def least_squares(x: Inputs, y: Outputs) -> Predictions:
    """The prediction of the least-squares solution of least norm.

    By Greville's recursion: an input outside of the span of those before it fits its output exactly and changes the
    fit in the new direction alone; one inside of it is an update of recursive least squares.
    """
    n_examples, n, d = x.shape
    w, inside = np.zeros((n_examples, d)), np.zeros((n_examples, d, d))
    # `outside` projects on the directions not seen yet; `inside` is the pseudo-inverse of `sum x_i x_i'`.
    outside = np.broadcast_to(np.eye(d), inside.shape).copy()
    found = np.empty((n_examples, n - 1))
    for r in range(n - 1):
        new, error = x[:, r], y[:, r] - (w * x[:, r]).sum(axis=1)
        beyond = np.einsum("bij,bj->bi", outside, new)
        size, seen = (beyond**2).sum(axis=1), np.einsum("bij,bj->bi", inside, new)
        fresh = size > _IN_SPAN**2 * (new**2).sum(axis=1)
        whole = 1 + (new * seen).sum(axis=1)
        gain = np.where(fresh[:, None], beyond / np.where(fresh, size, 1)[:, None], seen / whole[:, None])
        w = w + gain * error[:, None]
        across = gain[:, :, None] * seen[:, None]
        grown = inside - across - across.swapaxes(1, 2) + whole[:, None, None] * gain[:, :, None] * gain[:, None]
        inside = np.where(fresh[:, None, None], grown, inside - across)
        outside = np.where(fresh[:, None, None], outside - gain[:, :, None] * beyond[:, None], outside)
        found[:, r] = (w * x[:, r + 1]).sum(axis=1)
    return found


def ridge(x: Inputs, y: Outputs, penalty: float) -> Predictions:
    """The prediction of ridge regression, by recursive least squares from `I / penalty` on; `penalty` is above 0.

    With `penalty = d noise^2` it is the mean of the posterior, which no prediction beats in expected squared error.
    """
    n_examples, n, d = x.shape
    w, inverse = np.zeros((n_examples, d)), np.broadcast_to(np.eye(d) / penalty, (n_examples, d, d))
    found = np.empty((n_examples, n - 1))
    for r in range(n - 1):
        seen = np.einsum("bij,bj->bi", inverse, x[:, r])
        gain = seen / (1 + (x[:, r] * seen).sum(axis=1))[:, None]
        w = w + gain * (y[:, r] - (w * x[:, r]).sum(axis=1))[:, None]
        inverse = inverse - gain[:, :, None] * seen[:, None]
        found[:, r] = (w * x[:, r + 1]).sum(axis=1)
    return found
