"""Power laws of loss against compute, plain and with one smooth break, with intervals.

Both are fitted by least squares on the logarithm of the loss, every run counting once: the error of a loss is then a
factor, the same at every budget. Where seeds spread more at some budgets than at others (within a transition they do)
the estimates stay consistent, but intervals and tests are only approximate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float, Shaped

from qfl_interp.memory import available_bytes, require_memory
from qfl_interp.scaling.least_squares import BREAK, LOG_A, LOG_WIDTH, ROOT_FLOOR, SLOPE, STEEPER, Form, fit, log_curve
from qfl_interp.scaling.replicates import Replicates, replicates
from qfl_interp.stats import Interval


@dataclass(frozen=True, repr=False, kw_only=True)
class _Law:
    """What both laws have.

    Attributes:
        amplitude: a, the part of the loss above the floor at one FLOP: far outside the data, so its interval is wide.
        exponent: b; positive where the loss falls.
        floor: c >= 0, the irreducible loss in nats; None where it was fixed to 0.
        rss: Residual sum of squares of log losses, seeds about their mean included.
        sigma: Residual standard deviation of log loss, sqrt(rss / (n - parameters)).
        aicc: Small-sample Akaike criterion; lower is better. Compare only fits to the same losses.
        n: Losses fitted.
    """

    amplitude: Interval
    exponent: Interval
    floor: Interval | None
    rss: float
    sigma: float
    aicc: float
    n: int

    @property
    def parameters(self) -> Float[np.ndarray, "1 6"]:
        """The estimates as a row of `least_squares`."""
        row = np.zeros((1, 6))
        row[0, LOG_A], row[0, SLOPE] = np.log(self.amplitude.estimate), self.exponent.estimate
        row[0, ROOT_FLOOR] = np.sqrt(self.floor.estimate if self.floor else 0.0)
        return row

    def predict(self, budget: Shaped[np.ndarray, " at"]) -> Float[np.ndarray, " at"]:
        """The law's loss in nats at budgets in FLOPs."""
        return np.exp(log_curve(self.parameters, np.log(np.asarray(budget, dtype=np.float64)))[0])


@dataclass(frozen=True, repr=False, kw_only=True)
class PowerLaw(_Law):
    """L = c + a C^-b, L in nats and C in FLOPs."""

    def __repr__(self) -> str:
        floor = f"{self.floor.estimate:.3g} + " if self.floor else ""
        b = self.exponent
        law = f"L = {floor}{self.amplitude.estimate:.3g} C^-{b.estimate:.3g}".replace("^--", "^")
        return f"PowerLaw({law}, b {100 * b.level:g} % [{b.low:.3g}, {b.high:.3g}], n={self.n}, AICc {self.aicc:.4g})"


@dataclass(frozen=True, repr=False, kw_only=True)
class BrokenPowerLaw(_Law):
    """L = c + a C^-b (1 + (C/d)^(1/f))^(-s f), L in nats and C in FLOPs: exponent b below d and b + s above.

    Attributes:
        change: s, what the break adds to the exponent; positive where the loss falls faster after it.
        break_flops: d, in FLOPs, between the second and the last but one budget.
        width: f, the sharpness in natural logarithms of C: the exponent turns within about 4 f. A break sharper than a
            tenth of the budgets' distance cannot be told from one of that width, which is the least allowed.
    """

    change: Interval
    break_flops: Interval
    width: Interval

    @property
    def parameters(self) -> Float[np.ndarray, "1 6"]:
        """The estimates as a row of `least_squares`."""
        row = super().parameters
        row[0, STEEPER], row[0, BREAK] = self.change.estimate, np.log(self.break_flops.estimate)
        row[0, LOG_WIDTH] = np.log(self.width.estimate)
        return row

    def __repr__(self) -> str:
        floor = f", floor {self.floor.estimate:.3g}" if self.floor else ""
        b, d = self.exponent.estimate, self.break_flops
        return (
            f"BrokenPowerLaw(exponent {b:.3g} -> {b + self.change.estimate:.3g} at {d.estimate:.3g} FLOPs "
            f"[{d.low:.3g}, {d.high:.3g}]{floor}, n={self.n}, AICc {self.aicc:.4g})"
        )


