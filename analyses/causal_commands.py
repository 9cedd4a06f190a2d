"""The commands of `qfl` that change activations and see what the model does; heavy imports stay inside."""

from __future__ import annotations

from typing import Annotated

import typer

from analyses.options import Features, Jobs, Quiet, Steps, show, with_probe_options
from qfl_interp.cli.output import AsJson, Device, RunPath
from qfl_interp.config import ProbeConfig

Pairs = Annotated[int, typer.Option("--pairs", help="Pairs of a clean and a corrupted example.")]
Labels = Annotated[
    list[int] | None, typer.Option("--label", help="The label the pairs differ in; the middle one by default.")
]
Epsilon = Annotated[float, typer.Option(help="Strength: 1 removes the component, 0 changes nothing.")]


def patch(
    run: RunPath,
    features: Features = None,
    steps: Steps = "last",
    components: Annotated[
        list[str] | None,
        typer.Option("--component", help="resid_pre, resid_mid, resid_post, attn_out, mlp_out; by head z, q, k, v."),
    ] = None,
    labels: Labels = None,
    n_pairs: Pairs = 64,
    attribution: Annotated[bool, typer.Option(help="The gradient's approximation beside it.")] = True,
    seed: Annotated[int, typer.Option(help="Draws the pairs.")] = 0,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Patch clean activations into corrupted runs: where does the model hold what decides its answer?

    Examples: `qfl patch runs/add16 carry`, `qfl patch runs/add16 carry --label 3 --component z --steps log:8`
    """
    from analyses.lenses.patch.lens import COMPONENTS
    from analyses.lenses.patch.lens import patch as analyse
    from qfl_interp.runs.run import Run

    found = analyse(
        Run.open(run),
        features,
        steps,
        components=components or COMPONENTS,
        labels=labels,
        n_pairs=n_pairs,
        attribution=attribution,
        seed=seed,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    show(found, as_json)


@with_probe_options
def interchange(
    run: RunPath,
    features: Features = None,
    steps: Steps = "last",
    *,
    config: ProbeConfig,
    labels: Labels = None,
    n_pairs: Pairs = 256,
    n_random: Annotated[int, typer.Option(help="Random subspaces to compare with.")] = 32,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Swap a feature's direction alone between two runs: does the answer follow the feature?

    Example: `qfl interchange runs/add16 carry`
    """
    from analyses.lenses.interchange.lens import interchange as analyse
    from qfl_interp.runs.run import Run

    found = analyse(
        Run.open(run),
        features,
        steps,
        config=config,
        labels=labels,
        n_pairs=n_pairs,
        n_random=n_random,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    show(found, as_json)


@with_probe_options
def ablate(
    run: RunPath,
    features: Features = None,
    steps: Steps = "last",
    *,
    config: ProbeConfig,
    method: Annotated[
        str, typer.Option(help="project_out (the probes' directions), or zero, mean, resample (the whole activation).")
    ] = "project_out",
    top_k: Annotated[int, typer.Option(help="How many layers, the best probes' first.")] = 1,
    epsilon: Epsilon = 1.0,
    labels: Annotated[list[int] | None, typer.Option("--label", help="Only these labels; all by default.")] = None,
    n_trials: Annotated[int, typer.Option(help="Trials of every random control.")] = 32,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Take features out of the model: does it need them?

    The Holm correction is over the features of one call, so name all of them together.

    Examples: `qfl ablate runs/add16 carry`, `qfl ablate runs/add16 --steps log:10 --jobs 2`
    """
    from analyses.lenses.ablate.lens import ablate as analyse
    from qfl_interp.runs.run import Run

    found = analyse(
        Run.open(run),
        features,
        steps,
        config=config,
        method=method,
        top_k=top_k,
        epsilon=epsilon,
        labels=labels,
        n_trials=n_trials,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    show(found, as_json)


def ablate_units(
    run: RunPath,
    steps: Steps = "last",
    site: Annotated[str, typer.Option(help="z: heads; mlp_post: neurons.")] = "z",
    method: Annotated[str, typer.Option(help="zero, mean or resample.")] = "mean",
    n: Annotated[int, typer.Option(help="Examples.")] = 256,
    seed: Annotated[int, typer.Option(help="Draws examples, donors and bootstraps.")] = 0,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Ablate every head, or every neuron, one at a time: which ones does the answer need?

    Example: `qfl ablate-units runs/add16 --site z --method mean`
    """
    from analyses.lenses.ablate_units.lens import ablate_units as analyse
    from qfl_interp.runs.run import Run

    found = analyse(
        Run.open(run),
        steps,
        site=site,
        method=method,
        n=n,
        seed=seed,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    show(found, as_json)
