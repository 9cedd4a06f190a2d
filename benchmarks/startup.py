"""Imports and commands on a finished run, each in fresh processes: seconds, and what takes long to import.

With QFL_RUN, a copy of a run whose report was written as the demo does it; otherwise a small one is trained.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import qfl_interp as qfl
from qfl_interp.analyses import report

CPU_ONLY = True
TITLE = "Start-up: seconds, and processor seconds, of a fresh process"

_PROBE = qfl.ProbeConfig(n_train=4_000, n_test=1_000)
_SLOW = ("torch", "transformer_lens")
_LIBRARY = {
    "import qfl_interp": "import qfl_interp",
    "qfl_interp.ModelConfig": "import qfl_interp; qfl_interp.ModelConfig",
    "Run.open(RUN).metrics": "import qfl_interp; qfl_interp.Run.open({run!r}).metrics",
}
_COMMANDS = (
    "--help",
    "runs DIR",
    "tasks",
    "tasks addition",
    "tasks addition --examples 2",
    "verify RUN",
    "timeline RUN --steps auto",
    "report RUN --steps auto",
)
_COMMAND = "from qfl_interp.cli.main import main; main()"
# The last line on standard error says what was imported, whatever the work did before.
_WORK = """
import json, sys
try:
    exec({code!r})
except SystemExit as leaving:
    assert not leaving.code
finally:
    print(json.dumps([name for name in {slow!r} if name in sys.modules]), file=sys.stderr)
"""


def _measured(code: str, words: list[str]) -> tuple[float, float, list[str]]:
    """Wall seconds, processor seconds, and the slow packages imported."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _WORK.format(code=code, slow=_SLOW), *words], capture_output=True, text=True, check=True
    )
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu, json.loads(done.stderr.splitlines()[-1])


def _finished(folder: Path, *, quick: bool) -> Path:
    """A run with all tables of its report."""
    given = os.environ.get("QFL_RUN")
    if given:
        return Path(shutil.copytree(given, folder))
    model = qfl.ModelConfig(d_model=64, n_layers=4, n_heads=4)
    config = qfl.TrainConfig(n_steps=20 if quick else 200, n_checkpoints=4 if quick else 40, seed=0)
    run = qfl.train(qfl.load_task("addition", length=4 if quick else 16), model, config, folder, progress=False)
    report(run, steps="auto", config=_PROBE, n_trials=2, progress=False)
    return folder


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """One row a command: the second of two calls, as the first may write byte code."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        path = _finished(Path(scratch) / "run", quick=quick)
        work = [(name, code.format(run=str(path)), []) for name, code in _LIBRARY.items()]
        probes = ["--n-train", str(_PROBE.n_train), "--n-test", str(_PROBE.n_test)]
        for line in _COMMANDS:
            words = line.replace("RUN", str(path)).replace("DIR", scratch).split()
            if words[0] == "report" and not os.environ.get("QFL_RUN"):
                words += ["--n-trials", "2"]
            work.append((f"qfl {line}", _COMMAND, words + (probes if words[0] in ("timeline", "report") else [])))
        for name, code, words in work:
            wall, cpu, slow = [_measured(code, words) for _ in range(1 if quick else 2)][-1]
            rows.append({"what": name, "wall_s": wall, "cpu_s": cpu} | {package: package in slow for package in _SLOW})
    return rows