def fit_power_law(
    budget: Shaped[np.ndarray, " budget"],
    loss: Shaped[np.ndarray, "budget ..."],
    *,
    irreducible: bool = False,
    rng: np.random.Generator | None = None,
    n_resamples: int = 499,
    level: float = 0.95,
) -> PowerLaw:
    """The least-squares power law of loss against compute, on log loss.

    Without a floor this is a straight line in (log C, log L), and the intervals are Student's t with n - 2 degrees of
    freedom, exact for normal errors. With one, the law is not linear and c may lie on its bound: intervals are then the
    percentiles of a parametric bootstrap (refits of data drawn from the fitted law with its residual variance).

    Args:
        budget: Training FLOPs, each once.
        loss: Losses in nats, or any positive quantity; with a seed axis, NaN where a run is missing.
        irreducible: Fit c as well; it must be told apart from a shallow slope, so trust it only where the curve
            levels off within the data.
        rng: The bootstrap's source of randomness; needed with `irreducible` only.
        n_resamples: Bootstrap refits.
        level: Nominal coverage of the intervals.

    Raises:
        ValueError: A value is not positive and finite, a budget stands twice, there are fewer budgets than parameters
            or no more losses than parameters, or `irreducible` without `rng`.

    References:
        Hestness et al. (2017), arXiv 1712.00409, equation 1; Kaplan et al. (2020), arXiv 2001.08361.
    """
    form = Form(broken=False, irreducible=irreducible)
    data = checked(replicates(budget, loss), form)
    found, rss, sigma = fit_once(data, form)
    if irreducible:
        if rng is None:
            raise ValueError("irreducible=True makes its intervals by a bootstrap: pass rng, a numpy Generator.")
        ends = _bootstrap(data, form, found, sigma, rng, n_resamples, level)
        method = "parametric bootstrap"
    else:
        ends = _student_ends(data, found, sigma, level)
        method = "Student t"
    intervals = _intervals(found, ends, form, data.n, level, method)
    return PowerLaw(**intervals, rss=rss, sigma=sigma, aicc=aicc(rss, data.n, form), n=data.n)


def fit_broken_power_law(
    budget: Shaped[np.ndarray, " budget"],
    loss: Shaped[np.ndarray, "budget ..."],
    rng: np.random.Generator,
    *,
    irreducible: bool = False,
    n_resamples: int = 499,
    level: float = 0.95,
) -> BrokenPowerLaw:
    """The least-squares power law with one smooth break, on log loss, from many starts.

    The intervals are percentiles of a parametric bootstrap. A plateau, a drop and a second plateau need `irreducible`:
    one break bends the curve once, and the floor ends the drop.

    Args:
        budget: Training FLOPs, each once.
        loss: Losses in nats, or any positive quantity; with a seed axis, NaN where a run is missing.
        rng: The bootstrap's source of randomness.
        irreducible: Fit the floor c too.
        n_resamples: Bootstrap refits.
        level: Nominal coverage of the intervals.

    Raises:
        ValueError: As in `fit_power_law`.

    References:
        Caballero et al. (2022), Broken Neural Scaling Laws, arXiv 2210.14891, equation 1 with one break.
    """
    form = Form(broken=True, irreducible=irreducible)
    data = checked(replicates(budget, loss), form)
    found, rss, sigma = fit_once(data, form)
    ends = _bootstrap(data, form, found, sigma, rng, n_resamples, level)
    intervals = _intervals(found, ends, form, data.n, level, "parametric bootstrap")
    return BrokenPowerLaw(**intervals, rss=rss, sigma=sigma, aicc=aicc(rss, data.n, form), n=data.n)


