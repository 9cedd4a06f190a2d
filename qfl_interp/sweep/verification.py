"""Every file of a sweep against its checksum, and every row against the directory of its run; nothing is changed."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from qfl_interp.errors import QflError
from qfl_interp.runs.config import CONFIG_FILE
from qfl_interp.runs.run import Run
from qfl_interp.sweep.complete import missing_rows
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.folder import DEFINITION, PLAN, Plan, definition_of, plan_of, planned_anew
from qfl_interp.sweep.parts import RESULTS, latest, part_paths, read_part
from qfl_interp.sweep.plan import PlannedRun
from qfl_interp.sweep.records import make_record
from qfl_interp.sweep.sealed import read_sealed
from qfl_interp.sweep.state import STATE_FILE, read_state
from qfl_interp.sweep.storage import Storage
from qfl_interp.tables import records

# What only the row says: nothing in the run's directory tells it.
_ROW_ALONE = ("status", "error", "attempts", "group_size", "device", "finished_at")


@dataclass
class SweepVerification:
    """What `verify_sweep` found.

    Attributes:
        rows: Runs that have a row.
        whole: Run directories in which nothing is wrong.
        problems: One sentence for each file, row or run that is not what it should be.
        unchecked: One sentence for what nothing could be said about, such as files without a checksum.
    """

    rows: int = 0
    whole: int = 0
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """True where nothing is wrong."""
        return not self.problems

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Take what goes wrong as a problem."""
        try:
            yield
        except QflError as error:
            self.problems.append(str(error))


def is_sweep(folder: str) -> bool:
    """Whether a folder or URL holds a sweep, perhaps one that lost its definition, and no run.

    Raises:
        QflError: The storage cannot be read.
    """
    storage = Storage(folder)
    return not storage.exists(CONFIG_FILE) and any(storage.exists(name) for name in (DEFINITION, RESULTS))


def verify_sweep(folder: str) -> SweepVerification:
    """Check a sweep's definition, plan, state and rows, the directory of every run, and each row against its directory.

    Args:
        folder: A local path or an fsspec URL; of remote storage every run is downloaded, one at a time.

    Raises:
        QflError: The storage cannot be reached.
    """
    storage, found = Storage(folder), SweepVerification()
    config = _check_definition(storage, found)
    plan = _check_plan(storage, config, found)
    state = _check_state(storage, found)
    running = bool(state.get("running"))
    rows = _check_rows(storage, state.get("rows") or 0, found)
    found.rows = len(rows)
    for run_id, path in {**_planned_paths(plan), **{row["run_id"]: row["path"] for row in rows.values()}}.items():
        try:
            _check_run(storage, path, rows.get(run_id), running, found)
        except QflError as error:
            found.problems.append(str(error))
        except Exception as error:  # whatever one run holds, the others are checked
            found.problems.append(f"{storage.folder}/{path} cannot be read: {type(error).__name__}: {error}")
    with found.noting():
        known = {*_planned_paths(plan).values(), *(row["path"] for row in rows.values())}
        strange = sorted(set(storage.glob("runs/*/*")) - known)
        found.unchecked += [f"{storage.folder}/{path} is named by no plan and by no row." for path in strange]
    return found


def _check_definition(storage: Storage, found: SweepVerification) -> SweepConfig | None:
    with found.noting():
        try:
            sealed = read_sealed(storage, DEFINITION)
        except FileNotFoundError:
            found.problems.append(
                f"{storage.folder}/{DEFINITION} is missing. Call the sweep again with its TOML file and --extend."
            )
            return None
        _note_unsealed(storage, DEFINITION, sealed.checked, found)
        return definition_of(storage, sealed)
    return None


def _check_plan(storage: Storage, config: SweepConfig | None, found: SweepVerification) -> Plan:
    """The planned runs: of the definition where it can be planned, else of the file."""
    again = "Delete it: listings plan anew, and the next call of the sweep writes it again."
    stored: Plan | None = None
    try:
        sealed = read_sealed(storage, PLAN)
        _note_unsealed(storage, PLAN, sealed.checked, found)
        stored = plan_of(storage, sealed)
    except FileNotFoundError:
        found.unchecked.append(f"{storage.folder}/{PLAN} is not there; listings plan anew.")
    except QflError as error:
        found.problems.append(f"{error} {again}")
    if config is None:
        return stored or {}
    try:
        plan = planned_anew(config)
    except QflError as error:
        found.unchecked.append(f"{storage.folder}/{PLAN} cannot be compared with the definition: {error}")
        return stored or {}
    if stored is not None and stored != plan:
        found.problems.append(f"{storage.folder}/{PLAN} does not hold the runs of {DEFINITION}. {again}")
    return plan


