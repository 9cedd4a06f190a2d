"""What the analyses' commands have in common: the arguments, the probes' options, how a result is printed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qfl_interp.cli.output import print_json
from qfl_interp.config import ProbeConfig

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from analyses.result import Result

Features = Annotated[
    list[str] | None, typer.Argument(metavar="[FEATURE]...", help="Features; all of the task's by default.")
]
Steps = Annotated[str, typer.Option("--steps", "--step", help="all, last, log:20, 130, or 1000,2000.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Checkpoints at a time, each in a process of its own.")]
Page = Annotated[Path | None, typer.Option(help="Also draw the figure into this HTML page.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
_DEFAULT = ProbeConfig()


def _probe_config(
    n_train: Annotated[int, typer.Option(help="Examples the probes are fitted on.")] = _DEFAULT.n_train,
    n_test: Annotated[int, typer.Option(help="Examples they are scored on.")] = _DEFAULT.n_test,
    c: Annotated[float, typer.Option(help="Inverse L2 strength; the paper uses 100.")] = _DEFAULT.c,
    alpha: Annotated[
        float, typer.Option(help="Ridge penalty of scalar features; 0 is least squares.")
    ] = _DEFAULT.alpha,
    path: Annotated[
        str, typer.Option(help="Choose each probe's strength among these on validation examples: 0.01,1,100.")
    ] = "",
    site: Annotated[
        str, typer.Option(help="What is probed: resid_post, resid_mid, attn_out, mlp_out, z, ...")
    ] = _DEFAULT.site,
    pooled: Annotated[bool, typer.Option("--pooled", help="One probe for all labels of a feature.")] = False,
    seed: Annotated[int, typer.Option(help="Draws the examples and the controls.")] = _DEFAULT.seed,
) -> ProbeConfig:
    """The probes' configuration."""
    try:
        strengths = tuple(float(part) for part in path.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"--path must be numbers with commas between them, got {path!r}. Try 0.01,1,100.") from error
    return ProbeConfig(
        n_train=n_train, n_test=n_test, c=c, alpha=alpha, path=strengths, site=site, pooled=pooled, seed=seed
    )


def with_probe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the probes' options in place of its keyword `config`; Typer reads the new signature."""
    options = inspect.signature(_probe_config, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True)
    parameters = []
    for parameter in own.parameters.values():
        taken = options.values() if parameter.name == "config" else [parameter]
        parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in taken]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        config = _probe_config(**{name: given.pop(name) for name in options})
        command(config=config, **given)

    del with_options.__wrapped__  # or its signature would be read instead
    with_options.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # what inspect reads
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options


def show(result: Result, as_json: bool) -> None:
    """The summary for people, every row for programs."""
    if as_json:
        print_json(result.to_dataframe().to_dict("records"))
    else:
        print(result)


def write_page(figure: Figure, page: Path, *, quiet: bool) -> None:
    """The figure as one HTML page that needs nothing else."""
    from qfl_interp.plots.theme import figure_config

    figure.write_html(page, include_plotlyjs=True, config=figure_config(figure))
    if not quiet:
        print(f"wrote {page}")
