"""`qfl push` and `qfl pull`: runs on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qfl_interp.cli.output import AsJson, RunPath, print_json, print_rows
from qfl_interp.cli.train import Quiet

Repo = Annotated[str, typer.Argument(metavar="REPO", help="user/name on the hub.", show_default=False)]
ChosenSteps = Annotated[str, typer.Option(help="Checkpoints: all, last, log:20, or 1000,2000.")]


def push(
    run: RunPath,
    repo: Repo,
    steps: ChosenSteps = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a public repository; private by default.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Push a run's checkpoints to the hub: one branch a step, and a card on main.

    What is there already is not sent again: call it again after an interruption, or when training went on. Log in with
    `hf auth login` first.

    Example: `qfl push runs/add16 me/add16 --dry-run`
    """
    from qfl_interp.runs.hub.push import plan_push, push_run
    from qfl_interp.runs.run import Run

    opened = Run.open(run)
    plans = (
        plan_push(opened, repo, steps)
        if dry_run
        else push_run(opened, repo, steps, public=public, progress=not (quiet or as_json))
    )
    rows = [{"branch": p.branch, "files": ", ".join(p.files) or "all there", "bytes": p.n_bytes} for p in plans]
    total = sum(plan.n_bytes for plan in plans)
    print_rows(rows, title=f"{'to send' if dry_run else 'sent'} to {repo}: {total:,} bytes", as_json=as_json)


def pull(
    repo: Repo,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Run directory to make.", show_default=False)],
    steps: ChosenSteps = "all",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a run that `qfl push` put on the hub, as a run directory; every checkpoint is checked.

    Example: `qfl pull me/add16 runs/add16`
    """
    from qfl_interp.runs.hub.pull import pull_run

    run = pull_run(repo, out, steps, progress=not (quiet or as_json))
    print_json({"path": run.path, "run_id": run.run_id, "steps": run.steps}) if as_json else print(run)
