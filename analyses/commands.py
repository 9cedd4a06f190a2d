"""The commands of `qfl` that look for features: each opens a run, calls one lens, prints. Heavy imports stay inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from analyses.options import Features, Jobs, Quiet, Steps, show, with_probe_options, write_page
from qfl_interp.cli.output import AsJson, Device, RunPath, print_json
from qfl_interp.config import ProbeConfig

Untrained = Annotated[int, typer.Option(help="Untrained models to probe as a control.")]


def capture(
    run: RunPath,
    sites: Annotated[list[str] | None, typer.Argument(metavar="[SITE]...", help="resid_post by default.")] = None,
    steps: Steps = "last",
    n: Annotated[int, typer.Option(help="Examples that probes are fitted on.")] = 10_000,
    n_test: Annotated[int, typer.Option(help="Examples they are scored on.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Draws the examples.")] = 0,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="bfloat16 takes half the space.")] = "float32",
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Keep activations on disk, memory-mapped, for later analyses: larger than memory if need be.

    Example: `qfl capture runs/add16 resid_post z --steps last`
    """
    from analyses.lenses.capture.lens import capture as analyse
    from qfl_interp.runs.run import Run

    opened = Run.open(run)
    show(
        analyse(
            opened,
            sites or ["resid_post"],
            steps,
            n=n,
            n_test=n_test,
            seed=seed,
            dtype=dtype,
            device=device,
            progress=not quiet,
        ),
        as_json,
    )


@with_probe_options
def probe(
    run: RunPath,
    features: Features = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig,
    n_untrained: Untrained = 2,
    store: Annotated[bool, typer.Option("--store", help="Keep the activations in the run for later analyses.")] = False,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fit linear probes: which features can be read off the model, where, and when.

    Examples: `qfl probe runs/add16 carry --steps log:20`, `qfl probe runs/add16 --site z --steps last`
    """
    from analyses.lenses.probe.lens import probe as analyse
    from qfl_interp.runs.run import Run

    found = analyse(
        Run.open(run),
        features,
        steps,
        config=config,
        n_untrained=n_untrained,
        store=store,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    show(found, as_json)


@with_probe_options
def transfer(
    run: RunPath,
    features: Features = None,
    steps: Steps = "log:20",
    *,
    config: ProbeConfig,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Carry probes forward: does the probe of one checkpoint still work at another?

    Example: `qfl transfer runs/add16 carry --steps log:12`
    """
    from analyses.lenses.transfer.lens import transfer as analyse
    from qfl_interp.runs.run import Run

    found = analyse(Run.open(run), features, steps, config=config, jobs=jobs, device=device, progress=not quiet)
    show(found, as_json)


@with_probe_options
def mdl(
    run: RunPath,
    features: Features = None,
    steps: Steps = "log:20",
    *,
    config: ProbeConfig,
    n_untrained: Untrained = 1,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure description lengths: how much do activations shorten a code for the labels?

    Example: `qfl mdl runs/add16 carry --steps log:10`
    """
    from analyses.lenses.mdl.lens import mdl as analyse
    from qfl_interp.runs.run import Run

    found = analyse(
        Run.open(run),
        features,
        steps,
        config=config,
        n_untrained=n_untrained,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    show(found, as_json)


@with_probe_options
def emergence(
    run: RunPath,
    features: Features = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig,
    ratio: Annotated[
        float, typer.Option(help="Learned once the probe loss stays below this part of the baseline.")
    ] = 0.5,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say whether each feature is quiet (learned before the loss moved), loud, or not learned.

    Example: `qfl emergence runs/add16`
    """
    from analyses.lenses.emergence.lens import emergence as analyse
    from qfl_interp.runs.run import Run

    found = analyse(
        Run.open(run), features, steps, config=config, ratio=ratio, jobs=jobs, device=device, progress=not quiet
    )
    show(found, as_json)


@with_probe_options
def timeline(
    run: RunPath,
    features: Features = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig,
    out: Annotated[Path | None, typer.Option(help="The page; timeline.html in the run by default.")] = None,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw loss, exact match, every feature's probes and every other lens that was computed over one compute axis.

    Example: `qfl timeline runs/add16 --out timeline.html`
    """
    from analyses.pages.timeline import timeline as analyse
    from qfl_interp.runs.run import Run

    figure = analyse(Run.open(run), features, steps, config=config, jobs=jobs, device=device, progress=not quiet)
    page = out or run / "timeline.html"
    write_page(figure, page, quiet=as_json)
    if as_json:
        print_json({"page": page})


@with_probe_options
def report(
    run: RunPath,
    features: Features = None,
    steps: Steps = "all",
    *,
    config: ProbeConfig,
    n_trials: Annotated[int, typer.Option(help="Random directions of the ablation's control.")] = 32,
    out: Annotated[Path | None, typer.Option(help="The page; report.html in the run by default.")] = None,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page on a run; analyses that are missing are computed first.

    Example: `qfl report runs/add16`
    """
    from analyses.pages.report import report as analyse
    from qfl_interp.runs.run import Run

    page = analyse(
        Run.open(run),
        features,
        steps,
        out=out,
        config=config,
        n_trials=n_trials,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    print_json({"page": page}) if as_json else print(f"wrote {page}")
