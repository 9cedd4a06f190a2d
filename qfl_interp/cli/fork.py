"""`qfl fork`: train on from a checkpoint with something changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qfl_interp.cli.named_values import named_values
from qfl_interp.cli.output import AsJson, Device, RunPath
from qfl_interp.cli.train import Quiet, print_run
from qfl_interp.config import Intervene
from qfl_interp.errors import QflError

_ACTS = "Under an intervention"


def fork(
    run: RunPath,
    step: Annotated[str, typer.Option(help="The saved step to go on from, or last.")],
    out: Annotated[Path, typer.Option(help="Run directory to make.")],
    steps: Annotated[int | None, typer.Option(help="Updates; by default as many as the run still made.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of training: lr=1e-4, seed=7.")
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE", help="A module that is not trained: blocks.0.attn; none: train those of RUN's fork again."
        ),
    ] = None,
    roll_back: Annotated[
        list[str] | None, typer.Option(metavar="MODULE=STEP", help="A module that starts from an older step.")
    ] = None,
    project_out: Annotated[
        str | None, typer.Option(metavar="FEATURE", help="Take this feature's directions out.", rich_help_panel=_ACTS)
    ] = None,
    random: Annotated[
        str | None,
        typer.Option(metavar="FEATURE", help="As many random directions: the control.", rich_help_panel=_ACTS),
    ] = None,
    resample: Annotated[
        str | None,
        typer.Option(metavar="FEATURE", help="Put another example's activation there.", rich_help_panel=_ACTS),
    ] = None,
    no_intervention: Annotated[
        bool,
        typer.Option("--no-intervention", help="Train on without the one that RUN had.", rich_help_panel=_ACTS),
    ] = False,
    layers: Annotated[
        str, typer.Option(help="Blocks, as 0,1; by default all.", rich_help_panel=_ACTS, show_default=False)
    ] = "",
    labels: Annotated[
        str,
        typer.Option(help="Labels of the feature, as 0,1; by default all.", rich_help_panel=_ACTS, show_default=False),
    ] = "",
    site: Annotated[str, typer.Option(help="What is changed in a block.", rich_help_panel=_ACTS)] = "resid_post",
    directions: Annotated[
        Literal["probe", "written"],
        typer.Option(
            help="Those of its probes, or those along which its mean activation moves.", rich_help_panel=_ACTS
        ),
    ] = "probe",
    refit_every: Annotated[
        int, typer.Option(help="Fit directions again every so many steps; 0 for once.", rich_help_panel=_ACTS)
    ] = 0,
    n_fit: Annotated[
        int, typer.Option(help="Examples that the directions are fitted on.", rich_help_panel=_ACTS)
    ] = 2000,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the fork in --out if there is one.")] = False,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train on from a checkpoint of a run with something changed, on the same compute axis.

    Without a change the fork ends in the run's own bits. The run needs its optimiser's state at the step
    (`qfl train --save-optimizer`).

    Examples: `qfl fork runs/add16 --step 400 --set lr=1e-4 --out runs/slower`,
    `qfl fork runs/add16 --step 10 --project-out carry --refit-every 25 --out runs/add16_without_carry`
    """
    given = {"project_out": project_out, "random": random, "resample": resample}
    asked = {kind: feature for kind, feature in given.items() if feature is not None}
    if len(asked) + no_intervention > 1:
        said = [*asked, *(["no_intervention"] if no_intervention else [])]
        raise QflError(f"one intervention can be installed, got {', '.join(said)}. Make a fork of each.")
    intervene: Intervene | Literal[False] | None = False if no_intervention else None
    for kind, feature in asked.items():
        intervene = Intervene.from_dict({
            "feature": feature, "kind": kind, "site": site, "directions": directions, "refit_every": refit_every,
            "n_fit": n_fit, "layers": _numbers("--layers", layers), "labels": _numbers("--labels", labels),
        })  # fmt: skip
    changes: dict[str, Any] = named_values(change, "--set")
    older = named_values(roll_back, "--roll-back")
    wrong = [name for name, value in older.items() if type(value) is not int]
    if wrong:
        raise QflError(
            f"--roll-back must be MODULE=STEP, got {wrong[0]}={older[wrong[0]]}. Try --roll-back {wrong[0]}=0."
        )
    from qfl_interp.runs.run import Run
    from qfl_interp.training.fork import fork as fork_run

    parent = Run.open(run)
    at = parent.resolve_steps(step if not step.isdigit() else int(step))
    if len(at) != 1:
        raise QflError(f"--step must be one saved step or last, got {step!r}, which names {len(at)}.")
    made = fork_run(
        parent, at[0], out, n_steps=steps, frozen=[] if freeze == ["none"] else freeze,
        roll_back={k: int(v) for k, v in older.items()},
        intervene=intervene, resume=resume, device=device, progress=not quiet, **changes,
    )  # fmt: skip
    print_run(made, as_json)


def _numbers(flag: str, text: str) -> Sequence[int]:
    """Integers between commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise QflError(f"{flag} must be integers between commas, got {text[:80]!r}. Try {flag} 0,1.")
    return tuple(map(int, parts))
