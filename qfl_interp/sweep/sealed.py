"""JSON files of a sweep that carry their own checksum: a changed one is named, never read as something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from qfl_interp.errors import QflError
from qfl_interp.sweep.storage import Storage

_SEAL = "sha256"


class DamagedError(QflError):
    """A file does not hold what was written."""


class Sealed(NamedTuple):
    """What a file holds, without its checksum; `checked` is False where an earlier version wrote it without one."""

    values: dict[str, Any]
    checked: bool


def sealed_json(values: Mapping[str, Any]) -> bytes:
    """The text of a file: the values, and the SHA-256 of their sorted JSON as `sha256`."""
    return json.dumps({**values, _SEAL: _sha256(values)}, indent=1).encode()


def read_sealed(storage: Storage, path: str) -> Sealed:
    """The values of a file, checked where it has a checksum.

    Raises:
        FileNotFoundError: It is not there.
        DamagedError: It is no JSON object, or is not what was written; names the file.
        StorageError: It cannot be read.
    """
    where = f"{storage.folder}/{path}"
    data = storage.read_bytes(path)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is damaged: it is no JSON ({error}).") from error
    if not isinstance(values, dict):
        raise DamagedError(f"{where} is damaged: it must hold a JSON object, got {type(values).__name__}.")
    if _SEAL not in values:
        return Sealed(values, checked=False)
    if values.pop(_SEAL) != _sha256(values):
        raise DamagedError(f"{where} is damaged: it does not match its checksum, so it is not what was written.")
    return Sealed(values, checked=True)


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
