"""What a sweep's folder says about itself: its definition and how each run ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from qfl_interp.errors import QflError
from qfl_interp.sealed import Sealed, sealed_json
from qfl_interp.sweep import parts
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.plan import PlannedRun, plan_sweep
from qfl_interp.sweep.sealed import DamagedError, read_sealed
from qfl_interp.sweep.storage import Storage

DEFINITION, PLAN = "sweep.json", "plan.json"
FORMAT, VERSION = "qfl_interp sweep", 1
# Task and length of every planned run by its id.
Plan = dict[str, tuple[str, int]]


def definition_json(config: SweepConfig) -> bytes:
    """The text of `sweep.json`."""
    return sealed_json({"format": FORMAT, "version": VERSION} | config.to_dict())


def read_definition(storage: Storage) -> SweepConfig:
    """The definition of the sweep in a folder.

    Raises:
        QflError: It holds none, or one of another version, or a damaged one; names the file.
    """
    try:
        return definition_of(storage, read_sealed(storage, DEFINITION))
    except FileNotFoundError as error:
        raise QflError(
            f"{storage.folder} is no sweep: it has no {DEFINITION}. `qfl sweep FILE.toml` makes one."
        ) from error


def definition_of(storage: Storage, found: Sealed) -> SweepConfig:
    """The definition that a `sweep.json` holds.

    Raises:
        DamagedError: A value in it is not possible; names the file.
        QflError: It is another version's.
    """
    where, values = f"{storage.folder}/{DEFINITION}", dict(found.values)
    if values.pop("format", None) != FORMAT or values.pop("version", None) != VERSION:
        raise QflError(
            f"{where} was not written by this version of qfl_interp (sweep format {VERSION}). "
            "Open it with the version that wrote it."
        )
    try:
        return SweepConfig.from_dict(values)
    except (QflError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DamagedError(f"{where} is damaged: {error}") from error


def plan_json(runs: Iterable[PlannedRun]) -> bytes:
    """The text of `plan.json`: task and length of every planned run by its id, so that listing need not plan again."""
    return sealed_json({"runs": {run.run_id: [run.config.task, run.config.length] for run in runs}})


def read_plan(storage: Storage, config: SweepConfig) -> Plan:
    """Task and length of every run of the sweep by its id; planned anew where the file is missing or damaged.

    Raises:
        QflError: It is missing or damaged, and the sweep cannot be planned here.
    """
    try:
        return plan_of(storage, read_sealed(storage, PLAN))
    except FileNotFoundError:
        return planned_anew(config)
    except QflError as damage:
        try:
            return planned_anew(config)
        except QflError as error:
            raise QflError(f"{damage} Planning anew fails: {error}") from error


def planned_anew(config: SweepConfig) -> Plan:
    """What `read_plan` finds, from the definition alone."""
    return {run.run_id: (run.config.task, run.config.length) for run in plan_sweep(config).runs}


def plan_of(storage: Storage, found: Sealed) -> Plan:
    """The runs that a `plan.json` holds.

    Raises:
        QflError: It is damaged; names the file.
    """
    runs = found.values.get("runs") if found.checked else found.values
    if not isinstance(runs, dict) or not runs or not all(map(_is_place, runs.values())):
        raise QflError(f"{storage.folder}/{PLAN} is damaged: it must map runs to their task and length.")
    return {run_id: (task, length) for run_id, (task, length) in runs.items()}


def _is_place(value: Any) -> bool:
    return isinstance(value, list) and [type(item) for item in value] == [str, int]


def read_rows(storage: Storage, columns: list[str]) -> pd.DataFrame:
    """Columns of the rows that runs have, one row a run.

    Raises:
        QflError: A part is damaged; names it.
    """
    rows = parts.read_rows(storage)
    return pd.DataFrame(columns=columns) if rows is None else rows.select(columns).to_pandas()


def recorded(storage: Storage) -> dict[str, str]:
    """Status by run id of every run that has a row."""
    rows = read_rows(storage, ["run_id", "status"])
    return dict(zip(rows["run_id"].tolist(), rows["status"].tolist(), strict=True))
