"""`qfl polca`: the command; heavy imports stay inside."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from analyses.options import Jobs, Page, Quiet, Steps, write_page
from qfl_interp.cli.output import AsJson, Device, RunPath, print_json


def polca(
    run: RunPath,
    steps: Steps = "all",
    basis: Annotated[
        Literal["hessian", "shuffled", "random", "parameters", "gradient", "trajectory", "probe"],
        typer.Option(
            help="Directions: top eigenvectors of the Hessian at each basis checkpoint (as the paper; 'shuffled': in "
            "random order), random ones, the largest parameters (LCA), gradients, principal directions of the "
            "trajectory, or gradients of a feature's probes."
        ),
    ] = "hessian",
    basis_steps: Annotated[str, typer.Option(help="The basis checkpoints: all, log:16, or 100,200.")] = "log:16",
    per_checkpoint: Annotated[int, typer.Option(help="Eigenvectors at each of them.")] = 1,
    directions: Annotated[int, typer.Option(help="How many (random, parameters, trajectory).")] = 16,
    feature: Annotated[str, typer.Option(help="Whose probes (basis probe).")] = "",
    accuracy: Annotated[
        Literal["path", "second", "paper", "first"],
        typer.Option(
            help="Loss along a direction: integrated along the path between checkpoints, to second order (exactly, or "
            "with the paper's approximation of the curvature), or to first order."
        ),
    ] = "path",
    panels: Annotated[int, typer.Option(help="Simpson panels between two checkpoints (path).")] = 1,
    n_examples: Annotated[int, typer.Option(help="Held-out examples whose answer tokens are followed.")] = 500,
    n_hessian: Annotated[int, typer.Option(help="Training examples of the Hessian.")] = 500,
    n_probe: Annotated[int, typer.Option(help="Examples the probes are fitted on (basis probe).")] = 10_000,
    tol: Annotated[float, typer.Option(help="Relative residual at which an eigenvector counts as converged.")] = 1e-3,
    max_products: Annotated[int, typer.Option(help="Hessian-vector products at each basis checkpoint, at most.")] = 300,
    double: Annotated[bool, typer.Option("--double", help="Compute in float64.")] = False,
    curves: Annotated[
        Literal["projected", "exact_loss", "loss_change", "fisher"],
        typer.Option(help="What is clustered: projected losses, or a baseline of the paper."),
    ] = "projected",
    min_cluster_size: Annotated[
        int | None, typer.Option(help="Fewest tokens of a cluster.", show_default="3 % of the tokens")
    ] = None,
    min_samples: Annotated[
        int | None,
        typer.Option(
            help="HDBSCAN's: tokens that must be near one for it to be dense; fewer give more clusters.",
            show_default="a fifteenth of the tokens",
        ),
    ] = None,
    rule: Annotated[
        Literal["paper", "down", "absolute"],
        typer.Option(help="The turn that counts: where a fall ends (paper), where it begins (down), the sharpest."),
    ] = "paper",
    span: Annotated[
        int | None, typer.Option(help="Steps a turn is measured over.", show_default="1 % of the run")
    ] = None,
    tau: Annotated[
        int | None, typer.Option(help="Step after which the loss counts as flat.", show_default="measured")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Subsets of the tokens for the clusters' stability.")] = 20,
    seed: Annotated[int, typer.Option(help="Draws examples and directions.")] = 0,
    out: Page = None,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find tokens whose loss falls together along one direction of weight space, perhaps while their loss looks flat.

    Examples: `qfl polca runs/add16`, `qfl polca runs/add16 --basis-steps log:40 --out polca.html`,
    `qfl polca runs/add16 --curves exact_loss` (a baseline)
    """
    from analyses.lenses.polca.lens import polca as analyse
    from qfl_interp.polca.config import PolcaConfig
    from qfl_interp.runs.run import Run

    config = PolcaConfig(
        basis=basis,
        basis_steps=basis_steps,
        per_checkpoint=per_checkpoint,
        n_directions=directions,
        feature=feature,
        accuracy=accuracy,
        n_panels=panels,
        n_examples=n_examples,
        n_hessian=n_hessian,
        n_probe=n_probe,
        tol=tol,
        max_products=max_products,
        seed=seed,
        double=double,
    )
    found = analyse(
        Run.open(run),
        steps,
        config=config,
        curves=curves,
        min_cluster_size=min_cluster_size,
        min_samples=min_samples,
        rule=rule,
        span=span,
        tau=tau,
        resamples=resamples,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    if as_json:
        tables = {"directions": found.directions, "intervals": found.intervals, "composition": found.composition}
        print_json(
            {"clusters": found.to_dataframe().to_dict("records")} | {k: t.to_dict("records") for k, t in tables.items()}
        )
    else:
        print(found)
    if out is not None:
        write_page(found.plot(), out, quiet=as_json)
