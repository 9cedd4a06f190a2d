"""`qfl runs` and `qfl verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from qfl_interp.cli.output import AsJson, RunPath, print_json, print_rows
from qfl_interp.errors import QflError
from qfl_interp.runs.config import CONFIG_FILE, METRICS_FILE, RunConfig

# Enough of a metrics file's end to hold its last line.
_TAIL_BYTES = 4096


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, at any depth.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder: what they trained, how far they are, how well they do.

    Example: `qfl runs runs/`
    """
    rows = [_row(path.parent) for path in sorted(folder.rglob(CONFIG_FILE))]
    print_rows([row for row in rows if row], title=f"runs below {folder}", as_json=as_json)


def _row(path: Path) -> dict[str, Any] | None:
    """One run's line; None where the configuration is not a run's."""
    try:
        config = RunConfig.read(path)
    except QflError as error:
        return {"path": str(path), "run": f"unreadable: {error}", **dict.fromkeys(_COLUMNS, "")}
    last = _last_metrics(path / METRICS_FILE)
    step = last.get("step", 0)
    return {
        "path": str(path),
        "run": config.run_id,
        "model": f"{config.model.style} {config.model.n_layers}x{config.model.d_model}",
        "seed": config.train.seed,
        "step": f"{step}/{config.last_step}",
        "FLOPs": last.get("flops", 0.0),
        "val_loss": last.get("val_loss", float("nan")),
        "val_exact": last.get("val_exact", float("nan")),
    }


_COLUMNS = ("model", "seed", "step", "FLOPs", "val_loss", "val_exact")


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last whole row of a metrics file, without reading the rest."""
    if not path.exists():
        return {}
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        lines = file.read().split(b"\n")
    try:
        return json.loads(lines[-2]) if len(lines) > 1 else {}
    except ValueError:  # `qfl verify` names the line
        return {}


def verify(run: RunPath, as_json: AsJson = False) -> None:
    """Check every file of a run against its checksum; nothing is changed. Exit status 1 where something is wrong.

    Example: `qfl verify runs/add16`
    """
    from qfl_interp.runs.run import Run

    opened = Run.open(run)
    found = opened.verify()
    if as_json:
        print_json({"path": run, "good": found.good, "problems": found.problems, "finished": found.finished})
    else:
        console = Console(soft_wrap=True)
        console.print(repr(opened), highlight=False, markup=False)
        console.print(f"{len(found.good)} whole checkpoints; training {'finished' if found.finished else 'unfinished'}")
        for problem in found.problems:
            console.print("[red]problem:[/]", escape(problem), highlight=False)
        console.print("[green]nothing is wrong[/]" if found else f"[red]{len(found.problems)} problems[/]")
    if not found:
        raise typer.Exit(1)
