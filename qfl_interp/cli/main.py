"""The `qfl` program: the built-in commands and those that analyses register."""

from __future__ import annotations

import gc
import os
import platform
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from qfl_interp import __version__
from qfl_interp.cli.explore import explore
from qfl_interp.cli.faults import sentence
from qfl_interp.cli.fork import fork
from qfl_interp.cli.hub import pull, push
from qfl_interp.cli.registered import add_commands
from qfl_interp.cli.runs import runs
from qfl_interp.cli.suite import build_suite_app
from qfl_interp.cli.sweep import build_sweep_app
from qfl_interp.cli.tasks import tasks
from qfl_interp.cli.train import resume, train
from qfl_interp.cli.verify import verify
from qfl_interp.plugins import ANALYSES, COMMANDS, LENSES

# Objects made between two looks for unreachable ones. Python's 700 costs a sixth of a report's time: what imports make
# stays, and is looked through again and again.
_GC_THRESHOLD = 10_000
# The exit status with which Typer answers Ctrl-C, as shells do.
_INTERRUPTED = 130

_HELP = """Watch small transformers learn algorithms.

Train a run, then look at it through many lenses on one compute axis. A first session:

    qfl train addition --length 16 --budget 3e12 --out runs/add16
    qfl probe runs/add16
    qfl emergence runs/add16
    qfl patch runs/add16 carry
    qfl interchange runs/add16 carry
    qfl ablate runs/add16
    qfl report runs/add16

Every command has --help, every analysis --json. An analysis skips what it computed before: stop it and call it
again. Set QFL_TRACEBACK=1 to see where an error comes from.
"""


def _say_version(wanted: bool) -> bool:
    """Print the version, and those of what numbers depend on; end. What a callback returns is the option's value."""
    if wanted:
        others = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformer-lens"))
        print(f"qfl-interp {__version__} ({others}, Python {platform.python_version()})")
        raise typer.Exit
    return wanted


def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version, and end.")
    ] = False,
) -> None:
    """What `qfl` takes without a command."""


def build_app() -> typer.Typer:
    """The command line with every registered analysis."""
    app = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
    for command in (train, resume, fork, runs, tasks, verify, explore, push, pull):
        app.command()(command)
    app.callback()(_options)
    app.add_typer(build_suite_app(), name="suite")
    app.add_typer(build_sweep_app(), name="sweep")
    add_commands(app, LENSES, ANALYSES, COMMANDS)
    return app


def main() -> None:
    """Run the command line; a user's mistake ends in one message and exit status 1."""
    gc.set_threshold(_GC_THRESHOLD)
    try:
        build_app()()
    except Exception as error:
        text = sentence(error)
        if text is None or os.environ.get("QFL_TRACEBACK"):
            raise
        console = Console(stderr=True, soft_wrap=True)
        console.print("[bold red]error:[/]", escape(text), highlight=False)
        sys.exit(1)
    except SystemExit as leaving:
        if leaving.code == _INTERRUPTED:
            print("interrupted; call the same command again to go on (train: qfl resume RUN).", file=sys.stderr)
        raise
