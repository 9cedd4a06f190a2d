"""`qfl verify`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from qfl_interp.cli.output import AsJson, print_json

Folder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or the folder or URL of a sweep.", show_default=False)
]


def verify(run: Folder, as_json: AsJson = False) -> None:
    """Check every file of a run or a sweep against its checksum; nothing is changed.

    Of a sweep: its definition, plan, state and rows, the directory of every run, and each row against its directory.
    Exit status 1 where something is wrong.

    Example: `qfl verify runs/add16`
    """
    from qfl_interp.runs.run import Run
    from qfl_interp.sweep.verification import is_sweep

    # `Path` takes one of the two slashes of a URL.
    folder = re.sub(r"^(\w+):/(?=[^/])", r"\1://", str(run))
    if is_sweep(folder):
        _verify_sweep(folder, as_json)
        return
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


def _verify_sweep(folder: str, as_json: bool) -> None:
    """A sweep's folder."""
    from qfl_interp.sweep.verification import verify_sweep

    found = verify_sweep(folder)
    if as_json:
        counts = {"rows": found.rows, "whole": found.whole}
        print_json({"path": folder, **counts, "problems": found.problems, "unchecked": found.unchecked})
    else:
        console = Console(soft_wrap=True)
        console.print(
            f"sweep in {folder}: {found.rows} runs have a row, {found.whole} directories are whole", markup=False
        )
        for sentence in found.unchecked:
            console.print("[yellow]unchecked:[/]", escape(sentence), highlight=False)
        for problem in found.problems:
            console.print("[red]problem:[/]", escape(problem), highlight=False)
        console.print("[green]nothing is wrong[/]" if found else f"[red]{len(found.problems)} problems[/]")
    if not found:
        raise typer.Exit(1)
