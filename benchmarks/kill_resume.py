"""`kill -9` at random moments of a training run, resume, kill again: the end must be bit for bit the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import qfl_interp as qfl
from benchmarks._measuring import in_process

TITLE = "Kill -9 and resume (addition-6, 2 layers, d_model 16)"

# Columns that say when a step was done, not what it gave.
_TIMES = ("seconds", "tokens_per_s", "sha256")


def fingerprint(run: Path) -> dict[str, Any]:
    """What no interruption may change: the hash of every checkpoint file, and the metrics without times."""
    files = sorted(path for path in (run / "checkpoints").rglob("*") if path.is_file())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "checkpoints": {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "metrics": [{name: value for name, value in row.items() if name not in _TIMES} for row in rows],
    }


def _train(out: Path, n_steps: int, device: str) -> None:
    """Train into `out` to the end, going on from whatever is there."""
    torch.set_num_threads(1)
    config = qfl.TrainConfig(
        n_steps=n_steps, batch_size=16, eval_fraction=0.1, n_checkpoints=n_steps // 5, n_val=32, seed=5
    )
    qfl.train(
        qfl.load_task("addition", 6), qfl.ModelConfig(d_model=16, n_layers=2), config, out,
        resume=True, device=device, progress=False, resume_seconds=0.0,
    )  # fmt: skip


def _start(out: Path, n_steps: int, device: str) -> int:
    """Train in a process of its own, which shares this one's imports; returns its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        _train(out, n_steps, device)
        status = 0
    finally:
        os._exit(status)


def _last_step(out: Path) -> int:
    """The last whole row of the metrics; -1 where there is none yet."""
    try:
        lines = (out / "metrics.jsonl").read_bytes().split(b"\n")
        return int(json.loads(lines[-2])["step"])
    except (FileNotFoundError, IndexError):
        return -1


def _measure(folder: Path, n_steps: int, n_kills: int, device: str = "cpu") -> dict[str, Any]:
    """Train once whole and once with `n_kills` kills, and compare."""
    import qfl_interp.training.train  # noqa: F401  # imported once here, so that a fork starts at once

    reference, killed = folder / "reference", folder / "killed"
    os.waitpid(_start(reference, n_steps, device), 0)
    rng = random.Random(0)
    deaths = []
    for goal in sorted(rng.randrange(-1, n_steps * 9 // 10) for _ in range(n_kills)):
        process = _start(killed, n_steps, device)
        while _last_step(killed) < goal and os.waitpid(process, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))  # anywhere in an update, a validation, or the writing of a checkpoint
        try:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
        except (ProcessLookupError, ChildProcessError):
            continue  # it had ended
        if os.WIFSIGNALED(status):
            deaths.append(_last_step(killed))
    os.waitpid(_start(killed, n_steps, device), 0)
    wanted, got = fingerprint(reference), fingerprint(killed)
    return {"kills": len(deaths), "killed_after_steps": deaths} | {
        f"{what}_identical": wanted[what] == got[what] and bool(wanted[what]) for what in wanted
    }


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """One row: how often the run was killed, and whether every checkpoint file and metric is the same.

    Args:
        quick: Three kills of a short run instead of twenty.
        device: Where to train.
    """
    n_steps, n_kills = (40, 3) if quick else (300, 20)
    with tempfile.TemporaryDirectory() as folder:
        found = in_process(_measure, Path(folder), n_steps, n_kills, device)
    after = ", ".join(map(str, found.pop("killed_after_steps")))
    return [{"name": f"training of {n_steps} steps, killed after steps {after}", "value": found.pop("kills"),
             "unit": "kills", **found}]  # fmt: skip
