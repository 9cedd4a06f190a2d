"""`qfl suite`: checkpoints that were not trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qfl_interp.cli.named_values import TaskOptions, named_values
from qfl_interp.cli.output import AsJson, print_json
from qfl_interp.cli.suite_check import check
from qfl_interp.errors import QflError

_FIRST_LINES = """wrote {out}: {suite!r}
Every command that takes a run takes it:
    qfl timeline {out}
    qfl report {out}"""


def build_suite_app() -> typer.Typer:
    """The commands of `qfl suite`."""
    app = typer.Typer(help="Open and check checkpoints that were not trained here.", no_args_is_help=True)
    app.command("open")(open_suite)
    app.command("check")(check)
    return app


def open_suite(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|REPO", help="A folder of checkpoints, or a hub repository (OWNER/NAME).", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="The suite file to write, as my.suite.", show_default=False)],
    dataset: Annotated[
        Path | None, typer.Option(help="What to examine them on: a file of FixedTask.save.", show_default=False)
    ] = None,
    task: Annotated[str | None, typer.Option(help="Or a registered task.", show_default=False)] = None,
    length: Annotated[int | None, typer.Option(help="The task's length.", show_default=False)] = None,
    task_option: TaskOptions = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression of a checkpoint's name; its groups are step and tokens.", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Of a folder of state dicts: JSON of a HookedTransformerConfig.", show_default=False),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Of a repository: all, log:20 (the default), or 0,512,1000.", show_default=False)
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Of a repository with several: its stage or seed.", show_default=False)
    ] = None,
    history: Annotated[
        str | None, typer.Option(help="Of a repository: a branch whose commits are the steps.", show_default=False)
    ] = None,
    tokens_per_step: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one training step, for FLOPs.", show_default=False)
    ] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder for tables; qfl_interp in FOLDER by default.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws examples and untrained models.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Open checkpoints of another training with a dataset, and write a small file that every command takes like a run.

    Nothing is executed when the file is read, and the dataset is checked against its digest.

    Example: `qfl suite open checkpoints/ --dataset sums.safetensors --out my.suite`
    """
    if (dataset is None) == (task is None):
        raise QflError("name what the checkpoints are examined on: either --dataset FILE or --task NAME.")
    if task is None and (length is not None or task_option):
        raise QflError("--length and --task-option are of a registered --task; a dataset has its own. Leave them out.")
    folder = Path(source) if Path(source).exists() or source.count("/") != 1 else None
    if folder is not None and any(value is not None for value in (steps, stage, history)):
        raise QflError(
            f"--steps, --stage and --history are of a hub repository, and {source} is a folder. Leave them out."
        )
    if folder is None and config is not None:
        raise QflError(f"--config is of a folder of state dicts, and {source} is a hub repository. Leave it out.")
    from qfl_interp.runs.series import listed_steps
    from qfl_interp.runs.suite_file import write_suite_file

    if steps is not None:
        listed_steps(steps, [0])  # what is misspelt is said before the hub is asked

    registered = None if task is None else {"name": task, "length": length, "options": named_values(task_option)}
    place = {"folder": folder} if folder is not None else {"repo": source}
    settings = {"pattern": pattern, "steps": steps, "stage": stage, "history": history}
    suite = write_suite_file(
        out, **place, dataset=dataset, task=registered, tables=tables, config=config, seed=seed,
        tokens_per_step=tokens_per_step, **settings,
    )  # fmt: skip
    if as_json:
        print_json({"suite": out, "run_id": suite.run_id, "steps": suite.steps, "tables": suite.path})
        return
    print(_FIRST_LINES.format(out=out, suite=suite))
