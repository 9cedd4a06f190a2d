"""`qfl view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(
    folder: Annotated[Path, typer.Argument(help="Holds runs at any depth, or is one.")] = Path("runs"),
    port: Annotated[int | None, typer.Option(help="By default 8370, or the next that is free.")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in this machine's browser.")] = True,
) -> None:
    """Look at all runs, suites and sweeps below a folder on a live page of this machine: what was computed, over steps.

    It is served to this machine alone and asks nothing of others. From another machine: `ssh -L 8370:127.0.0.1:8370`.

    Example: `qfl view runs/`
    """
    from qfl_interp.analyses.view.serve import view as serve

    serve(folder, port=port, open_browser=browser)
