"""The metrics of a run on disk: a JSON object a line, each with a digest of all that stands before and in it.

The digest is the line's last entry, `"sha256": "<16 hexadecimal digits>"`: of the digest before it, beginning with the
run's own, and the line without the entry. A line that was changed, moved or taken from another run is found on reading,
a file that was cut off where checkpoints go on behind its end. A last line that a killed writer left unfinished is not
there. Lines of earlier versions, without the entry, are taken as they are; what follows them covers them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qfl_interp.errors import QflError

_CHECKED = re.compile(rb'(\{.*), "sha256": "([0-9a-f]{16})"\}')
_ADVICE = "Restore the file, or train the run again into another directory."


class Metrics(NamedTuple):
    """What a metrics file holds.

    Attributes:
        rows: One a line.
        state: The digest that the next line goes on from.
        checked: Whether every line has its digest.
    """

    rows: list[dict[str, Any]]
    state: str
    checked: bool


def read_metrics(path: Path, run: str) -> Metrics:
    """The rows of a metrics file; none where there is no file.

    Args:
        path: The file.
        run: The run's digest (`RunConfig.digest`).

    Raises:
        QflError: The file cannot be read, or a line is not what was written.
    """
    state, rows, checked = _start(run), [], True
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return Metrics(rows, state, checked)
    except OSError as error:
        raise QflError(f"{path} cannot be read: {error}. {_ADVICE}") from error
    for number, line in enumerate(lines, start=1):
        match = _CHECKED.fullmatch(line)
        payload = line if match is None else match[1] + b"}"
        state = _next(state, payload)
        if match is None and rows and checked and _CHECKED.fullmatch(lines[0]):
            raise QflError(f"line {number} of {path} lost its digest: corrupted. {_ADVICE}")
        if match is not None and match[2].decode() != state:
            raise QflError(
                f"line {number} of {path}, or one before it, is not what was written by the run of this config.json. "
                f"{_ADVICE}"
            )
        checked = checked and match is not None
        rows.append(_row(path, number, payload))
    return Metrics(rows, state, checked)


def metric_lines(rows: Sequence[dict[str, Any]], state: str) -> tuple[bytes, str]:
    """The lines of rows that go on from a digest, and the digest behind them."""
    lines = []
    for row in rows:
        payload = json.dumps(row).encode()
        state = _next(state, payload)
        lines.append(payload[:-1] + f', "sha256": "{state}"}}\n'.encode())
    return b"".join(lines), state


def all_lines(rows: Sequence[dict[str, Any]], run: str) -> tuple[bytes, str]:
    """A whole file of rows, and the digest behind them."""
    return metric_lines(rows, _start(run))


def _row(path: Path, number: int, payload: bytes) -> dict[str, Any]:
    """One line's row."""
    try:
        row = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise QflError(f"line {number} of {path} is corrupted: {error}. {_ADVICE}") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise QflError(f"line {number} of {path} must be an object with a step, got {payload[:60]!r}. {_ADVICE}")
    return row


def _start(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()[:16]


def _next(state: str, payload: bytes) -> str:
    return hashlib.sha256(state.encode() + payload).hexdigest()[:16]
