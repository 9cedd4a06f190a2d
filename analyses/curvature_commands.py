"""`qfl curvature`: the command; heavy imports stay inside."""

from __future__ import annotations

from typing import Annotated

import typer

from analyses.options import Jobs, Page, Quiet, Steps, show, write_page
from qfl_interp.cli.output import AsJson, Device, RunPath


def curvature(
    run: RunPath,
    steps: Steps = "all",
    n_examples: Annotated[int, typer.Option(help="Training examples of the loss and its Hessian.")] = 128,
    n_rank_examples: Annotated[int, typer.Option(help="Held-out examples of the soft ranks.")] = 256,
    tol: Annotated[float, typer.Option(help="Relative residual of the eigenvalue.")] = 1e-2,
    max_products: Annotated[int, typer.Option(help="Hessian-vector products an eigenvalue may cost.")] = 100,
    double: Annotated[bool, typer.Option("--double", help="Compute in float64.")] = False,
    learning_coefficient: Annotated[
        bool, typer.Option("--learning-coefficient", help="Sample the local learning coefficient too (slow).")
    ] = False,
    step_size: Annotated[float, typer.Option(help="Of its Langevin steps.")] = 1e-5,
    localization: Annotated[float, typer.Option(help="Pull of its chains back to the checkpoint.")] = 100.0,
    chains: Annotated[int, typer.Option(help="How many chains.")] = 4,
    draws: Annotated[int, typer.Option(help="Steps of a chain that count; as many go before them.")] = 200,
    seed: Annotated[int, typer.Option(help="Draws examples, starts and chains.")] = 0,
    out: Page = None,
    jobs: Jobs = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Sharpness, curvature and angles of the steps taken, soft rank of the residual stream, over the checkpoints.

    Examples: `qfl curvature runs/add16`, `qfl curvature runs/add16 --steps log:20 --learning-coefficient --out c.html`
    """
    from analyses.lenses.curvature.lens import curvature as analyse
    from qfl_interp.curvature import CurvatureConfig, SgldConfig
    from qfl_interp.runs.run import Run

    sgld = SgldConfig(
        step_size=step_size, localization=localization, n_chains=chains, n_draws=draws, n_burn_in=draws, seed=seed
    )
    found = analyse(
        Run.open(run),
        steps,
        config=CurvatureConfig(
            n_examples=n_examples,
            n_rank_examples=n_rank_examples,
            tol=tol,
            max_products=max_products,
            seed=seed,
            double=double,
        ),
        sgld=sgld if learning_coefficient else None,
        jobs=jobs,
        device=device,
        progress=not quiet,
    )
    show(found, as_json)
    if out is not None:
        write_page(found.plot(), out, quiet=as_json)
