"""Short names for what something was made from: the one place that cuts a SHA-256 to twelve digits."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(*parts: str | bytes | memoryview) -> str:
    """Twelve hexadecimal digits: the start of the SHA-256 of the parts, one behind the other (text as UTF-8)."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.encode() if isinstance(part, str) else part)
    return state.hexdigest()[:12]


def json_digest(value: Any) -> str:
    """The digest of a value's JSON with sorted keys, so that equal settings have one name.

    Raises:
        TypeError: Something in it has no JSON.
    """
    return digest(json.dumps(value, sort_keys=True))
