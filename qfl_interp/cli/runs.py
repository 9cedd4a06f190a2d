"""`qfl runs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qfl_interp.cli.output import AsJson, print_rows
from qfl_interp.errors import QflError
from qfl_interp.files import read_json
from qfl_interp.runs.config import CONFIG_FILE, METRICS_FILE, RunConfig, is_foreign_config

# Enough of a metrics file's end to hold its last line.
_TAIL_BYTES = 4096
# Of suite files that are listed.
SUITE_SUFFIX = ".suite"


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, at any depth.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder, and suite files: what they trained, how far they are, how well they do.

    Example: `qfl runs runs/`
    """
    found = [path for path in folder.rglob(CONFIG_FILE) if not is_foreign_config(path)]
    rows = [_row(path.parent) for path in sorted(found)]
    rows += [_suite_row(path) for path in sorted(folder.rglob(f"*{SUITE_SUFFIX}")) if path.is_file()]
    print_rows(rows, title=f"runs below {folder}", as_json=as_json)


def _row(path: Path) -> dict[str, Any]:
    """One run's line, also where a file of it is damaged: that is named."""
    try:
        config = RunConfig.read(path)
        last = _last_metrics(path / METRICS_FILE)
    except (QflError, RecursionError) as error:
        return {"path": str(path), "run": f"unreadable: {error}", **dict.fromkeys(_COLUMNS, "")}
    return {
        "path": str(path),
        "run": config.run_id,
        "model": f"{config.model.style} {config.model.n_layers}x{config.model.d_model}",
        "seed": config.train.seed,
        "step": f"{last.get('step', 0)}/{config.last_step}",
        "FLOPs": last.get("flops", 0.0),
        "val_loss": last.get("val_loss", float("nan")),
        "val_exact": last.get("val_exact", float("nan")),
    }


def _suite_row(path: Path) -> dict[str, Any]:
    """The line of a suite file, which names no metrics."""
    try:
        values = read_json(path, dict, "Write it again with `qfl suite open`.")
    except (QflError, FileNotFoundError) as error:
        return {"path": str(path), "run": f"unreadable: {error}", **dict.fromkeys(_COLUMNS, "")}
    name = f"suite of {values.get('folder', values.get('repo', 'nothing'))}"
    return {"path": str(path), "run": name, **dict.fromkeys(_COLUMNS, ""), "seed": values.get("seed", "")}


_COLUMNS = ("model", "seed", "step", "FLOPs", "val_loss", "val_exact")


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last whole row of a metrics file, without reading the rest.

    Raises:
        QflError: The file or the row cannot be read; names the file.
    """
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().split(b"\n")
        row = json.loads(lines[-2]) if len(lines) > 1 else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise QflError(f"{path} is damaged: {error}. `qfl verify {path.parent}` says more.") from error
    shown = ("step", "flops", "val_loss", "val_exact")
    if not isinstance(row, dict) or any(type(row[name]) not in (int, float) for name in shown if name in row):
        raise QflError(f"{path} is damaged: its last row is none. `qfl verify {path.parent}` says more.")
    return row
