"""Least squares of log loss for power laws with and without a break and a floor: many data sets of one design at once.

The curve, with x = log C and all logarithms natural:

    log L = log(c + exp(g)),   g = log a - b x - s f log(1 + exp((x - u) / f))

which is c + a C^-b (1 + (C/d)^(1/f))^(-s f) of Caballero et al. (2022), equation 1 with one break, d = exp(u).
For fixed (c, u, f) the law is linear in (log a, b, s): a grid over these three is solved in closed form, and its best
point of each c is the start of a Levenberg-Marquardt descent in all parameters. A batch axis makes a bootstrap of
hundreds of refits one array computation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# Columns of the parameters: log a, b, s, u, log f, and q with c = q^2, which keeps c at or above 0.
LOG_A, SLOPE, STEEPER, BREAK, LOG_WIDTH, ROOT_FLOOR = range(6)
# Starting floors, as shares of the lowest loss. A start at 0 stays there: the law without a floor is among those tried.
_FLOORS = (0.0, 0.3, 0.7, 0.9, 0.99)
_MAX_STEPS = 50
# A step that lowers the sum of squares by less than this share of it is the last.
_CONVERGED = 1e-7


class Form(NamedTuple):
    """Which law is fitted."""

    broken: bool
    irreducible: bool

    @property
    def free(self) -> Int[np.ndarray, " parameter"]:
        """Columns of the parameters that are fitted."""
        columns = [LOG_A, SLOPE]
        columns += [STEEPER, BREAK, LOG_WIDTH] if self.broken else []
        return np.array(columns + ([ROOT_FLOOR] if self.irreducible else []))


def log_curve(
    parameters: Float[np.ndarray, "data 6"], x: Float[np.ndarray, " budget"]
) -> Float[np.ndarray, "data budget"]:
    """The logarithm of L for each row of parameters at x = log C."""
    return _with_floor(parameters, _log_power(parameters, x))


def fit(
    x: Float[np.ndarray, " budget"], y: Float[np.ndarray, "data budget"], weight: Int[np.ndarray, " budget"], form: Form
) -> tuple[Float[np.ndarray, "data 6"], Float[np.ndarray, " data"]]:
    """Parameters that minimise sum_i weight_i (y_i - log L_i)^2 for each data set, and that sum.

    The break lies between the second and the last but one budget; its width between a tenth of the closest budgets'
    distance and the range of all.

    `x` is log C, increasing, `y` the mean log loss and `weight` the number of seeds at each budget.
    """
    # Centred data: the sums are well conditioned, and the descent sees the same numbers in any unit.
    middle, level = x.mean(), y.mean(axis=1, keepdims=True)
    x, y = x - middle, y - level
    w = weight.astype(np.float64)
    starts = [_screen(x, y, w, share, form) for share in (_FLOORS if form.irreducible else _FLOORS[:1])]
    tried = np.concatenate(starts)
    if form.broken or form.irreducible:
        tried = _descend(tried, x, np.tile(y, (len(starts), 1)), w, form)
    cost = _cost(tried, x, np.tile(y, (len(starts), 1)), w).reshape(len(starts), -1)
    best = cost.argmin(axis=0)
    found = tried.reshape(len(starts), len(y), 6)[best, np.arange(len(y))]
    found[:, LOG_A] += level[:, 0] + found[:, SLOPE] * middle
    found[:, BREAK] += middle
    found[:, ROOT_FLOOR] *= np.exp(level[:, 0] / 2)
    return found, cost.min(axis=0)


def _softplus(z: Float[np.ndarray, "row budget"]) -> Float[np.ndarray, "row budget"]:
    """log(1 + exp(z))."""
    return np.logaddexp(0.0, z)


def _log_power(
    parameters: Float[np.ndarray, "data 6"], x: Float[np.ndarray, " budget"]
) -> Float[np.ndarray, "data budget"]:
    """g, the logarithm of the part above the floor."""
    log_a, slope, steeper, break_, log_width = (parameters[:, [column]] for column in range(ROOT_FLOOR))
    width = np.exp(log_width)
    return log_a - slope * x - steeper * width * _softplus((x - break_) / width)


def _with_floor(
    parameters: Float[np.ndarray, "data 6"], power: Float[np.ndarray, "data budget"]
) -> Float[np.ndarray, "data budget"]:
    """log(c + exp(g))."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(power, 2 * np.log(np.abs(parameters[:, [ROOT_FLOOR]])))


def _jacobian(
    parameters: Float[np.ndarray, "data 6"], x: Float[np.ndarray, " budget"]
) -> Float[np.ndarray, "data budget 6"]:
    """Derivatives of log L by the parameters."""
    steeper, break_, root = (parameters[:, [column]] for column in (STEEPER, BREAK, ROOT_FLOOR))
    width = np.exp(parameters[:, [LOG_WIDTH]])
    power = _log_power(parameters, x)
    y = _with_floor(parameters, power)
    z = (x - break_) / width
    soft = _softplus(z)
    sigmoid = np.exp(z - soft)
    columns = [np.ones_like(power), np.broadcast_to(-x, power.shape), -width * soft, steeper * sigmoid]
    columns.append(-steeper * width * (soft - z * sigmoid))
    above = np.exp(power - y)
    return np.stack([above * column for column in columns] + [2 * root * np.exp(-y)], axis=-1)


