"""Rows that were written and are not there any more: a sweep whose parts were deleted is no unfinished one."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import pyarrow as pa

from qfl_interp.errors import QflError
from qfl_interp.sealed import sealed_json
from qfl_interp.sweep.folder import PLAN, Plan, plan_of
from qfl_interp.sweep.parts import RESULTS, read_rows
from qfl_interp.sweep.sealed import read_sealed
from qfl_interp.sweep.state import STATE_FILE, read_state
from qfl_interp.sweep.storage import Storage


def read_all_rows(storage: Storage) -> pa.Table | None:
    """As `parts.read_rows`, and every run that had a row has one.

    Raises:
        QflError: A part is damaged, or rows are missing; names it or the runs.
    """
    said = rows_said(storage)  # before the parts: a sweep that runs there adds rows first, and says so then
    rows = read_rows(storage)
    missing = missing_rows(storage, [] if rows is None else rows["run_id"].to_pylist(), said)
    if missing:
        raise QflError(missing)
    return rows


def rows_said(storage: Storage) -> int:
    """How many runs had a row when the state was written; 0 where that is missing, damaged or an earlier version's."""
    with contextlib.suppress(FileNotFoundError, QflError):
        return read_state(storage).values.get("rows") or 0
    return 0


def missing_rows(storage: Storage, there: Collection[str], said: int) -> str:
    """What is missing where fewer runs have a row than did; empty where none is.

    Args:
        storage: The sweep's folder.
        there: The runs that have one.
        said: How many had one.
    """
    n = said - len(there)
    if n <= 0:
        return ""
    plan: Plan = {}
    with contextlib.suppress(FileNotFoundError, QflError):
        plan = plan_of(storage, read_sealed(storage, PLAN))
    without = [run_id for run_id in plan if run_id not in set(there)]
    listed = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
    named = f" ({listed})" if len(without) == n else f" (they are among {listed})" if without else ""
    return (
        f"{storage.folder}/{RESULTS} lacks the rows of {n} runs that had one{named}: a part was deleted. Restore it, "
        "or call the sweep again: the rows of finished runs are made anew from their directories, and runs that "
        "diverged or failed are trained again."
    )


def accept_rows(storage: Storage, n_rows: int) -> None:
    """Have the state say no more rows than there are, once nothing is left that could make the others again.

    Raises:
        StorageError: The storage cannot be written.
    """
    if rows_said(storage) > n_rows:
        state: dict[str, Any] = read_state(storage).values
        storage.write_bytes(STATE_FILE, sealed_json(state | {"rows": n_rows}))
