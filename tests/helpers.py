"""Golden vectors and other things several tests read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """One file of golden vectors."""
    return json.loads((GOLDEN / f"{name}.json").read_text())
