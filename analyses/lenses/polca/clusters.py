"""Which directions and clusters of a POLCA analysis are drawn, and how each cluster looks in every figure."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from qfl_interp.plots.lines import over_training
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.theme import SERIES, plain, visible
from qfl_interp.polca.trajectories import NO_DIRECTION
from qfl_interp.tables import column, distinct, groups, records, select

# More curves than these cannot be told apart; the seventh colour is the grey of the marks.
_MOST: Final = 6
# So that two entries of a legend stand side by side.
_LEGEND_LETTERS: Final = 23
_CONTEXT_LETTERS: Final = 60


class Quantity(NamedTuple):
    """What was clustered.

    Attributes:
        title: Of its panel.
        name: In words.
        unit: Of the loss; empty of what is none.
    """

    title: str
    name: str
    unit: str

    def of(self, direction: int) -> str:
        """The title with the direction, where there is one."""
        return self.title if direction == NO_DIRECTION else f"{self.title}, direction {direction}"

    @property
    def axis(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


# By the clusters' column `curves`; `quantity_of` has the unit of a task.
_QUANTITIES: Final = {
    "projected": Quantity("POLCA", "projected loss", "nats"),
    "exact_loss": Quantity("Clusters of the exact loss", "exact loss", "nats"),
    "loss_change": Quantity("Clusters of the loss's changes", "loss change", "nats"),
    "fisher": Quantity("Fisher information", "squared gradient", ""),
}


def quantity_of(curves: str, unit: str) -> Quantity:
    """What was clustered, by the column `curves`; `unit` is the loss's."""
    found = _QUANTITIES[curves]
    return found._replace(unit=unit if found.unit else "")


class Cluster(NamedTuple):
    """One cluster of tokens and its look, the same in every figure.

    Attributes:
        row: Of table "polca_clusters".
        label: Its name for people, not yet safe for plotly.
        number: " [1]" for cluster 1 where another of the direction has the same name, else empty.
        color: Hex.
        symbol: Plotly's marker symbol.
        curve: Its rows of table "polca_curves" that a log axis can show; empty where a figure has no curves.
        unit: What its losses are counted in.
    """

    row: dict[str, Any]
    label: str
    number: str
    color: str
    symbol: str
    curve: pd.DataFrame = pd.DataFrame()
    unit: str = "nats"

    @property
    def name(self) -> str:
        """Label and number, as plotly draws them."""
        return plain(self.label + self.number)

    @property
    def group(self) -> str:
        """What a click on the legend hides: all that is drawn of the cluster."""
        return f"polca {self.row['direction']}: {self.row['cluster']}"

    @property
    def quantity(self) -> Quantity:
        """What was clustered."""
        return quantity_of(self.row["curves"], self.unit)

    @property
    def verdict(self) -> str:
        """What is said of its break: "hidden", "plateau" or "learned" where the exact loss is flat, else nothing.

        "learned": the loss of its tokens is flat because nothing is left of it.
        """
        if self.row["hidden"] or not self.row["in_flat"]:
            return "hidden" if self.row["hidden"] else ""
        return "learned" if self.row.get("learned_share", 0) > 0.5 else "plateau"

    @property
    def legend(self) -> str:
        """Name, cut where it is long, size and verdict."""
        size = f"n = {int(self.row['n_tokens']):,}"
        said = f"{size}, {self.verdict}" if self.verdict else size
        return f"{self.short(_LEGEND_LETTERS)} ({said})"

    @property
    def medoid(self) -> str:
        """The end of the medoid's context and its token, as plotly draws them."""
        context = visible(ending(str(self.row["medoid_context"]), _CONTEXT_LETTERS))
        return f"{context} → {visible(self.row['medoid_target'])}"

    def short(self, n: int) -> str:
        """The name with at most `n` letters."""
        return plain(cut(self.label, n - len(self.number)) + self.number)


def cut(text: str, n: int) -> str:
    """At most `n` characters of a text."""
    return text if len(text) <= n else f"{text[: n - 1]}…"


def ending(text: str, n: int) -> str:
    """At most the last `n` characters of a text."""
    return text if len(text) <= n else f"…{text[1 - n :]}"


def on_plateau(clusters: pd.DataFrame) -> np.ndarray:
    """Which clusters break on a plateau of their exact loss: it is flat there, and something is left of it."""
    # Tables of before do not tell these apart.
    learned = clusters["learned_share"] if "learned_share" in clusters else 0.0
    return (column(clusters, "in_flat") > 0) & ~(np.nan_to_num(np.asarray(learned, dtype=float)) > 0.5)


def telling(clusters: pd.DataFrame) -> list[int]:
    """The directions in the order in which they are worth a look.

    First where a cluster that breaks hidden or on a plateau fits its name best (F1), then where any cluster does, then
    by the loss that the clustered tokens shed.

    Args:
        clusters: Table "polca_clusters".
    """
    keys = {}
    for direction, rows in groups(clusters, "direction"):
        f1 = np.nan_to_num(column(rows, "f1"))
        quiet = (column(rows, "hidden") > 0) | on_plateau(rows)
        shed = np.abs(column(rows, "fall")) @ column(rows, "n_tokens")
        keys[int(direction)] = (-float(f1[quiet].max(initial=0.0)), -float(f1.max()), -float(shed), int(direction))
    return sorted(keys, key=lambda direction: keys[direction])


def drawn_clusters(clusters: pd.DataFrame, direction: int) -> list[Cluster]:
    """The largest clusters of a direction, by size, with their looks.

    Args:
        clusters: Table "polca_clusters".
        direction: Which one.

    Raises:
        ValueError: It has no cluster.
    """
    rows = records(select(clusters, direction=direction))
    if not rows:
        known = [int(one) for one in distinct(clusters, "direction")]
        raise ValueError(
            f"direction must be one with a cluster in the polca tables, {known}, got {direction}. Choose one of them."
        )
    ordered = sorted(rows, key=lambda row: (-row["n_tokens"], row["cluster"]))[:_MOST]
    names = [_readable(str(row["name"])) for row in ordered]
    return [
        Cluster(row, name, f" [{row['cluster']}]" if names.count(name) > 1 else "", color, symbol)
        for row, name, (color, symbol) in zip(ordered, names, SERIES, strict=False)
    ]


def drawn_curves(curves: pd.DataFrame, clusters: pd.DataFrame, direction: int, unit: str = "nats") -> list[Cluster]:
    """The same with their curves.

    Args:
        curves: Table "polca_curves".
        clusters: Table "polca_clusters".
        direction: Which one.
        unit: What the loss is counted in.

    Raises:
        ValueError: The direction has no cluster, the curves no row or several of one key, or a cluster has no curve.
    """
    found = drawn_clusters(clusters, direction)
    require_rows(curves, "polca", (), ("direction", "cluster", "step"))
    drawn = []
    for one in found:
        part = select(curves, direction=direction, cluster=one.row["cluster"])
        if part.empty:
            raise ValueError(
                f"every cluster of direction {direction} must have a curve, got none of cluster {one.row['cluster']} "
                "in the curves table. Hand in both tables of one analysis."
            )
        drawn.append(one._replace(curve=over_training(part), unit=unit))
    return drawn


def _readable(name: str) -> str:
    """A cluster's name, `label=value` or two of them joined by " & ", with blanks in values that one can see."""
    seen = re.sub(r"(?<==)\s+", lambda blanks: visible(blanks.group()), name)
    return re.sub(r"(?<!=)_", " ", seen).replace(" & ", ", ")
