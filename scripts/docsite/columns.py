"""A page with every column of every table: the definitions that the tables themselves are checked against."""

from __future__ import annotations

from docsite.tables import code, table
from qfl_interp.analyses.all_tables import all_tables
from qfl_interp.analyses.pages import compare_columns
from qfl_interp.analyses.sweeps import across_columns, scaling_columns
from qfl_interp.columns import Columns
from qfl_interp.sweep.record_columns import RECORDS

# Tables of several runs, by what gives them: they lie beside no run.
OF_SEVERAL = {
    "compare": compare_columns.RESULT,
    "sweep": {"table": RECORDS},
    "sweep scaling": scaling_columns.RESULT,
    "sweep emergence": across_columns.RESULT,
}

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
        parts += [f"### Table `{one.name}`\n", _columns(one.columns)]
    for what, of_result in OF_SEVERAL.items():
        parts.append(f"## {what}\n")
        for name, columns in of_result.items():
            parts += [f"### Table `{name}` of {what}\n", _columns(columns)]
    return "\n".join(parts)


def _columns(columns: Columns) -> str:
    rows = [
        (code(name), column.unit, f"{column.text} (only {column.only})" if column.only else column.text)
        for name, column in columns.items()
    ]
    return table(("column", "unit", "meaning"), rows)
