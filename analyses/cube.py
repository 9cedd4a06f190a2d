"""Rows of a result as a labelled array: one axis a column that tells them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd

from qfl_interp.columns import RUN, Column
from qfl_interp.errors import QflError
from qfl_interp.tables import distinct

if TYPE_CHECKING:
    import xarray

# How far training was at a step: coordinates of its axis.
_ALONG_STEP: Final = ("flops", "tokens")


class Cube(NamedTuple):
    """How the rows of a result lie in a cube.

    Attributes:
        dims: The columns that are its axes.
        chosen: Values of other columns that are taken unless the caller says otherwise.
    """

    dims: tuple[str, ...]
    chosen: Mapping[str, Any] = {}


def to_xarray(
    rows: pd.DataFrame, cube: Cube, chosen: Mapping[str, Any], columns: Mapping[str, Column]
) -> xarray.Dataset:
    """The rows as a data set: a variable a column, over the cube's axes.

    Args:
        rows: Of a result.
        cube: Its axes.
        chosen: Which value of a further column, as of a feature.
        columns: What the columns mean: `long_name` and `units` of the variables.

    Raises:
        QflError: xarray is not installed; there are no rows of the values; or several of one cell, or none, which is no
            cube: says which columns tell them apart, or which cell is empty.
    """
    try:
        import xarray
    except ImportError as error:
        raise QflError(
            'to_xarray needs the package xarray, which is not installed: pip install "qfl-interp[cubes]".'
        ) from error
    rows = _chosen(rows, {**cube.chosen, **chosen})
    dims = list(cube.dims)
    _require_one_a_cell(rows, dims)
    values = {dim: _along(rows, dim) for dim in dims}
    shape = tuple(map(len, values.values()))
    codes = [pd.Categorical(rows[dim], categories=list(array)).codes for dim, array in values.items()]
    places = np.ravel_multi_index([np.asarray(code, dtype=np.intp) for code in codes], shape)
    empty = np.setdiff1d(np.arange(math.prod(shape)), places)
    if len(empty):
        at = np.unravel_index(empty[0], shape)
        cell = {dim: array[number] for (dim, array), number in zip(values.items(), at, strict=True)}
        raise QflError(
            f"the rows are no cube of {' x '.join(dims)}: {len(empty)} of {math.prod(shape)} cells have no row, such "
            f"as {_said(cell)}. Choose the rows of a part that is one, or take to_dataframe()."
        )
    rows = rows.iloc[np.argsort(places)].drop(columns=dims)
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {dim: (dim, array, _attributes(columns.get(dim))) for dim, array in values.items()}
    attributes: dict[str, Any] = {}
    for name in map(str, rows):
        array = rows[name].to_numpy().reshape(shape)
        words = array.dtype == object
        if name in RUN or (words and len(set(array.ravel().tolist())) == 1):
            attributes[name] = array.flat[0].item() if isinstance(array.flat[0], np.generic) else array.flat[0]
        elif name in _ALONG_STEP and "step" in dims:
            at = tuple(slice(None) if dim == "step" else 0 for dim in dims)
            coordinates[name] = ("step", array[at], _attributes(columns.get(name)))
        else:
            variables[name] = (dims, array, _attributes(columns.get(name)))
    return xarray.Dataset(variables, coordinates, attributes)


def _chosen(rows: pd.DataFrame, chosen: Mapping[str, Any]) -> pd.DataFrame:
    """The rows with these values of columns."""
    for name, value in chosen.items():
        known = distinct(rows, name) if name in rows else []
        if value not in known:
            listed = ", ".join(map(repr, known)) or "no such column"
            raise QflError(f"no row has {name} {value!r}. Known: {listed}.")
        rows = pd.DataFrame(rows.loc[rows[name] == value])
    return rows


def _require_one_a_cell(rows: pd.DataFrame, dims: list[str]) -> None:
    """Raise `QflError` where a cell has several rows."""
    repeated = pd.DataFrame(rows.loc[rows.duplicated(dims, keep=False)])
    if repeated.empty:
        return
    cell = {name: repeated[name].iloc[0] for name in dims}
    same = _chosen(repeated, cell)
    apart = [n for n in map(str, same) if same[n].dtype.kind != "f" and len(distinct(same, n)) > 1 and n not in RUN]
    said = f"the rows are no cube of {' x '.join(dims)}: {len(same)} rows of one cell, {_said(cell)}."
    if not apart:
        raise QflError(f"{said} Nothing tells them apart; take to_dataframe().")
    listed = "; ".join(f"{name}: {', '.join(repr(value) for value in distinct(same, name)[:8])}" for name in apart)
    example = f"to_xarray({apart[0]}={distinct(same, apart[0])[0]!r})"
    raise QflError(f"{said} Choose one value of what tells them apart, as in {example}. There are {listed}.")


def _along(rows: pd.DataFrame, dim: str) -> np.ndarray:
    """The values along an axis: numbers ascend, words are as they first appear."""
    values = np.asarray(distinct(rows, dim))
    return np.sort(values) if values.dtype.kind in "iuf" else values


def _attributes(column: Column | None) -> dict[str, str]:
    if column is None:
        return {}
    return {"long_name": column.text} | ({"units": column.unit} if column.unit else {})


def _said(cell: Mapping[str, Any]) -> str:
    """A cell in words."""
    return ", ".join(f"{name} {value}" for name, value in cell.items())
