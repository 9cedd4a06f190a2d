"""What the columns of a table mean, for a person to read."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from qfl_interp.columns import Column, Columns

_WIDTH: Final = 120
_UNKNOWN: Final = Column("not defined by the lens that gave it")


@dataclass(frozen=True, repr=False)
class ColumnsHelp:
    """The columns of a table with unit and definition; shown as a list, in notebooks as a table.

    Attributes:
        columns: By name, in the table's order.
    """

    columns: Columns

    @classmethod
    def of(cls, names: Sequence[str], defined: Columns) -> ColumnsHelp:
        """Of these columns, as far as they are defined."""
        return cls({name: defined.get(name, _UNKNOWN) for name in names})

    def to_dataframe(self) -> pd.DataFrame:
        """One row a column of the table: `column`, `unit`, `definition`, and `only`, when it is there if not always."""
        rows = [(name, of.unit, of.text, of.only) for name, of in self.columns.items()]
        return pd.DataFrame(rows, columns=pd.Index(["column", "unit", "definition", "only"]))

    def __repr__(self) -> str:
        wide = max(map(len, self.columns), default=0) + 2
        lines = [
            textwrap.fill(said(column), _WIDTH, initial_indent=f"{name:<{wide}}", subsequent_indent=" " * wide)
            for name, column in self.columns.items()
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        pairs = [(html.escape(name), html.escape(said(of))) for name, of in self.columns.items()]
        rows = [f'<tr><td><code>{name}</code></td><td style="text-align:left">{text}</td></tr>' for name, text in pairs]
        return f"<table>{''.join(rows)}</table>"


def said(column: Column) -> str:
    """A column's definition, unit and condition in one line: "learning rate [1/step]; only of runs"."""
    unit = f" [{column.unit}]" if column.unit else ""
    return f"{column.text}{unit}{f' (only {column.only})' if column.only else ''}"
