"""How probes' losses and scores are called, written and coloured in every figure that shows them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import pandas as pd

from qfl_interp.plots.lines import finite
from qfl_interp.plots.maps import color_axis
from qfl_interp.plots.theme import is_narrow


class Scores(NamedTuple):
    """What a probe's loss and score are called, and how the numbers of the score are written."""

    loss: str
    unit: str
    score: str
    number: str

    @property
    def loss_title(self) -> str:
        """The loss with its unit."""
        return self.loss + self.unit


# By the column `metric` of a table of probes.
SCORES: Final = {
    "log_loss": Scores("test log loss", " (nats)", "test accuracy", "~%"),
    "mse": Scores("test mean squared error", "", "test R²", "~g"),
}


class View(NamedTuple):
    """A column as the colours of a map, brighter is better; the colours of a loss are logarithms.

    Attributes:
        column: Of the table.
        title: Of the colour bar.
        number: How the bar's numbers are written; None for a loss.
        floor: Losses below this share the last colour; None for a score.
    """

    column: str
    title: str
    number: str | None = None
    floor: float | None = None

    def ends(self, rows: pd.DataFrame) -> tuple[float, float]:
        """The values of the first and the last colour."""
        known = finite(rows[self.column])
        if self.floor is None:
            # R2 has no lower bound; below 0 the mean would do better.
            return max(float(known.min(initial=0.99)), 0.0) if self.column == "test_score" else 0.0, 1.0
        low, high = (max(float(end), self.floor) for end in (known.min(), known.max())) if len(known) else (0.1, 1.0)
        return low, max(high, 1.05 * low)

    def axis(self, ends: tuple[float, float], span: tuple[float, float]) -> dict[str, Any]:
        """The colour axis between these values, its bar over `span`."""
        if self.floor is None:
            return color_axis(self.title, *ends, span=span, tickformat=self.number, nticks=3 if is_narrow() else 5)
        return color_axis(self.title, *ends, scale="Viridis_r", log=True, span=span)
