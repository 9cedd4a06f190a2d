"""The stages of `make demo`, each in a process of its own; with QFL_BEFORE, a checkout with a .venv, beside its code.

QFL_BEFORE=../before python -m benchmarks demo_stages
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TITLE = "Stages of the demo: seconds, and processor seconds, without imports"

_HERE = Path(__file__).parents[1]
# Checkpoints that are probed: early, on the plateau, in the fall, last.
_PROBED = (0, 64, 151, 179, 264, 716)
# Stages that the demo of before did not have.
_NEW = ("patch", "ablate_units")

# What runs in a checkout: its own demo's settings.
_WORK = """
import dataclasses, json, os, sys, time
sys.path.insert(0, "scripts")
import demo, qfl_interp as qfl
from qfl_interp.analyses import ablate, probe
stage, folder, probed, device = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
run = None if stage.startswith("train") else qfl.Run.open(folder)
wall, before = time.perf_counter(), os.times()
if stage.startswith("train"):
    config = demo.TRAIN if stage == "train" else dataclasses.replace(demo.TRAIN, eval_fraction=1.0)
    qfl.train(qfl.load_task("addition", length=16), demo.MODEL, config, folder, device=device, progress=False)
elif stage == "probe":
    probe(run, steps=probed, config=demo.PROBE, n_untrained=0, device=device, progress=False)
elif stage == "ablate":
    ablate(run, config=demo.PROBE, device=device, progress=False)
elif stage == "patch":
    from qfl_interp.analyses import patch
    how = {"components": demo.COMPONENTS, "n_pairs": demo.N_PAIRS, "attribution": False}
    patch(run, "carry", **how, device=device, progress=False)
else:
    from qfl_interp.analyses import ablate_units
    ablate_units(run, device=device, progress=False)
after = os.times()
print(json.dumps([time.perf_counter() - wall, after.user + after.system - before.user - before.system]))
"""


def _measured(checkout: Path, stage: str, folder: Path, probed: tuple[int, ...], device: str) -> tuple[float, float]:
    """Wall seconds and processor seconds of a stage of a checkout."""
    own = checkout / ".venv" / "bin" / "python"
    python = sys.executable if checkout == _HERE or not own.exists() else str(own)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", _WORK, stage, str(folder), json.dumps(probed), device],
        cwd=checkout, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """One row a stage: best of the rounds, the checkouts taking turns.

    Args:
        quick: Training alone.
        device: Where to compute.
    """
    before = os.environ.get("QFL_BEFORE")
    checkouts = {"now": _HERE} | ({"before": Path(before).resolve()} if before else {})
    stages = {"train, validations first and last": (1, 1), "train": (1, 1)}
    stages |= {} if quick else {"probe": (2, len(_PROBED)), "ablate": (2, 1), **dict.fromkeys(_NEW, (2, 1))}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for stage, (rounds, parts) in stages.items():
            best: dict[str, tuple[float, float]] = {}
            for _ in range(rounds):
                for name, checkout in checkouts.items():
                    if name == "before" and stage in _NEW:
                        continue
                    folder = Path(scratch) / (name if "," not in stage else f"{name}-bare")
                    # What the round before has written would be taken as it is.
                    shutil.rmtree(folder / "analyses" / stage, ignore_errors=True)
                    found = _measured(checkout, stage, folder, _PROBED, device)
                    best[name] = min(found, best.get(name, found), key=lambda seconds: seconds[1])
            row: dict[str, Any] = {"stage": stage if parts == 1 else f"{stage}, a checkpoint"}
            for name, (wall, cpu) in best.items():
                row |= {f"{name}_s": wall / parts, f"{name}_cpu_s": cpu / parts}
            if "before" in best:
                row["ratio_cpu"] = best["before"][1] / best["now"][1]
            rows.append(row)
    return rows
