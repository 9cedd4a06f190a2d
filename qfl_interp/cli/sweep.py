"""`qfl sweep`: train a sweep, see how far it is, ask what it found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from qfl_interp.cli.output import AsJson, Device, SweepFolder, print_json, print_rows
from qfl_interp.cli.registered import add_commands
from qfl_interp.cli.train import Quiet
from qfl_interp.plugins import SWEEP_ANALYSES

if TYPE_CHECKING:
    from qfl_interp.sweep import Estimate, SweepStatus

TaskOption = Annotated[str | None, typer.Option("--task", help="This task only.")]
LengthOption = Annotated[int | None, typer.Option("--length", help="This length only.")]
# Failed runs that a person wants to read at once.
_SHOWN_FAILURES = 10


class _RunByDefault(typer.core.TyperGroup):
    """`qfl sweep FILE.toml ...` is `qfl sweep run FILE.toml ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = next((a for a in args if not a.startswith("-")), None)
        if named is not None and named not in self.commands and "--help" not in args[: args.index(named)]:
            args = ["run", *args]
        return super().parse_args(ctx, args)


_HELP = """Train a grid of runs over compute budgets, and look at all of them at once. A first session:

    qfl sweep sweeps/tiny.toml --dry-run    # what there is to do, what it costs
    qfl sweep sweeps/tiny.toml              # train; call again to go on
    qfl sweep status runs/sweeps/tiny
    qfl sweep best runs/sweeps/tiny --budget 1e10
    qfl sweep scaling runs/sweeps/tiny --out scaling.html
    qfl sweep big.toml --ray auto --gpus-per-run 0.25 --out s3://bucket/big

`qfl sweep FILE.toml` is short for `qfl sweep run FILE.toml`.
"""


def build_sweep_app() -> typer.Typer:
    """The commands of `qfl sweep`, with every registered analysis of sweeps."""
    app = typer.Typer(help=_HELP, cls=_RunByDefault, no_args_is_help=True, rich_markup_mode="rich")
    for command in (run, status, best, matched, query):
        app.command()(command)
    add_commands(app, SWEEP_ANALYSES)
    return app


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep's definition, TOML.", show_default=False)],
    out: Annotated[
        str | None,
        typer.Option(help="Its folder: a path or a URL such as s3://bucket/sweep; runs/sweeps/NAME by default."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to do and what it costs; train nothing.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Runs at a time; by default one a core (or GPU).")] = None,
    threads: Annotated[int, typer.Option(help="torch threads of each run.")] = 1,
    stack: Annotated[
        int | None,
        typer.Option(help="Most runs of one shape to train as one program; by default 64 on a GPU, 1 on a CPU."),
    ] = None,
    attempts: Annotated[int, typer.Option(help="How often a run that fails is tried.")] = 3,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Train on Ray: auto (a running cluster, else one here), local, or host:port."
        ),
    ] = None,
    cpus_per_run: Annotated[float, typer.Option(help="Ray: CPUs of a run.")] = 1.0,
    gpus_per_run: Annotated[float, typer.Option(help="Ray: share of a GPU of a run, 0.25 for four runs on one.")] = 0.0,
    scratch: Annotated[
        str | None, typer.Option(help="Local folder of runs in training while --out is a URL; temporary by default.")
    ] = None,
    extend: Annotated[bool, typer.Option("--extend", help="Give a sweep that is there this new definition.")] = False,
    device: Device = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train every run of a sweep that is not done yet.

    Runs are named by the hash of their configuration: finished ones are skipped, interrupted ones go on, failed ones
    are recorded with their error and tried again. Stop it with Ctrl-C, call it again. Exit status 1: a run failed.

    Example: `qfl sweep run sweeps/tiny.toml --workers 2`
    """
    from qfl_interp.sweep import Execution, SweepConfig, estimate_sweep, run_sweep

    config = SweepConfig.from_toml(file)
    folder = out or f"runs/sweeps/{config.name}"
    execution = Execution(
        workers=workers, threads=threads, device=device, stack=stack, attempts=attempts, ray=ray,
        cpus_per_run=cpus_per_run, gpus_per_run=gpus_per_run, scratch=scratch,
    )  # fmt: skip
    if dry_run:
        _print_estimate(config.name, folder, estimate_sweep(config, folder, execution), as_json)
        return
    run_sweep(config, folder, execution, extend=extend, progress=not quiet)
    if _print_status(folder, as_json).failures:
        raise typer.Exit(1)


def _print_estimate(name: str, folder: str, found: Estimate, as_json: bool) -> None:
    """What a dry run found."""
    from qfl_interp.sweep import duration

    values: dict[str, Any] = {
        "sweep": name,
        "folder": folder,
        "runs": len(found.plan.runs),
        "left_out": found.plan.left_out,
        "done": found.done,
        "remaining": len(found.remaining),
        "flops": found.flops,
        "hours": found.hours,
        "workers": found.n_workers,
        "disk_bytes": found.disk_bytes,
        "free_bytes": found.free_bytes,
    }
    if as_json:
        print_json(values)
        return
    print(f"sweep {name} in {folder}")
    print(f"  runs        {values['runs']:,}")
    for reason, count in found.plan.left_out.items():
        print(f"  left out    {count:,}: {reason}")
    for status_, count in found.done.items():
        print(f"  {status_:11} {count:,}")
    print(f"  to train    {values['remaining']:,}, {found.flops:.3g} nominal FLOPs")
    print(f"  time        about {duration(3600 * found.hours)} with {found.n_workers} at a time, from measured updates")
    if found.cost is not None:
        sizes = ", ".join(
            f"{1e3 * s:.3g} ms at {f:.2g} FLOPs" for f, s in zip(found.cost.flops, found.cost.seconds, strict=True)
        )
        print(f"              an update: {sizes}; a run besides: {found.cost.fixed:.2g} s")
    free = "" if found.free_bytes is None else f" of {found.free_bytes / 2**30:,.1f} GiB free"
    print(f"  disk        {found.disk_bytes / 2**30:,.2f} GiB{free}")
    if found.free_bytes is not None and found.disk_bytes > found.free_bytes:
        print("  warning: this does not fit on the disk.")


def status(folder: SweepFolder, as_json: AsJson = False) -> None:
    """How far a sweep is: runs by task, length and outcome; errors of failed runs; whether it is running.

    Example: `qfl sweep status runs/sweeps/tiny`
    """
    _print_status(folder, as_json)


def _print_status(folder: str, as_json: bool) -> SweepStatus:
    """A sweep by task and length."""
    from qfl_interp.sweep import sweep_status

    found = sweep_status(folder)
    if as_json:
        print_json({"folder": folder, **found._asdict()})
        return found
    print_rows(found.rows, title=f"sweep {found.name} in {folder}", as_json=False)
    for row in found.failures[:_SHOWN_FAILURES]:
        print(f"failed after {row['attempts']} attempts: {row['run_id']}: {row['error']}")
    if len(found.failures) > _SHOWN_FAILURES:
        print(f"... and {len(found.failures) - _SHOWN_FAILURES} more; --json lists all")
    print(found.sentence)
    return found


def best(
    folder: SweepFolder,
    budget: Annotated[float, typer.Option(help="Nominal budget in FLOPs, one of the sweep's.", show_default=False)],
    task: TaskOption = None,
    length: LengthOption = None,
    rule: Annotated[str, typer.Option(help="mean: lowest mean over seeds; paper: the single best run.")] = "mean",
    as_json: AsJson = False,
) -> None:
    """The configuration with the lowest validation loss at a budget, for each task and length.

    Example: `qfl sweep best runs/sweeps/tiny --budget 1e10`
    """
    from qfl_interp.sweep import Sweep

    rows = Sweep.open(folder).best(budget, task=task, length=length, rule=rule)
    _print_runs(rows, f"best at {budget:g} FLOPs", as_json)


def matched(
    folder: SweepFolder,
    d_model: Annotated[int, typer.Option(help="Width of the shape.", show_default=False)],
    n_layers: Annotated[int, typer.Option(help="Blocks of the shape.", show_default=False)],
    task: TaskOption = None,
    length: LengthOption = None,
    rule: Annotated[str, typer.Option(help="mean: lowest mean over seeds; paper: the single best run.")] = "mean",
    as_json: AsJson = False,
) -> None:
    """One shape at every budget, with the batch size and learning rate that suit it best there.

    Example: `qfl sweep matched runs/sweeps/tiny --d-model 16 --n-layers 2`
    """
    from qfl_interp.sweep import Sweep

    rows = Sweep.open(folder).matched(d_model, n_layers, task=task, length=length, rule=rule)
    _print_runs(rows, f"{n_layers} layers of {d_model} at every budget", as_json)


def query(
    folder: SweepFolder,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A query of the view `runs`.", show_default=False)],
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="When the query is stopped.")] = 60.0,
    unrestricted: Annotated[
        bool,
        typer.Option("--unrestricted", help="Let it read and write files, without limits; for queries that you trust."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask the table of all runs, one row each, in SQL. A query reads that table and nothing else.

    Example: `qfl sweep query runs/sweeps/tiny "select budget_flops, min(val_loss) from runs group by 1 order by 1"`
    """
    from qfl_interp.sweep import Sweep
    from qfl_interp.tables import records

    found = Sweep.open(folder).query(sql, timeout_seconds=timeout, unrestricted=unrestricted)
    print_rows(records(found), title=sql, as_json=as_json)


# What fits a terminal, and what it is called there; --json has every column.
_SHOWN = {
    "task": "task", "length": "len", "budget_flops": "budget", "d_model": "d", "n_layers": "L", "lr": "lr",
    "batch_size": "batch", "seed": "seed", "val_loss": "loss", "val_exact": "exact",
}  # fmt: skip


def _print_runs(rows: Any, title: str, as_json: bool) -> None:
    from qfl_interp.tables import records

    listed = records(rows)
    print_rows(
        listed if as_json else [{t: row[n] for n, t in _SHOWN.items()} for row in listed], title=title, as_json=as_json
    )
