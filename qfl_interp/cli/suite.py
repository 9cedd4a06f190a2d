"""`qfl suite`: checkpoints that were not trained here."""

from __future__ import annotations

import typer

from qfl_interp.cli.suite_check import check


def build_suite_app() -> typer.Typer:
    """The commands of `qfl suite`."""
    app = typer.Typer(help="Check a series of checkpoints.", no_args_is_help=True)
    app.callback()(lambda: None)  # a group, also while it has one command
    app.command("check")(check)
    return app
