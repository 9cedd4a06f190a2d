"""How commands print: rich tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qfl_interp.errors import QflError

# Columns of text in which any table fits.
_WIDEST = 10_000
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or a file of `qfl suite open`.", show_default=False)
]
SweepFolder = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's folder or URL.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of a table.")]


def _usable_device(name: str) -> str:
    """The device, if this PyTorch can compute on it."""
    if name != "cpu":
        import torch

        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            said = str(error).splitlines()[0].rstrip(".")
            raise QflError(
                f"--device {name} cannot be used: {said}. Use --device cpu, or install a PyTorch build for this device."
            ) from error
    return name


Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...", callback=_usable_device)]


def _plain(value: Any) -> Any:
    """JSON has no NaN and no paths."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def print_json(value: Any) -> None:
    """One JSON document; what is not finite becomes null."""
    print(json.dumps(_plain(value), indent=1, default=lambda v: v.item() if hasattr(v, "item") else str(v)))


def _cell(value: Any) -> str:
    """A number with four digits, or the text."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return escape(str(value))


def print_rows(rows: Sequence[Mapping[str, Any]], *, title: str, as_json: bool) -> None:
    """Rows as a table, or as a JSON list."""
    if as_json:
        print_json(list(rows))
        return
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ():
        numeric = isinstance(rows[0][name], (int, float)) and not isinstance(rows[0][name], bool)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console()
    # A file or another program has no width: cells are not broken there.
    if not console.is_terminal:
        console.width = max(console.width, Console(width=_WIDEST).measure(table).maximum)
    console.print(table if rows else f"{title}: none")
