"""What the training process of a sweep says of itself, for whoever looks at it from outside."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from qfl_interp.errors import QflError
from qfl_interp.sealed import Sealed
from qfl_interp.sweep.sealed import read_sealed
from qfl_interp.sweep.storage import Storage

STATE_FILE = "state.json"
# Earlier versions did not say the rows.
_STATE: dict[str, Any] = {
    "updated": str, "where": str, "total": int, "done": int, "diverged": int, "failed": int, "running": list,
    "eta_seconds": (int, float, type(None)), "rows": (int, type(None)),
}  # fmt: skip


def read_state(storage: Storage) -> Sealed:
    """What the training process wrote last.

    Raises:
        FileNotFoundError: It has written nothing yet.
        QflError: The file is damaged; names it.
    """
    found = read_sealed(storage, STATE_FILE)
    wrong = [name for name, kind in _STATE.items() if not isinstance(found.values.get(name), kind)]
    wrong += [name for name in found.values if name not in _STATE]
    if wrong or age_of(found.values) is None:
        named = wrong[0] if wrong else "updated"
        raise QflError(f"{storage.folder}/{STATE_FILE} is damaged: its {named} is not as it was written.")
    return found


def age_of(state: dict[str, Any]) -> float | None:
    """Seconds since the state was written, below 0 where a clock is wrong; None where it does not say."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(state["updated"])).total_seconds()
    except (TypeError, ValueError):
        return None