def _cost(
    parameters: Float[np.ndarray, "data 6"],
    x: Float[np.ndarray, " budget"],
    y: Float[np.ndarray, "data budget"],
    w: Float[np.ndarray, " budget"],
) -> Float[np.ndarray, " data"]:
    """The weighted sum of squares; infinite where it is no number."""
    with np.errstate(over="ignore", invalid="ignore"):
        cost = (y - log_curve(parameters, x)) ** 2 @ w
    return np.where(np.isfinite(cost), cost, np.inf)


def _breaks(x: Float[np.ndarray, " budget"]) -> Float[np.ndarray, "start 2"]:
    """Starting places and widths of the break."""
    spacing = np.diff(x).min()
    places = np.linspace(x[1], x[-2], min(2 * (x.size - 3) + 1, 17)) if x.size > 3 else x[1:2]
    return np.array([(place, width) for place in places for width in (0.2 * spacing, spacing, 3 * spacing)])


def _screen(
    x: Float[np.ndarray, " budget"],
    y: Float[np.ndarray, "data budget"],
    w: Float[np.ndarray, " budget"],
    share: float,
    form: Form,
) -> Float[np.ndarray, "data 6"]:
    """The best parameters on a grid of breaks, with the floor at `share` of each data set's lowest loss.

    log(L - c) is linear in (log a, b, s); to first order its error is L / (L - c) times that of log L.
    """
    floor = share * np.exp(y.min(axis=1, keepdims=True))
    rest = np.exp(y) - floor
    target, weight = np.log(rest), w * (rest / np.exp(y)) ** 2
    grid = _breaks(x) if form.broken else np.array([[0.0, 1.0]])
    place, width = grid[:, :1], grid[:, 1:]
    after = -width * _softplus((x - place) / width)
    # [start, budget, linear parameter]
    basis = np.stack([np.ones_like(after), np.broadcast_to(-x, after.shape), after], axis=-1)
    basis = basis if form.broken else basis[..., :2]
    n_linear = basis.shape[-1]
    products = (basis[..., :, None] * basis[..., None, :]).transpose(1, 0, 2, 3).reshape(x.size, -1)
    normal = (weight @ products).reshape(len(y), len(grid), n_linear, n_linear)
    right = ((weight * target) @ basis.transpose(1, 0, 2).reshape(x.size, -1)).reshape(len(y), len(grid), n_linear)
    ridge = 1e-11 * np.trace(normal, axis1=-2, axis2=-1)[..., None, None] * np.eye(n_linear)
    linear = np.linalg.solve(normal + ridge, right[..., None])[..., 0]
    best = np.sum(right * linear, axis=-1).argmax(axis=1)
    parameters = np.zeros((len(y), 6))
    parameters[:, :n_linear] = linear[np.arange(len(y)), best]
    parameters[:, BREAK], parameters[:, LOG_WIDTH] = grid[best, 0], np.log(grid[best, 1])
    parameters[:, ROOT_FLOOR] = np.sqrt(floor[:, 0])
    return parameters


def _descend(
    start: Float[np.ndarray, "data 6"],
    x: Float[np.ndarray, " budget"],
    y: Float[np.ndarray, "data budget"],
    w: Float[np.ndarray, " budget"],
    form: Form,
) -> Float[np.ndarray, "data 6"]:
    """Levenberg-Marquardt from each start; data sets that have converged leave the batch."""
    free = form.free
    low, high = np.full(6, -np.inf), np.full(6, np.inf)
    low[BREAK], high[BREAK] = x[1], x[-2]
    low[LOG_WIDTH], high[LOG_WIDTH] = np.log(np.diff(x).min() / 10), np.log(x[-1] - x[0])
    found, cost, damping = start.copy(), _cost(start, x, y, w), np.full(len(start), 1e-3)
    active = np.arange(len(start))
    for _ in range(_MAX_STEPS):
        at, data = found[active], y[active]
        jacobian = _jacobian(at, x)[..., free] * np.sqrt(w)[:, None]
        residual = (data - log_curve(at, x)) * np.sqrt(w)
        normal = jacobian.transpose(0, 2, 1) @ jacobian
        diagonal = np.einsum("bpp->bp", normal)
        scale = diagonal + 1e-9 * diagonal.max(axis=1, keepdims=True) + 1e-30
        damped = normal + (damping[active, None] * scale)[:, :, None] * np.eye(len(free))
        step = np.linalg.solve(damped, (jacobian.transpose(0, 2, 1) @ residual[..., None]))[..., 0]
        trial = at.copy()
        trial[:, free] += step
        trial = np.clip(trial, low, high)
        trial_cost = _cost(trial, x, data, w)
        better = trial_cost < cost[active]
        gain = cost[active] - trial_cost
        small = better & (gain <= _CONVERGED * cost[active])
        moved = active[better]
        found[moved], cost[moved] = trial[better], trial_cost[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4)
        active = active[~small & (damping[active] < 1e8)]
        if active.size == 0:
            break
    return found
