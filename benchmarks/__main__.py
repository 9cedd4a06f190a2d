"""Run benchmarks, print a table for each, write them as JSON under `benchmarks/results/`, named by device.

python -m benchmarks [NAME ...] [--device cuda] [--quick]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import benchmarks
from qfl_interp.runs.provenance import device_name, versions

RESULTS = Path(__file__).parent / "results"


def names() -> list[str]:
    """Every benchmark: a module with `TITLE` and `run(quick, device)`, or `CPU_ONLY` and `run(quick)`."""
    return [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_")]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Rows as a table."""
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        table.add_column(name, justify="left" if isinstance(rows[0].get(name), str) else "right")
    for row in rows:
        values = (row.get(name, "") for name in columns)
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    Console(width=170).print(table)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones; all of {', '.join(names())} by default")
    parser.add_argument("--quick", action="store_true", help="small cases, to see that they run; writes no results")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; what runs on no GPU says so")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to write, with --quick too")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names())
    if unknown:
        parser.error(f"no benchmark is named {', '.join(sorted(unknown))}; known: {', '.join(names())}")
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: torch {torch.__version__} finds no CUDA device here")
    folder = arguments.results or (None if arguments.quick else RESULTS)
    for name in arguments.names or names():
        module = importlib.import_module(f"benchmarks.{name}")
        where = {} if getattr(module, "CPU_ONLY", False) else {"device": arguments.device}
        rows = module.run(quick=arguments.quick, **where)
        device = device_name(where.get("device", "cpu"))
        show(f"{name}: {module.TITLE} [{device}]", rows)
        if folder:
            write(folder, name, module.TITLE, device, rows)


def write(folder: Path, name: str, title: str, device: str, rows: list[dict[str, Any]]) -> None:
    """Replace this benchmark's entry in the device's file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found[name] = {
        "title": title,
        "device": device,
        "threads": rows[0].get("threads", torch.get_num_threads()),
        "cores": os.cpu_count(),
        "measured": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "rows": rows,
    }
    path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
