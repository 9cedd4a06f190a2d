"""A page with every column of every table: the definitions that the tables themselves are checked against."""

from __future__ import annotations

from docsite.tables import code, table
from qfl_interp.analyses.all_tables import DefinedTable, all_tables

_ENTRY = """# Columns

Every column of every table, with its unit. Tables are tidy: a row is one measurement, and its first columns say of
what. The same text is `result.columns_help()` in Python. Accuracies and shares are fractions from 0 to 1. "loss unit"
is the unit of the loss that the run was trained on, nats unless it says otherwise.
"""


def page() -> str:
    """The page: a section a lens, below it its tables."""
    parts = [_ENTRY]
    last = None
    for one in all_tables():
        if one.lens != last:
            parts.append(f"## {one.lens or 'Training'}\n")
            last = one.lens
        parts += [f"### Table `{one.name}`\n", _columns(one)]
    return "\n".join(parts)


def _columns(one: DefinedTable) -> str:
    rows = [
        (code(name), column.unit, f"{column.text} (only {column.only})" if column.only else column.text)
        for name, column in one.columns.items()
    ]
    return table(("column", "unit", "meaning"), rows)
