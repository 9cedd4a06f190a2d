"""`qfl runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qfl_interp.cli.output import AsJson, print_rows
from qfl_interp.errors import QflError
from qfl_interp.files import read_json
from qfl_interp.runs.config import METRICS_FILE, RunConfig
from qfl_interp.runs.listing import last_metrics, places


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, at any depth.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder, and suite files: what they trained, how far they are, how well they do.

    Example: `qfl runs runs/`
    """
    found = places(folder)
    rows = [_row(place.path) for place in found if place.kind == "run"]
    rows += [_suite_row(place.path) for place in found if place.kind == "suite"]
    print_rows(rows, title=f"runs below {folder}", as_json=as_json)


def _row(path: Path) -> dict[str, Any]:
    """One run's line, also where a file of it is damaged: that is named."""
    try:
        config = RunConfig.read(path)
        last = last_metrics(path / METRICS_FILE)
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
