"""JSON objects that carry their own checksum: a changed one is noticed, never read as something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

_SEAL = "sha256"
_DIGITS = 64


class Sealed(NamedTuple):
    """What a file holds, without its checksum; `checked` is False where it has none."""

    values: dict[str, Any]
    checked: bool


def sealed_json(values: Mapping[str, Any], n_digits: int = _DIGITS) -> bytes:
    """The text of a file: the values, and as `sha256` the start of the SHA-256 of their sorted JSON."""
    return json.dumps({**values, _SEAL: _sha256(values)[:n_digits]}, indent=1).encode()


def unsealed(record: Mapping[str, Any], n_digits: int = _DIGITS) -> Sealed | None:
    """The values of an object as it was read; None where its checksum is not theirs."""
    values = {key: value for key, value in record.items() if key != _SEAL}
    if _SEAL not in record:
        return Sealed(values, checked=False)
    return Sealed(values, checked=True) if record[_SEAL] == _sha256(values)[:n_digits] else None


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
