"""Files of a finished sweep, damaged at random: every reading gives what it gave before, or names the damaged file."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from faults.mutations import mutate, put
from helpers_sweep import InlinePool

from qfl_interp.errors import QflError
from qfl_interp.sweep import Sweep, SweepConfig, run_sweep, sweep_status
from qfl_interp.sweep.verification import verify_sweep

CONFIG = SweepConfig.from_dict(
    {
        "name": "tiny",
        "grid": [
            {
                "task": "addition", "length": 4, "budget_flops": [2e7, 4e7], "d_model": 8, "n_layers": 1,
                "batch_size": 8, "seed": [0, 1], "n_val": 32,
            }
        ],
    }
)  # fmt: skip
QUERY = "select budget_flops, count(*) as n, sum(val_loss), sum(flops), max(lr) from runs group by 1 order by 1"


def status(folder: Path) -> Any:
    """What `qfl sweep status` says; a state that is not there must be said to be damaged."""
    found = sweep_status(str(folder))
    if found.state is None:
        if "state.json is damaged" in found.sentence or "state.json cannot be read" in found.sentence:
            return found.rows, found.failures, "damaged"
        return found.rows, found.failures, found.sentence
    return found.rows, found.failures, {**found.state, "killed": None}


def rows(table: Any) -> str:
    """A table, every digit."""
    return table.to_json(double_precision=15)


def verified(folder: Path) -> list[str]:
    """What verification has to say."""
    found = verify_sweep(str(folder))
    return [*found.problems, *found.unchecked]


READINGS: dict[str, Callable[[Path], Any]] = {
    "table": lambda folder: rows(Sweep.open(folder).table()),
    "best": lambda folder: rows(Sweep.open(folder).best(2e7)),
    "query": lambda folder: rows(Sweep.open(folder).query(QUERY)),
    "status": status,
    "verify": verified,
}


def verdict(reading: str, before: Any, folder: Path, file: Path) -> str:
    """How a reading of a damaged sweep ended: same, named, unnamed, silent, or the type of another exception."""
    try:
        found = READINGS[reading](folder)
    except QflError as error:
        return "named" if file.name in str(error) else "unnamed"
    except Exception as error:
        return f"traceback {type(error).__name__}"
    if found == before:
        return "same"
    if reading == "verify":
        return "named" if any(file.name in problem for problem in found) else "unnamed"
    if reading == "status" and found[:2] == before[:2] and found[2] == "damaged" and file.name == "state.json":
        return "named"
    return "silent"


def damaged(
    folder: Path, n: int, seed: int, readings: Sequence[str] = tuple(READINGS)
) -> dict[tuple[str, str, str, str], int]:
    """How often each reading of n mutations ended in each way: (file, mutation, reading, verdict)."""
    rng = random.Random(seed)
    before = {name: read(folder) for name, read in READINGS.items()}
    files = [next(folder.glob("results/*/part-*")), *(folder / f"{name}.json" for name in ("plan", "state", "sweep"))]
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for number in range(n):
        file = files[number % len(files)]
        data = file.read_bytes()
        mutation = mutate(data, rng, is_json=file.suffix == ".json")
        put(file, mutation.data)
        kind = "part" if file.suffix == ".parquet" else file.name
        for name in readings:
            counts[kind, mutation.kind, name, verdict(name, before[name], folder, file)] += 1
        put(file, data)
    assert {name: read(folder) for name, read in READINGS.items()} == before
    return dict(counts)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of four runs in which nothing is wrong."""
    folder = tmp_path_factory.mktemp("mutations") / "swept"
    run_sweep(CONFIG, str(folder), progress=False, pool=InlinePool)
    assert verify_sweep(str(folder))
    return folder


QUICK = pytest.param(40, 0, ("table", "status", "verify"), id="40")
THOROUGH = pytest.param(150, 1, tuple(READINGS), id="150", marks=pytest.mark.slow)


@pytest.mark.parametrize(("n", "seed", "readings"), [QUICK, THOROUGH])
def test_no_mutation_is_read_as_something_else(
    swept: Path, tmp_path: Path, n: int, seed: int, readings: tuple[str, ...]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(swept, folder)
    counts = damaged(folder, n, seed, readings)
    bad = {key: count for key, count in counts.items() if key[-1] not in ("same", "named")}
    assert not bad
    # The readings that use a file see its damage; the others do not, and no edit of a value is lost on `verify`.
    of_parts = {key[-1] for key in counts if key[0] == "part"}
    assert of_parts == {"named"}
    certain = ("edit", "folder", "truncate", "bomb")
    assert {key[-1] for key in counts if key[2] == "verify" and key[1] in certain} == {"named"}
