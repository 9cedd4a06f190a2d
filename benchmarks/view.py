"""The viewer: a folder of 1,000 runs listed, and a run with 1,000 checkpoints opened, from the files on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qfl_interp as qfl
from benchmarks._measuring import timed
from qfl_interp.analyses.view import drawn
from qfl_interp.analyses.view.address import Address
from qfl_interp.analyses.view.index import Index, as_json
from qfl_interp.analyses.view.opened import Opened

CPU_ONLY = True
TITLE = "The viewer's list of 1,000 runs, and a run with 1,000 checkpoints"


def _train(folder: Path, n_steps: int, **settings: Any) -> qfl.Run:
    task, model = qfl.load_task("addition", 4), qfl.ModelConfig(d_model=16, n_layers=2)
    return qfl.train(task, model, qfl.TrainConfig(n_steps=n_steps, n_val=16, **settings), folder, progress=False)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Seconds of each, the system's file cache warm, PyTorch loaded.

    A run in the list has 200 logged steps and 20 checkpoints. Opening a run is its curves over training, the list of
    its views, and what the page asks for when nothing changed.

    Args:
        quick: A tenth of the runs and checkpoints.
    """
    n = 100 if quick else 1_000
    rows: list[dict[str, Any]] = []

    def measure(name: str, work: Callable[[], object]) -> None:
        taken, _ = timed(work)
        rows.append({"name": name, "value": taken.wall, "unit": "s", "cpu_s": taken.cpu})

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "runs")
        first = _train(folder / "run", 200, n_checkpoints=20)
        for number in range(1, n):
            shutil.copytree(first.path, folder / f"run{number}")
        index = Index(folder)
        measure(f"{n:,} runs listed, first look", lambda: as_json(index.entries()))
        measure(f"{n:,} runs listed, again, nothing changed", lambda: as_json(index.entries(anew=True)))
        measure(f"{n:,} runs, the look of each second", lambda: as_json(index.entries()))
        assert len(index.entries()) == n
        long = _train(Path(place, "long"), n, save_every=1)
        assert len(long.steps) == n + 1
        opened = Opened(Index(long.path))
        address = Address((".",))
        measure(f"{n:,} checkpoints, curves over training", lambda: drawn.over_training(opened, address))
        measure(f"{n:,} checkpoints, list of views", lambda: drawn.tabs(opened, "."))
        measure(f"{n:,} checkpoints, a view at a step", lambda: drawn.at_step(opened, address))
        measure(f"{n:,} checkpoints, again, nothing changed", lambda: drawn.over_training(opened, address))
    return rows
