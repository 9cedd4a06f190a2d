"""How far a sweep is: its runs by task, length and outcome, what failed, and whether it is being trained."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any, NamedTuple

from qfl_interp.sweep.folder import read_definition, read_plan, read_rows
from qfl_interp.sweep.scheduler import STATE_FILE
from qfl_interp.sweep.storage import Storage
from qfl_interp.tables import records

# One that has said nothing for this many seconds is not being trained any more.
_SILENT_SECONDS = 60.0
_OUTCOMES = ("finished", "diverged", "failed")


class SweepStatus(NamedTuple):
    """How far a sweep is.

    Attributes:
        name: The sweep's.
        rows: One a task and length: runs planned, and how many of them ended in each way.
        failures: The rows of runs that failed: run_id, attempts, error.
        state: What the training process wrote last: done, total, running, eta_seconds, updated, where; None before any.
        sentence: The state in words.
    """

    name: str
    rows: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    state: dict[str, Any] | None
    sentence: str

    @property
    def running(self) -> bool:
        """Whether a process is training it now."""
        return self.state is not None and bool(self.state["running"])


def sweep_status(folder: str) -> SweepStatus:
    """The status of the sweep in a folder.

    Raises:
        QflError: The folder holds no sweep.
    """
    storage = Storage(folder)
    config = read_definition(storage)
    plan = read_plan(storage, config)
    rows = read_rows(storage, ["run_id", "status", "error", "attempts", "finished_at"])
    by_id = {row["run_id"]: row for row in records(rows)}
    planned: Counter[tuple[str, int]] = Counter()
    ended: Counter[tuple[str, int, str]] = Counter()
    failures = []
    for run_id, at in plan.items():
        planned[at] += 1
        row = by_id.get(run_id)
        if row is not None:
            ended[*at, row["status"]] += 1
            if row["status"] == "failed":
                failures.append({name: row[name] for name in ("run_id", "attempts", "error")})
    table = [
        {"task": task, "length": length, "runs": n}
        | {outcome: ended[task, length, outcome] for outcome in _OUTCOMES}
        | {"remaining": n - sum(ended[task, length, outcome] for outcome in _OUTCOMES)}
        for (task, length), n in sorted(planned.items())
    ]
    state = _read_state(storage)
    return SweepStatus(config.name, table, failures, state, _sentence(state))


def _read_state(storage: Storage) -> dict[str, Any] | None:
    """What the training process wrote last; what a killed one left says that nothing runs."""
    if not storage.exists(STATE_FILE):
        return None
    try:
        state = json.loads(storage.read_bytes(STATE_FILE))
    except ValueError:  # damaged; the next call of the sweep writes it again
        return None
    silent = (datetime.now(UTC) - datetime.fromisoformat(state["updated"])).total_seconds()
    state["killed"] = bool(state["running"]) and silent > _SILENT_SECONDS
    return {**state, "running": []} if state["killed"] else state


def _sentence(state: dict[str, Any] | None) -> str:
    """The state in words."""
    if state is None:
        return "not started yet"
    if state["killed"]:
        return f"silent since {state['updated']}, killed perhaps: `qfl sweep FILE.toml` goes on"
    if not state["running"]:
        return f"not running since {state['updated']}: {state['done']} of the {state['total']} runs of that call ended"
    eta = state["eta_seconds"]
    to_go = "" if eta is None else f", about {duration(eta)} to go"
    done = f"{state['done']} of {state['total']} runs ended, {len(state['running'])} in training"
    return f"running ({state['where']}): {done}{to_go}"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"
