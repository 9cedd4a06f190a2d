"""Every table that lies beside a run, with what its columns mean."""

from __future__ import annotations

from typing import NamedTuple

from qfl_interp.analyses.registered import lenses
from qfl_interp.columns import Columns
from qfl_interp.runs.metric_columns import METRICS


class DefinedTable(NamedTuple):
    """A table of runs.

    Attributes:
        lens: The lens that writes it; empty for what training writes.
        name: The table's.
        columns: By name.
    """

    lens: str
    name: str
    columns: Columns


def all_tables() -> list[DefinedTable]:
    """Every table that lies beside a run: the metrics, then those of each registered lens, other packages' too."""
    found = [DefinedTable("", "metrics", METRICS)]
    return found + [
        DefinedTable(lens.name, name, columns) for lens in lenses() for name, columns in lens.tables.items()
    ]
