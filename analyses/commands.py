"""The analyses' commands of `qfl`; each opens a run, calls one lens and prints. Heavy imports stay inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qfl_interp.cli.output import AsJson, Device, RunPath, print_json
from qfl_interp.config import ProbeConfig

if TYPE_CHECKING:
    from analyses.result import Result

Features = Annotated[
    list[str] | None, typer.Argument(metavar="[FEATURE]...", help="Features; all of the task's by default.")
]
Steps = Annotated[str, typer.Option("--steps", "--step", help="all, last, log:20, 130, or 1000,2000.")]
NTrain = Annotated[int, typer.Option(help="Examples the probes are fitted on.")]
NTest = Annotated[int, typer.Option(help="Examples they are scored on.")]
Penalty = Annotated[float, typer.Option("--c", help="Inverse L2 strength; the paper uses 100.")]
Seed = Annotated[int, typer.Option(help="Draws the probes' examples and the controls.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
_N_TRAIN, _N_TEST, _C = 10_000, 1_000, 100.0


def _config(n_train: int, n_test: int, c: float, seed: int) -> ProbeConfig:
    """The probes' configuration."""
    return ProbeConfig(n_train=n_train, n_test=n_test, c=c, seed=seed)


def _show(result: Result, as_json: bool) -> None:
    """The summary for people, every row for programs."""
    if as_json:
        print_json(result.to_dataframe().to_dict("records"))
    else:
        print(result)


def probe(
    run: RunPath,
    features: Features = None,
    steps: Steps = "all",
    n_train: NTrain = _N_TRAIN,
    n_test: NTest = _N_TEST,
    c: Penalty = _C,
    seed: Seed = 0,
    n_untrained: Annotated[int, typer.Option(help="Untrained models to probe as a control.")] = 2,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fit linear probes: which features can be read off the residual stream, where, and when.

    Example: `qfl probe runs/add16 carry --steps log:20`
    """
    from analyses.probing import probe as analyse
    from qfl_interp.run import Run

    config = _config(n_train, n_test, c, seed)
    opened = Run.open(run)
    _show(
        analyse(opened, features, steps, config=config, n_untrained=n_untrained, device=device, progress=not quiet),
        as_json,
    )


def emergence(
    run: RunPath,
    features: Features = None,
    steps: Steps = "all",
    n_train: NTrain = _N_TRAIN,
    n_test: NTest = _N_TEST,
    c: Penalty = _C,
    seed: Seed = 0,
    ratio: Annotated[
        float, typer.Option(help="Learned once the probe loss stays below this part of the baseline.")
    ] = 0.5,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say whether each feature is quiet (learned before the loss moved), loud, or not learned.

    Example: `qfl emergence runs/add16`
    """
    from analyses.emerging import emergence as analyse
    from qfl_interp.run import Run

    config = _config(n_train, n_test, c, seed)
    _show(analyse(Run.open(run), features, steps, config=config, ratio=ratio, progress=not quiet), as_json)


def ablate(
    run: RunPath,
    features: Features = None,
    steps: Steps = "last",
    n_train: NTrain = _N_TRAIN,
    n_test: NTest = _N_TEST,
    c: Penalty = _C,
    seed: Seed = 0,
    n_trials: Annotated[int, typer.Option(help="Random directions to compare with.")] = 32,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Project features out of the residual stream: does the model need them?

    The Holm correction is over the features of one call, so name all of them together.

    Example: `qfl ablate runs/add16 carry`
    """
    from analyses.ablation import ablate as analyse
    from qfl_interp.run import Run

    config = _config(n_train, n_test, c, seed)
    opened = Run.open(run)
    _show(
        analyse(opened, features, steps, config=config, n_trials=n_trials, device=device, progress=not quiet), as_json
    )


def timeline(
    run: RunPath,
    features: Features = None,
    steps: Steps = "all",
    n_train: NTrain = _N_TRAIN,
    n_test: NTest = _N_TEST,
    c: Penalty = _C,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="The page; timeline.html in the run by default.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw loss, exact match and every feature's probes over one compute axis.

    Example: `qfl timeline runs/add16 --out timeline.html`
    """
    from analyses.emerging import timeline as analyse
    from qfl_interp.plots import figure_config
    from qfl_interp.run import Run

    config = _config(n_train, n_test, c, seed)
    figure = analyse(Run.open(run), features, steps, config=config, progress=not quiet)
    page = out or run / "timeline.html"
    figure.write_html(page, include_plotlyjs=True, config=figure_config(figure))
    print_json({"page": page}) if as_json else print(f"wrote {page}")


def report(
    run: RunPath,
    features: Features = None,
    steps: Steps = "all",
    n_train: NTrain = _N_TRAIN,
    n_test: NTest = _N_TEST,
    c: Penalty = _C,
    seed: Seed = 0,
    n_trials: Annotated[int, typer.Option(help="Random directions of the ablation's control.")] = 32,
    out: Annotated[Path | None, typer.Option(help="The page; report.html in the run by default.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page on a run; analyses that are missing are computed first.

    Example: `qfl report runs/add16`
    """
    from analyses.reporting import report as analyse
    from qfl_interp.run import Run

    config = _config(n_train, n_test, c, seed)
    opened = Run.open(run)
    page = analyse(opened, features, steps, out=out, config=config, n_trials=n_trials, progress=not quiet)
    print_json({"page": page}) if as_json else print(f"wrote {page}")
