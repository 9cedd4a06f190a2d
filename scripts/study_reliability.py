"""What becomes of a run when its process dies, the disk is full or a file is damaged? Fill docs/reliability.md.

    python scripts/study_reliability.py [--kills 15] [--mutations 500] [--seed 0]

Calls what tests/faults/ tests: training and probing with a kill and with a full disk at every file operation, each
other lens at `--kills` of them; and `--mutations` damaged files of each format. Writes docs/reliability.csv, the
table and the figure (needs `pip install kaleido` and a Chromium).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from figures.reliability import reliability
from pages import DOCS, fill, markdown, save

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from faults import workloads
from faults.driver import VERDICTS, Faults
from faults.run_files import FORMATS, RunFiles, build

from qfl_interp.runs.provenance import device_name

PAGE = DOCS / "reliability.md"
# Work that is tried at every operation.
EVERY = ("train", "probe")


def faults(folder: Path, kills: int, seed: int) -> list[dict[str, Any]]:
    """A row a workload and fault; lines on what went wrong are printed."""
    rows = []
    for name in [workloads.TRAIN, *workloads.CALLS]:
        prepared = Faults(workloads.make(name, folder), folder / f"{name}-work")
        for kind in ("kill", "full disk"):
            numbers = prepared.some(None if name in EVERY else kills, seed)
            counts, bad = prepared.verdicts(numbers, kind)
            rows.append(_row(name, kind, counts, operations=len(prepared.operations)))
            print("\n".join(bad) or f"{name}, {kind}: {dict(counts)}", flush=True)
    return sorted(rows, key=lambda row: row["kind"], reverse=True)


def mutations(folder: Path, n: int, seed: int) -> list[dict[str, Any]]:
    """A row a format; a damaged file counts by the worst of its readings."""
    files, rows = RunFiles(*build(folder)), []
    for name in FORMATS:
        counts = files.damage(name, n, seed)
        worst = {
            verdict: sum(m for (_, reading, of), m in counts.items() if (reading, of) == ("worst", verdict))
            for verdict in VERDICTS
        }
        rows.append(_row(name, "damaged file", worst))
        print(f"{name}: {worst}", {key: m for key, m in counts.items() if key[2] not in ("same", "named")}, flush=True)
    return rows


def _row(what: str, kind: str, counts: Any, operations: int | None = None) -> dict[str, Any]:
    """A row of the table."""
    found = {verdict: counts[verdict] for verdict in VERDICTS}
    return {"what": what, "kind": kind, "operations": operations, "cases": sum(found.values()), **found}


def write(rows: pd.DataFrame, where: str) -> None:
    """The table, the page and the figure."""
    rows.to_csv(DOCS / "reliability.csv", index=False)
    fill(PAGE, {"reliability": table(rows), "where": where})
    save(reliability(rows), "reliability")


def table(rows: pd.DataFrame) -> str:
    """The table of the page."""
    shown = rows.astype({"operations": object})
    shown["operations"] = ["–" if pd.isna(n) else str(int(n)) for n in rows["operations"]]
    return markdown(shown)


def main() -> None:
    """Break things, count, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=15, help="operations of each lens, drawn with the seed")
    parser.add_argument("--mutations", type=int, default=500, help="damaged files of each format")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = mutations(Path(folder) / "files", arguments.mutations, arguments.seed)
        rows = faults(Path(folder), arguments.kills, arguments.seed) + rows
    minutes = (time.monotonic() - started) / 60
    write(
        pd.DataFrame(rows).astype({"operations": "Int64"}),
        f"As `python scripts/study_reliability.py --kills {arguments.kills} --mutations {arguments.mutations} --seed "
        f"{arguments.seed}` printed it in {minutes:.0f} minutes on an {device_name()}:",
    )


if __name__ == "__main__":
    main()
