"""`qfl verify`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from qfl_interp.cli.output import AsJson, print_json
from qfl_interp.runs.config import CONFIG_FILE

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run directory, a file of `qfl suite open`, or the folder or URL of a sweep.",
        show_default=False,
    ),
]


def verify(run: Folder, as_json: AsJson = False) -> None:
    """Check every file of a run or a sweep against its checksum; nothing is changed.

    Of a suite file: its dataset, its tables, and whether every checkpoint has weights. Of a sweep: its definition,
    plan, state and rows, the directory of every run, and each row against its directory.
    Exit status 1 where something is wrong.

    Example: `qfl verify runs/add16`
    """
    from qfl_interp.runs.run import Run

    # `Path` takes one of the two slashes of a URL.
    folder = re.sub(r"^(\w+):/(?=[^/])", r"\1://", str(run))
    if not (run / CONFIG_FILE).exists() and _verify_sweep(folder, as_json):
        return
    if run.is_file():
        _verify_suite(run, as_json)
        return
    opened = Run.open(run)
    found = opened.verify()
    problems = [*found.problems, *_of_activations(opened.path / "activations")]
    if as_json:
        values = {"path": run, "good": found.good, "problems": problems, "unchecked": found.unchecked}
        print_json(values | {"finished": found.finished})
    head = f"{len(found.good)} whole checkpoints; training {'finished' if found.finished else 'unfinished'}"
    _say(f"{opened!r}\n{head}", problems, found.unchecked, quiet=as_json)


def _verify_suite(file: Path, as_json: bool) -> None:
    """Check what a suite file names: opening it checks the dataset and the configurations."""
    from qfl_interp.runs.opening import open_checkpoints
    from qfl_interp.runs.series import TABLES_FOLDER

    suite = open_checkpoints(file)
    tables = [suite.table(folder.name) for folder in sorted((suite.path / TABLES_FOLDER).glob("*"))]
    problems = [problem for table in tables for problem in table.verify()]
    problems += _of_activations(suite.path / "activations")
    absent = [step for step in suite.steps if suite.weights(step) is None]
    unchecked = [f"step {step} of {suite.run_id} has no weight file on this machine." for step in absent]
    found = [step for step in suite.steps if step not in absent]
    if as_json:
        print_json({"path": file, "good": found, "problems": problems, "unchecked": unchecked})
    head = f"{suite!r}\n{len(found)} checkpoints have weights, without checksums of their own"
    _say(head, problems, unchecked, quiet=as_json)


def _of_activations(folder: Path) -> list[str]:
    """What is wrong with a run's stored activations, which most runs have none of."""
    if not folder.exists():
        return []
    from qfl_interp.activations.store import ActivationStore

    return ActivationStore(folder).verify()


def _verify_sweep(folder: str, as_json: bool) -> bool:
    """Check a sweep's folder; False where it is none."""
    from qfl_interp.sweep.verification import is_sweep, verify_sweep

    if not is_sweep(folder):
        return False
    found = verify_sweep(folder)
    if as_json:
        counts = {"rows": found.rows, "whole": found.whole}
        print_json({"path": folder, **counts, "problems": found.problems, "unchecked": found.unchecked})
    head = f"sweep in {folder}: {found.rows} runs have a row, {found.whole} directories are whole"
    _say(head, found.problems, found.unchecked, quiet=as_json)
    return True


def _say(head: str, problems: Sequence[str], unchecked: Sequence[str], *, quiet: bool) -> None:
    """Print what was found, unless `quiet`; exit with status 1 where something is wrong."""
    console = Console(soft_wrap=True, quiet=quiet)
    console.print(head, highlight=False, markup=False)
    for sentence in unchecked:
        console.print("[yellow]unchecked:[/]", escape(sentence), highlight=False)
    for problem in problems:
        console.print("[red]problem:[/]", escape(problem), highlight=False)
    console.print(f"[red]{len(problems)} problems[/]" if problems else "[green]nothing is wrong[/]")
    if problems:
        raise typer.Exit(1)
