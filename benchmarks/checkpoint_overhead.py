"""What a hundred checkpoints cost a training run: the same steps with 100 of them and with 2, interleaved."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import qfl_interp as qfl
from benchmarks._measuring import in_process
from qfl_interp.runs.writer import RunWriter

TITLE = "Checkpoint overhead (addition-16, d_model 64, 4 layers, batch 64)"

_FEW, _MANY = 2, 100


def _train(n_checkpoints: int, n_steps: int, device: str) -> dict[str, float]:
    """Train once; seconds of the whole run and inside the writing of checkpoints, their bytes and number."""
    task = qfl.load_task("addition", 16)
    config = qfl.TrainConfig(n_steps=n_steps, n_checkpoints=n_checkpoints, n_val=64, eval_fraction=1.0)
    writing = 0.0
    true_save = RunWriter.save

    def timed_save(*arguments: Any, **keywords: Any) -> None:
        nonlocal writing
        start = time.perf_counter()
        true_save(*arguments, **keywords)
        writing += time.perf_counter() - start

    RunWriter.save = timed_save
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            model, out = qfl.ModelConfig(d_model=64, n_layers=4), Path(folder) / "run"
            run = qfl.train(task, model, config, out, device=device, progress=False)
            seconds = time.perf_counter() - start
            written = sum(p.stat().st_size for p in (run.path / "checkpoints").rglob("*") if p.is_file())
            saved = len(run.steps)
    finally:
        RunWriter.save = true_save
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"seconds": seconds, "writing": writing, "mb": written / 1e6, "saved": saved, "peak_mb": peak,
            "threads": torch.get_num_threads()}  # fmt: skip


def run(*, quick: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """Overhead in percent of training time, from both kinds of run in pairs, each in a process of its own.

    "time inside the writer" is measured directly and does not drown in the machine's noise; "difference of
    whole runs" is the median over pairs.

    Args:
        quick: One short pair.
        device: Where to train.
    """
    n_steps, n_pairs = (60, 1) if quick else (716, 2)
    few, many = [], []
    for _ in range(n_pairs):
        few.append(in_process(_train, _FEW, n_steps, device))
        many.append(in_process(_train, _MANY, n_steps, device))
    inside = statistics.median(m["writing"] / (m["seconds"] - m["writing"]) for m in many)
    whole = statistics.median(m["seconds"] / f["seconds"] - 1 for m, f in zip(many, few, strict=True))
    added = statistics.median(m["peak_mb"] - f["peak_mb"] for m, f in zip(many, few, strict=True))
    n_saved = int(many[0]["saved"])
    writing, peak = (statistics.median(m[name] for m in many) for name in ("writing", "peak_mb"))
    alone = statistics.median(f["seconds"] for f in few)
    measured = [
        ("overhead, time inside the writer (target: under 2 %)", 100 * inside, "%"),
        ("overhead, difference of whole runs", 100 * whole, "%"),
        ("one checkpoint", 1e3 * writing / n_saved, "ms"),
        ("written", many[0]["mb"], "MB"),
        ("training time with 2 checkpoints", alone, "s"),
        ("peak memory of training with all checkpoints", peak, "MB"),
        ("peak memory that the checkpoints add", added, "MB"),
    ]
    common = {"steps": n_steps, "checkpoints": n_saved}
    return [{"name": name, "value": value, "unit": unit, **common} for name, value, unit in measured]
