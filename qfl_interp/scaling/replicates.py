"""Losses of several seeds at several budgets, as every fit of a scaling law reads them: means of log loss and counts.

Under errors of log loss that are normal, independent and of one variance, the mean at each budget, the count and the
pooled sum of squares within budgets say all that a least-squares fit can use:
sum_ij (y_ij - f_i)^2 = SS_pure + sum_i m_i (ybar_i - f_i)^2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


class Replicates(NamedTuple):
    """Log losses at each budget.

    Attributes:
        log_budget: Natural logarithm of the budgets (FLOPs), increasing.
        mean: Mean over seeds of the natural logarithm of the loss (nats) at each budget.
        count: Seeds at each budget.
        squares: Sum of squares of the log losses of each budget about their mean.
    """

    log_budget: Float[np.ndarray, " budget"]
    mean: Float[np.ndarray, " budget"]
    count: Int[np.ndarray, " budget"]
    squares: Float[np.ndarray, " budget"]

    @property
    def pure(self) -> float:
        """SS_pure, the sum of squares of log losses about the mean of their budget."""
        return float(self.squares.sum())

    @property
    def n(self) -> int:
        """Losses in all."""
        return int(self.count.sum())


def replicates(budget: Shaped[np.ndarray, " budget"], loss: Shaped[np.ndarray, "budget ..."]) -> Replicates:
    """Checked losses; with a seed axis, a NaN is a run that is not there, and a budget without any is left out.

    Raises:
        ValueError: A budget or loss is not positive and finite (a loss must have a logarithm), a budget stands twice,
            or fewer than 3 budgets are left.
    """
    c, y = np.asarray(budget, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    for name, values in (("budget", c), ("loss", y)):
        missing = np.isnan(values) & (name == "loss" and y.ndim > 1)
        bad = np.flatnonzero(~missing & ~(np.isfinite(values) & (values > 0)))
        if bad.size:
            where = tuple(int(i) for i in np.unravel_index(bad[0], values.shape))
            raise ValueError(
                f"{name} must be positive and finite, got {values[where]} at index {where}: it has no logarithm. "
                "Leave such points out."
            )
    if np.unique(c).size != c.size:
        raise ValueError("each budget must stand once, with its seeds along the second axis of loss. Pivot the table.")
    order = np.argsort(c)
    rows = np.log(y.reshape(c.size, -1)[order])
    count = np.sum(~np.isnan(rows), axis=1)
    kept = count > 0
    if kept.sum() < 3:
        raise ValueError(f"a law needs losses at 3 budgets at least, got {int(kept.sum())}. Add budgets.")
    rows, count = rows[kept], count[kept]
    mean = np.nanmean(rows, axis=1)
    return Replicates(np.log(c[order][kept]), mean, count, np.nansum((rows - mean[:, None]) ** 2, axis=1))
