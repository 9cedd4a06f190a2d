"""The whole demo, `scripts/demo.py`, in a fresh process: seconds with imports, stage by stage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TITLE = "The demo, in a process of its own: seconds, and processor seconds, imports included"

_SCRIPT = Path(__file__).parents[1] / "scripts" / "demo.py"
# What the script says as a stage begins: its title, and seconds since the imports were done.
_STAGE = re.compile(r"(?:\d/\d  (?P<title>.*?)|done) +(?P<seconds>\d+) s$")


def _stages(lines: list[str]) -> list[tuple[str, float]]:
    """Titles and seconds of the stages, from what was printed."""
    found = [match for line in lines if (match := _STAGE.search(line))]
    starts = [float(match["seconds"]) for match in found]
    return [
        (match["title"], after - start) for match, start, after in zip(found[:-1], starts[:-1], starts[1:], strict=True)
    ]


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """A row of the whole, and one a stage in whole seconds.

    Args:
        quick: The script's own `--quick`.
        device: Where to compute.
    """
    words = ["--device", device] + (["--quick"] if quick else [])
    with tempfile.TemporaryDirectory() as folder:
        before, start = os.times(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(_SCRIPT), str(Path(folder) / "run"), *words],
            check=True, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    rows = [{"name": "the whole demo", "value": wall, "unit": "s", "cpu_s": cpu}]
    return rows + [
        {"name": title, "value": seconds, "unit": "s"} for title, seconds in _stages(done.stderr.splitlines())
    ]
