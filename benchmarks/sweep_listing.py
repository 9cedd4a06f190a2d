"""A sweep's table of 2,000, 20,000 and 200,000 runs: opening it, listing it, asking it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._measuring import interleaved
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.folder import definition_json
from qfl_interp.sweep.parts import COLUMNS, write_part
from qfl_interp.sweep.storage import Storage
from qfl_interp.sweep.sweep import Sweep

CPU_ONLY = True
TITLE = "Results of a sweep of 10 tasks, listed and queried"

_TASKS = 10
_BUDGETS = [10.0**x for x in np.arange(9, 16.1, 0.5)]
_WIDTHS = (8, 16, 32, 64, 128, 256, 512)
_LOWEST = "select task, budget_flops, min(val_loss) as loss from runs where status = 'finished' group by all"


def _runs(n: int) -> pd.DataFrame:
    """`n` made-up runs of one task, one after the other through a grid like the paper's."""
    grid = itertools.product(range(n), (4, 16), (8, 64), (1e-4, 1e-3, 1e-2, 1e-1), _WIDTHS, _BUDGETS)
    names = ["seed", "n_layers", "batch_size", "lr", "d_model", "budget_flops"]
    rows = pd.DataFrame(itertools.islice(grid, n), columns=names)
    rng = np.random.default_rng(n)
    known = {name: rng.gamma(4.0, 0.1, n) for name in COLUMNS if name.startswith("val_")}
    same = {
        "length": 16, "task_options": "", "style": "llama", "n_heads": 4, "schedule": "cosine", "weight_decay": 0.1, 
        "n_steps": 1000, "n_parameters": 100_000, "n_val": 1000, "seconds": 60.0, "error": "", "attempts": 1,
        "group_size": 1, "device": "cpu", "status": "finished", "finished_at": "2026-01-01T00:00:00.000000+00:00",
    }  # fmt: skip
    flops = {"flops": rows["budget_flops"], "actual_flops": rows["budget_flops"]}
    return rows.assign(**known, **same, **flops)


def _write(folder: Path, n_runs: int, parts: int) -> None:
    """A sweep of `n_runs` runs in ten tasks, each task in so many parts."""
    storage = Storage(str(folder))
    grid = {"task": "addition", "length": 16, "budget_flops": [1e9], "d_model": 16, "n_layers": 4}
    storage.write_bytes("sweep.json", definition_json(SweepConfig.from_dict({"name": "made-up", "grid": [grid]})))
    for number in range(_TASKS):
        rows, task = _runs(n_runs // _TASKS), f"task_{number}"
        ids = pd.Series([f"{task}16-{i:012x}" for i in range(len(rows))])
        rows = rows.assign(run_id=ids, path=f"runs/{task}/" + ids)
        axes = ["n_layers", "batch_size", "lr", "d_model", "budget_flops"]
        rows["configuration"] = rows.groupby(axes).ngroup().map("{:012x}".format)
        for part in range(parts):
            write_part(storage, task, rows.iloc[part::parts])


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Seconds of each question, from the files on disk every time, the system's file cache warm.

    A finished sweep has one part a task; one that runs has a part for every 15 s in which runs of the task ended, here
    100 of them.

    Args:
        quick: 2,000 runs, one round.
    """
    rows = []
    for n_runs, parts in [(2_000, 1)] if quick else [(2_000, 1), (20_000, 1), (20_000, 100), (200_000, 1)]:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), n_runs, parts)
            sweep = Sweep.open(folder)
            work: dict[str, Callable[[], object]] = {
                "open": lambda folder=folder: Sweep.open(folder),
                "table()": sweep.table,
                "table() of one task": lambda sweep=sweep: sweep.table("task_3"),
                "query: lowest loss by task and budget": lambda sweep=sweep: sweep.query(_LOWEST),
                "best(1e10)": lambda sweep=sweep: sweep.best(1e10),
                "matched(64, 4)": lambda sweep=sweep: sweep.matched(64, 4),
            }
            assert len(sweep.table()) == n_runs
            case = f"{n_runs:,} runs, {parts} part{'s' if parts > 1 else ''} a task"
            for name, taken in interleaved(work, 1 if quick else 5).items():
                rows.append({"name": name, "value": taken.wall, "unit": "s", "cpu_s": taken.cpu, "case": case})
    return rows
