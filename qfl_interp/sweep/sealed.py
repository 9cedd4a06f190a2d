"""The JSON files of a sweep, which carry their own checksum: a changed one is named."""

from __future__ import annotations

import json

from qfl_interp.errors import QflError
from qfl_interp.sealed import Sealed, unsealed
from qfl_interp.sweep.storage import Storage


class DamagedError(QflError):
    """A file does not hold what was written."""


def read_sealed(storage: Storage, path: str) -> Sealed:
    """The values of a file, checked where it has a checksum: those of earlier versions have none.

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
    found = unsealed(values)
    if found is None:
        raise DamagedError(f"{where} is damaged: it does not match its checksum, so it is not what was written.")
    return found
