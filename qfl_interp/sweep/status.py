"""How far a sweep is: its runs by task, length and outcome, what failed, and whether it is being trained."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from qfl_interp.errors import QflError
from qfl_interp.sweep.complete import read_all_rows
from qfl_interp.sweep.folder import read_definition, read_plan
from qfl_interp.sweep.parts import OUTCOMES
from qfl_interp.sweep.state import age_of, read_state
from qfl_interp.sweep.storage import Storage

# One that has said nothing for this many seconds, or is dated later than that, is not being trained any more.
_SILENT_SECONDS = 60.0


class SweepStatus(NamedTuple):
    """How far a sweep is.

    Attributes:
        name: The sweep's.
        rows: One a task and length: runs planned, and how many of them ended in each way.
        failures: The rows of runs that failed: run_id, attempts, error.
        state: What the training process wrote last: done, total, running, eta_seconds, rows, updated,
            where; None before any.
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
        QflError: The folder holds no sweep, or its definition or a part of its rows is damaged or was deleted; names
            what is.
    """
    storage = Storage(folder)
    config = read_definition(storage)
    plan = read_plan(storage, config)
    rows = read_all_rows(storage)
    listed = [] if rows is None else rows.select(["run_id", "status", "error", "attempts"]).to_pylist()
    by_id = {row["run_id"]: row for row in listed}
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
        | {outcome: ended[task, length, outcome] for outcome in OUTCOMES}
        | {"remaining": n - sum(ended[task, length, outcome] for outcome in OUTCOMES)}
        for (task, length), n in sorted(planned.items())
    ]
    return SweepStatus(config.name, table, failures, *_state(storage))


def _state(storage: Storage) -> tuple[dict[str, Any] | None, str]:
    """The state and its words; what a killed process left says that nothing runs."""
    try:
        state = read_state(storage).values
    except FileNotFoundError:
        return None, "not started yet"
    except QflError as error:
        return None, f"{error} The rows above are right; the next call of the sweep writes it again."
    age = age_of(state)
    assert age is not None
    state["killed"] = bool(state["running"]) and abs(age) > _SILENT_SECONDS
    if state["killed"]:
        state["running"] = []
    return state, _sentence(state, age)


def _sentence(state: dict[str, Any], age: float) -> str:
    """The state in words."""
    if state["killed"] and age < 0:
        return (
            f"dated {state['updated']}, {duration(-age)} in the future: this machine's clock or the other's is wrong, "
            "and nothing shows that it runs. `qfl sweep FILE.toml` goes on"
        )
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