def checked(data: Replicates, form: Form) -> Replicates:
    """The data, if they are enough for the law. Raises ValueError otherwise."""
    needed = len(form.free)
    if data.mean.size < needed or data.n <= needed:
        raise ValueError(
            f"a law of {needed} parameters needs {needed} budgets and more than {needed} losses, "
            f"got {data.mean.size} and {data.n}. Add budgets or seeds, or fit a law of fewer parameters."
        )
    return data


def fit_once(data: Replicates, form: Form) -> tuple[Float[np.ndarray, "1 6"], float, float]:
    """The parameters, the residual sum of squares with its pure part, and the residual standard deviation."""
    found, cost = fit(data.log_budget, data.mean[None], data.count, form)
    rss = float(cost[0]) + data.pure
    return found, rss, float(np.sqrt(rss / (data.n - len(form.free))))


def aicc(rss: float, n: int, form: Form) -> float:
    """AICc = n log(rss / n) + 2 k + 2 k (k + 1) / (n - k - 1), where k counts the variance too.

    Infinite where n <= k + 1, and minus infinity for a perfect fit.

    References:
        Hurvich and Tsai (1989), Regression and time series model selection in small samples.
    """
    k = len(form.free) + 1
    if n <= k + 1:
        return float("inf")
    return (n * float(np.log(rss / n)) if rss > 0 else -float("inf")) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def simulate_means(
    data: Replicates,
    found: Float[np.ndarray, "1 6"],
    sigma: float | Float[np.ndarray, " budget"],
    rng: np.random.Generator,
    n: int,
) -> Float[np.ndarray, "data budget"]:
    """Mean log losses of `n` data sets drawn from a law, of the data's design, with errors of deviation `sigma`."""
    # Each set, its noise and its refit.
    needed = 8 * n * (3 * data.mean.size + found.shape[-1])
    require_memory(needed, available_bytes(), f"{n:,} resamples of {data.mean.size} budgets", "Take fewer n_resamples.")
    noise = rng.standard_normal((n, data.mean.size))
    return log_curve(found, data.log_budget) + sigma / np.sqrt(data.count) * noise


def _student_ends(
    data: Replicates, found: Float[np.ndarray, "1 6"], sigma: float, level: float
) -> Float[np.ndarray, "2 6"]:
    """Both ends of log a and b of a straight line, as in linear regression."""
    x, m = data.log_budget, data.count
    middle = float(np.average(x, weights=m))
    spread = float(m @ (x - middle) ** 2)
    error = np.zeros(6)
    error[LOG_A] = sigma * np.sqrt(1 / data.n + middle**2 / spread)
    error[SLOPE] = sigma / np.sqrt(spread)
    half = float(scipy.stats.t.ppf((1 + level) / 2, data.n - 2)) * error
    return np.stack([found[0] - half, found[0] + half])


def _bootstrap(
    data: Replicates,
    form: Form,
    found: Float[np.ndarray, "1 6"],
    sigma: float,
    rng: np.random.Generator,
    n_resamples: int,
    level: float,
) -> Float[np.ndarray, "2 6"]:
    """Percentiles of the parameters refitted to data drawn from the fitted law."""
    means = simulate_means(data, found, sigma, rng, n_resamples)
    refitted, _ = fit(data.log_budget, means, data.count, form)
    refitted[:, ROOT_FLOOR] = np.abs(refitted[:, ROOT_FLOOR])
    return np.quantile(refitted, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _intervals(
    found: Float[np.ndarray, "1 6"], ends: Float[np.ndarray, "2 6"], form: Form, n: int, level: float, method: str
) -> dict[str, Any]:
    """The law's intervals by name: all maps from the parameters are monotone."""
    rows = np.concatenate([found, ends])
    rows[:, ROOT_FLOOR] = rows[:, ROOT_FLOOR] ** 2
    with np.errstate(over="ignore"):
        for column in (LOG_A, BREAK, LOG_WIDTH):
            rows[:, column] = np.exp(rows[:, column])
    names = ("amplitude", "exponent", "change", "break_flops", "width", "floor")
    every = [Interval(estimate, low, high, n, level, method) for estimate, low, high in rows.T.tolist()]
    return {"floor": None} | {names[at]: every[at] for at in form.free}
