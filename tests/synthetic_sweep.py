"""The records of made-up sweeps, in the schema of `qfl_interp.sweep.records`, with curves whose shape is known."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.folder import DEFINITION, definition_json
from qfl_interp.sweep.parts import write_part
from qfl_interp.sweep.storage import Storage
from qfl_interp.sweep.sweep import Sweep

BUDGETS = [float(b) for b in 10.0 ** np.arange(9, 13.1, 0.5)]
SHAPES = [(8, 2), (16, 2), (32, 4)]
N_SCORED = 19


def falling(flops: float) -> float:
    """A plateau at 0.655, left at about 1e11 and gone by 3e11: a transition."""
    return 0.655 * (1 + flops / 1e8) ** -0.004 / (1 + (flops / 1.6e11) ** 4) + 4e-4 * (flops / 1e9) ** -0.2


def power(flops: float) -> float:
    """A power law."""
    return 1.5 * (flops / 1e9) ** -0.12


def flat(flops: float) -> float:
    """Chance at every budget."""
    return 0.694 + 0 * flops


LAWS = {("addition", 16): falling, ("maximum_subarray", 16): power, ("sparse_parity", 40): flat}


def records(
    laws: dict | None = None,
    *,
    budgets: list[float] = BUDGETS,
    seeds: int = 3,
    noise: float = 0.02,
) -> pd.DataFrame:
    """One row a run: every shape, two learning rates and `seeds` seeds at every budget.

    Each shape is at its best at a budget of its own and at lr 1e-3. The largest shape has no run at the smallest
    budget, one run diverged and one failed.
    """
    rows = []
    for (task, length), law in (laws or LAWS).items():
        rng = np.random.default_rng(zlib.crc32(task.encode()))
        axes = itertools.product(budgets, SHAPES, (1e-3, 1e-2), range(seeds))
        for number, (budget, shape, lr, seed) in enumerate(axes):
            if shape == SHAPES[-1] and budget == budgets[0]:
                continue
            away = abs(np.log10(budget) - (9.5 + 1.5 * SHAPES.index(shape)))
            useful = budget / 10 ** (0.12 * away + (0.3 if lr == 1e-2 else 0.0))
            loss = law(useful) * np.exp(noise * rng.standard_normal())
            answer = loss * (N_SCORED - 1) / N_SCORED
            exact = round(1000 * float(np.exp(-N_SCORED * loss))) / 1000
            status = {5: "diverged", 11: "failed"}.get(number, "finished")
            known = {
                "val_loss": loss,
                "val_exact": exact,
                "val_loss_answer": answer,
                "val_exact_answer": exact,
                "val_pass": np.exp(-N_SCORED * loss),
                "val_pass_answer": np.exp(-N_SCORED * answer),
            }
            run_id = f"{task}{length}-{zlib.crc32(f'{task}{budget}{shape}{lr}{seed}'.encode()):012x}"
            rows.append(
                {
                    "task": task,
                    "length": length,
                    "task_options": "",
                    "budget_flops": budget,
                    "style": "llama",
                    "d_model": shape[0],
                    "n_layers": shape[1],
                    "n_heads": 4,
                    "lr": lr,
                    "batch_size": 64,
                    "seed": seed,
                    "schedule": "cosine",
                    "weight_decay": 0.1,
                    "n_steps": 100,
                    "flops": budget,
                    "actual_flops": 1.1 * budget,
                    "n_parameters": 12 * shape[1] * shape[0] ** 2,
                    **{name: value if status == "finished" else np.nan for name, value in known.items()},
                    "n_val": 1000,
                    "seconds": 1.5,
                    "status": status,
                    "error": "" if status == "finished" else "made up",
                    "attempts": 1,
                    "group_size": 1,
                    "device": "cpu",
                    "configuration": f"{task}-{budget:g}-{shape}-{lr}",
                    "run_id": run_id,
                    "path": f"runs/{task}/{run_id}",
                    "finished_at": "2025-01-01T00:00:00+00:00",
                }
            )
    return pd.DataFrame(rows)


def write(folder: Path, table: pd.DataFrame) -> Sweep:
    """A sweep's folder with these records and no runs."""
    axes = {"budget_flops": sorted(set(table["budget_flops"])), "d_model": [8], "n_layers": [2]}
    grids = [{"task": task, **axes} for task in sorted(set(table["task"]))]
    storage = Storage(str(folder))
    storage.write_bytes(DEFINITION, definition_json(SweepConfig.from_dict({"name": "made_up", "grid": grids})))
    for task, rows in table.groupby("task"):
        write_part(storage, str(task), rows)
    return Sweep.open(folder)
