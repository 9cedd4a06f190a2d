"""The tables of clusters, and what of them is stored beside a run."""

from __future__ import annotations

from typing import Final, NamedTuple

import pandas as pd

from qfl_interp.runs.series import Checkpoints
from qfl_interp.tables import records, select

CLUSTERS: Final = "polca_clusters"
CURVES: Final = "polca_curves"
COMPOSITION: Final = "polca_composition"
INTERVALS: Final = "polca_intervals"


class Clustered(NamedTuple):
    """What the figures on POLCA show.

    Attributes:
        curves: Table "polca_curves", one row a cluster and step.
        clusters: Table "polca_clusters", one row a cluster.
        composition: Table "polca_composition", one row a cluster and label's value.
        intervals: Table "polca_intervals", one row an interval between checkpoints.
    """

    curves: pd.DataFrame
    clusters: pd.DataFrame
    composition: pd.DataFrame
    intervals: pd.DataFrame


def stored(run: Checkpoints) -> Clustered | None:
    """The tables of one finished call on projected losses: of several the one with most intervals; None without any.

    Of equally many, one with the Hessian's directions comes first, and then the one with most directions.
    """
    intervals = select(run.table(INTERVALS).read(), curves="projected")
    if intervals.empty:
        return None
    rest = [run.table(name).read() for name in (CURVES, CLUSTERS, COMPOSITION)]
    calls = intervals.groupby("analysis", as_index=False).agg(n=("step_from", "size"), basis=("basis", "first"))
    n_directions = rest[1].groupby("analysis")["direction"].nunique() if len(rest[1]) else {}
    order = [(row["n"], row["basis"] == "hessian", n_directions.get(row["analysis"], 0)) for row in records(calls)]
    chosen = calls["analysis"].iloc[max(range(len(order)), key=order.__getitem__)]
    return Clustered(*(select(table, analysis=chosen) for table in (*rest, intervals)))
