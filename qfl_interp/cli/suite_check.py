"""`qfl suite check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from qfl_interp.cli.output import AsJson, Device, print_json, print_rows

SuitePath = Annotated[
    Path, typer.Argument(metavar="SUITE", help="A suite file or a run directory.", show_default=False)
]


def check(suite: SuitePath, device: Device = "cpu", as_json: AsJson = False) -> None:
    """Check whether checkpoints are what they say: copies, mixed-up or foreign ones, NaN, types, a trained step 0.

    Each is read once; a call that was stopped goes on. Exit status 1 where something is wrong.

    Example: `qfl suite check my.suite`
    """
    from qfl_interp.runs.opening import open_checkpoints
    from qfl_interp.runs.suite_check.check import check_suite

    found = check_suite(open_checkpoints(suite), device=device, progress=not as_json)
    rows = found.table.to_dict("records")
    if as_json:
        findings = [finding._asdict() for finding in found.findings]
        print_json({"suite": found.name, "findings": findings, "checkpoints": rows, "faults": len(found.faults)})
    else:
        print_rows([{str(k): v for k, v in row.items()} for row in rows], title=found.name, as_json=False)
        console = Console(soft_wrap=True)
        for one in found.findings:
            colour = "red" if one.severity == "fault" else "yellow"
            console.print(
                f"[{colour}]{one.severity}[/] step {one.step}, {one.kind}:", escape(one.text), highlight=False
            )
        end = f"[red]{len(found.faults)} faults[/]" if found.faults else "[green]no fault[/]"
        console.print(end)
    if found.faults:
        raise typer.Exit(1)
