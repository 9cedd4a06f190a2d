"""`qfl verify`."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

from qfl_interp.cli.output import AsJson, RunPath, print_json


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
