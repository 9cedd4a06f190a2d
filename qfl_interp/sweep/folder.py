"""What a sweep's folder says about itself: its definition and how each run ended."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable

import pandas as pd

from qfl_interp.errors import QflError
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.plan import PlannedRun, plan_sweep
from qfl_interp.sweep.records import RESULTS, latest
from qfl_interp.sweep.storage import Storage

DEFINITION, PLAN = "sweep.json", "plan.json"
FORMAT, VERSION = "qfl_interp sweep", 1


def definition_json(config: SweepConfig) -> bytes:
    """The text of `sweep.json`."""
    return json.dumps({"format": FORMAT, "version": VERSION} | config.to_dict(), indent=1).encode()


def read_definition(storage: Storage) -> SweepConfig:
    """The definition of the sweep in a folder.

    Raises:
        QflError: It holds none, or one of another version, or a damaged one.
    """
    where = f"{storage.folder}/{DEFINITION}"
    if not storage.exists(DEFINITION):
        raise QflError(f"{storage.folder} is no sweep: it has no {DEFINITION}. `qfl sweep FILE.toml` makes one.")
    try:
        values = json.loads(storage.read_bytes(DEFINITION))
    except (OSError, ValueError) as error:
        raise QflError(f"{where} cannot be read: {error}.") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT or values.pop("version", None) != VERSION:
        raise QflError(f"{where} was not written by this version of qfl_interp (sweep format {VERSION}).")
    try:
        return SweepConfig.from_dict(values)
    except QflError as error:
        raise QflError(f"{where} is damaged: {error}") from error


def plan_json(runs: Iterable[PlannedRun]) -> bytes:
    """The text of `plan.json`: task and length of every planned run by its id, so that listing need not plan again."""
    return json.dumps({run.run_id: [run.config.task, run.config.length] for run in runs}).encode()


def read_plan(storage: Storage, config: SweepConfig) -> dict[str, tuple[str, int]]:
    """Task and length of every run of the sweep by its id; planned anew where the file is missing or damaged."""
    try:
        return {run_id: (task, length) for run_id, (task, length) in json.loads(storage.read_bytes(PLAN)).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {run.run_id: (run.config.task, run.config.length) for run in plan_sweep(config).runs}


def read_rows(storage: Storage, columns: list[str]) -> pd.DataFrame:
    """Columns of the rows that runs have, one row a run; `columns` holds "run_id" and "finished_at".

    Raises:
        QflError: A part is damaged; names it.
    """
    try:
        return _read_rows(storage, columns)
    except FileNotFoundError:
        # The sweep that runs there has just put its parts together into others.
        return _read_rows(storage, columns)


def _read_rows(storage: Storage, columns: list[str]) -> pd.DataFrame:
    parts = []
    for path in storage.glob(f"{RESULTS}/task=*/part-*.parquet"):
        data = storage.read_bytes(path)
        try:
            parts.append(pd.read_parquet(io.BytesIO(data), columns=columns))
        except (ValueError, OSError) as error:
            raise QflError(
                f"{storage.folder}/{path} is damaged: {error}. Delete it and call the sweep again: its rows are made "
                "anew from the runs' directories."
            ) from error
    return latest(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame(columns=columns)


def recorded(storage: Storage) -> dict[str, str]:
    """Status by run id of every run that has a row."""
    rows = read_rows(storage, ["run_id", "status", "finished_at"])
    return dict(zip(rows["run_id"].tolist(), rows["status"].tolist(), strict=True))