def _check_state(storage: Storage, found: SweepVerification) -> dict[str, Any]:
    """What the state says; nothing where there is none."""
    with found.noting():
        try:
            sealed = read_state(storage)
        except FileNotFoundError:
            return {}
        _note_unsealed(storage, STATE_FILE, sealed.checked, found)
        return sealed.values
    return {}


def _check_rows(storage: Storage, said: int, found: SweepVerification) -> dict[str, dict[str, Any]]:
    """The row that counts of every run, from the parts that are whole; so many had one."""
    tables, n_before = [], len(found.problems)
    paths: list[str] = []
    with found.noting():
        paths = part_paths(storage)
        strange = sorted(set(storage.glob(f"{RESULTS}/*/*")) - set(paths))
        found.unchecked += [f"{storage.folder}/{path} is no part of the results: nothing reads it." for path in strange]
    for path in paths:
        with found.noting():
            try:
                part = read_part(storage, path)
            except FileNotFoundError:  # a sweep that runs there put its parts together
                found.unchecked.append(f"{storage.folder}/{path} was replaced meanwhile.")
                continue
            if not part.checked:
                found.unchecked.append(
                    f"{storage.folder}/{path} has no checksum in its name: an earlier version wrote it. Its rows are "
                    "compared with the runs' directories."
                )
            tables.append(part.rows.to_pandas())
    rows = {row["run_id"]: row for row in records(latest(pd.concat(tables)))} if tables else {}
    missing = missing_rows(storage, rows, said)
    if missing and len(found.problems) == n_before:  # else the parts named above have them
        found.problems.append(missing)
    return rows


def _check_run(
    storage: Storage, path: str, row: dict[str, Any] | None, running: bool, found: SweepVerification
) -> None:
    """One run's directory and its row."""
    where = f"{storage.folder}/{path}"
    with _local(storage, path) as folder:
        if not (folder / CONFIG_FILE).exists():
            if row is not None and row["status"] == "finished":
                found.problems.append(f"{where} is no run or is not there, and its row says that it finished.")
            return
        run = Run.open(folder)
        checks = run.verify()
        found.problems += checks.problems
        wrong = _row_problem(where, run, row)
        if wrong and row is None and running:
            found.unchecked.append(f"{where} has no row yet: the sweep is running.")
        elif wrong:
            found.problems.append(wrong)
        found.whole += bool(checks) and not wrong


def _row_problem(where: str, run: Run, row: dict[str, Any] | None) -> str:
    """What a run's row and its directory disagree about; empty where they agree."""
    if row is None:
        return f"{where} has finished and has no row. Call the sweep again: it makes it." if run.finished else ""
    if run.run_id != row["run_id"]:
        return f"{where} is the run {run.run_id}, and its row is of {row['run_id']}. Restore the directory."
    finished = row["status"] == "finished"
    if finished and not run.finished:
        return f"{where} has no final checkpoint, and its row says that it finished."
    given = {name: row[name] for name in ("device", "attempts", "group_size", "error")}
    record = make_record(PlannedRun(run.config), row["status"], run=run if finished else None, **given)
    differing = [name for name in record if name not in _ROW_ALONE and not _same(record[name], row[name])]
    if not differing:
        return ""
    listed = ", ".join(f"{name} {row[name]} in the row, {record[name]} there" for name in differing)
    return f"{where} and its row differ ({listed}). Delete the parts of the results and call the sweep again."


def _same(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return both_nan or one == other


def _planned_paths(plan: Plan) -> dict[str, str]:
    """The directory of every planned run, as `PlannedRun.path` names it."""
    return {run_id: f"runs/{task}/{run_id}" for run_id, (task, _) in plan.items()}


def _note_unsealed(storage: Storage, name: str, checked: bool, found: SweepVerification) -> None:
    if not checked:
        found.unchecked.append(f"{storage.folder}/{name} has no checksum: an earlier version wrote it.")


@contextmanager
def _local(storage: Storage, path: str) -> Iterator[Path]:
    """A run's directory on this machine."""
    if storage.is_local:
        yield storage.local_path / path
        return
    with tempfile.TemporaryDirectory(prefix="qfl-verify-") as folder:
        storage.pull_run(path, Path(folder))
        yield Path(folder)
