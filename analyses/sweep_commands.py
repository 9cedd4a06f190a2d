"""The commands of `qfl sweep` that look at a whole sweep: each opens it, calls one analysis, prints, draws a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from analyses.commands import Untrained
from analyses.options import Features, Jobs, Page, Quiet, show, with_probe_options, write_page
from qfl_interp.cli.output import AsJson, Device, print_json
from qfl_interp.cli.sweep import LengthOption, SweepFolder, TaskOption
from qfl_interp.config import ProbeConfig


def scaling(
    folder: SweepFolder,
    task: TaskOption = None,
    length: LengthOption = None,
    count: Annotated[
        Literal["answer", "paper"],
        typer.Option(help="Losses over the answer alone, or with `=` scored as in the paper."),
    ] = "answer",
    rule: Annotated[
        Literal["mean", "paper"],
        typer.Option(help="The best configuration by its mean over seeds, or by its best run."),
    ] = "mean",
    floor: Annotated[
        bool, typer.Option(help="Whether the laws have an irreducible loss, so that levelling off is no break.")
    ] = True,
    resolution: Annotated[
        float, typer.Option(help="Losses below this many nats count as this in the laws and their tests.")
    ] = 0.01,
    out: Page = None,
    as_json: AsJson = False,
) -> None:
    """Fit loss against budget for every task: power law or not, the transition, where half of the answers are right.

    Example: `qfl sweep scaling runs/sweeps/tiny --out scaling.html`
    """
    from analyses.sweeps.scaling import scaling as analyse
    from qfl_interp.sweep import Sweep

    found = analyse(
        Sweep.open(folder), task=task, length=length, count=count, rule=rule, irreducible=floor, resolution=resolution
    )
    if as_json:
        print_json({"fits": found.fits.to_dict("records"), "rows": found.to_dataframe().to_dict("records")})
    else:
        print(found)
    if out is not None:
        write_page(found.plot(), out, quiet=as_json)


@with_probe_options
def emergence(
    folder: SweepFolder,
    features: Features = None,
    task: TaskOption = None,
    length: LengthOption = None,
    budget: Annotated[
        float | None, typer.Option(help="The target budget, whose best shape is looked at; the largest by default.")
    ] = None,
    d_model: Annotated[int | None, typer.Option(help="Look at this shape instead; with --n-layers.")] = None,
    n_layers: Annotated[int | None, typer.Option(help="Look at this shape instead; with --d-model.")] = None,
    within: Annotated[
        list[Path] | None, typer.Option(help="A run with many checkpoints whose own verdicts stand beside; repeatable.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Where runs of a sweep on remote storage are downloaded to.")
    ] = None,
    *,
    config: ProbeConfig,
    ratio: Annotated[
        float, typer.Option(help="Learned once the probe loss stays below this part of the baseline.")
    ] = 0.5,
    n_untrained: Untrained = 2,
    jobs: Jobs = 1,
    out: Page = None,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Probe one shape at every budget: quiet, loud or not learned across compute, as in the paper's figures.

    Example: `qfl sweep emergence runs/sweeps/tiny carry --task addition --within runs/add16 --out across.html`
    """
    from analyses.sweeps.across import across as analyse
    from qfl_interp.runs.run import Run
    from qfl_interp.sweep import Sweep

    found = analyse(
        Sweep.open(folder),
        features,
        task=task,
        length=length,
        d_model=d_model,
        n_layers=n_layers,
        target_budget=budget,
        within=[Run.open(path) for path in within or ()],
        into=into,
        config=config,
        ratio=ratio,
        n_untrained=n_untrained,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    show(found, as_json)
    if out is not None:
        write_page(found.plot(), out, quiet=as_json)
