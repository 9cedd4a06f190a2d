"""Typed access to result tables: rows by value, groups, columns as floats, rows as records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float


def select(table: pd.DataFrame, **equals: object) -> pd.DataFrame:
    """Rows whose columns have these values; a table without rows may lack the columns and stays as it is."""
    if table.empty:
        return table
    keep = np.ones(len(table), dtype=bool)
    for name, value in equals.items():
        keep &= np.asarray(table[name] == value, dtype=bool)
    return pd.DataFrame(table.loc[keep])


def column(table: pd.DataFrame, name: str) -> Float[np.ndarray, " row"]:
    """One column as floats; a missing value is NaN."""
    return np.asarray(table[name], dtype=float)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def distinct(table: pd.DataFrame, name: str) -> list[Any]:
    """A column's values in the order in which they first appear; none for a table without rows."""
    return [] if table.empty else list(dict.fromkeys(table[name].tolist()))


def groups(table: pd.DataFrame, name: str) -> list[tuple[Any, pd.DataFrame]]:
    """Each value of a column with its rows, in the order in which the values first appear; NaN has no rows."""
    if table.empty:
        return []
    # One pass: to compare every row with every step would take the square of the steps.
    places = table.groupby(name, sort=False, observed=True).indices
    return [(value, pd.DataFrame(table.iloc[places.get(value, [])])) for value in distinct(table, name)]


def titled(table: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Some columns under the names that a reader sees; those that the table lacks are left out.

    Its `attrs["names"]` has the columns' own names by those, by which their definitions are found.
    """
    shown = table.filter(list(titles)).rename(columns=dict(titles))
    shown.attrs["names"] = {title: name for name, title in titles.items() if title in shown}
    return shown
