"""The paper's protocol across compute: probes of the final models of one shape at every budget; quiet, loud or neither.

A task's best shape at a target budget is taken at every budget of the sweep, with the learning rate and batch size that
do best there. Each final model is probed once. A feature's onset and the transition of the loss are then both places on
the axis of budgets, found by the same rules as on a run's own axis (`qfl_interp.emergence`), and no finer than its
grid.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from qfl_interp.analyses.checkpoints import over_checkpoints
from qfl_interp.analyses.choose import chosen_features
from qfl_interp.analyses.lenses.probe.lens import probe
from qfl_interp.analyses.result import Result
from qfl_interp.analyses.sweeps.across_columns import RESULT
from qfl_interp.analyses.sweeps.across_figure import across_figure
from qfl_interp.analyses.sweeps.across_verdicts import Matched, curves_of, losses_of, verdict_across, with_within
from qfl_interp.analyses.sweeps.label import label_of
from qfl_interp.analyses.sweeps.scaling import finished
from qfl_interp.analyses.transition import base_rate
from qfl_interp.config import ProbeConfig
from qfl_interp.emergence.onset import RATIO
from qfl_interp.errors import QflError
from qfl_interp.runs.config import CONFIG_FILE
from qfl_interp.runs.run import Run
from qfl_interp.sweep.sweep import Sweep
from qfl_interp.tables import column, distinct, groups, records, select


@dataclass(frozen=True, repr=False)
class Across(Result):
    """Quiet and loud across compute; `rows` has one row a task, length, feature and third.

    Attributes:
        curves: One row a task, length, feature, third and budget: probe loss, mean and range over seeds.
        losses: One row a task, length and budget: validation loss of the probed models.
        runs: The probed runs' records.
        left_out: Columns task, length, budget_flops: budgets of the sweep at which no run of the shape finished.
    """

    curves: pd.DataFrame = field(repr=False)
    losses: pd.DataFrame = field(repr=False)
    runs: pd.DataFrame = field(repr=False)
    left_out: pd.DataFrame = field(repr=False)


class _Probed(NamedTuple):
    """A run to probe, with this many untrained models of its shape."""

    run: Run
    n_untrained: int

    def __str__(self) -> str:
        return self.run.run_id


def across(
    sweep: Sweep,
    features: str | Sequence[str] | None = None,
    *,
    task: str | None = None,
    length: int | None = None,
    d_model: int | None = None,
    n_layers: int | None = None,
    target_budget: float | None = None,
    within: Run | Sequence[Run] = (),
    into: str | Path | None = None,
    config: ProbeConfig | None = None,
    ratio: float = RATIO,
    n_untrained: int = 2,
    jobs: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Across:
    """Probe one shape at every budget: quiet, loud or not learned across compute, as in the paper's figures.

    What is not probed yet is probed first. The curve of a feature and third is the geometric mean over labels, as in
    the paper, then the mean over seeds. Its onset is the last crossing of `ratio` times the baseline, the loss's
    transition that of the mean over seeds of the loss over the answer alone. The lead is in decades of budget. Its
    range `lead_low` to `lead_high` is what the grid of budgets leaves open, for the mean curve and for each seed's own;
    a verdict is certain if that range has one sign and every seed says the same. `lead_seed_low` to `lead_seed_high` is
    Student's 95 % interval for the mean of the seeds' leads. Seeds share nothing between budgets but their number.

    The baseline is the mean over untrained models of the shape, probed and summarised as the trained ones are; beside
    it stand `baseline_paper`, the paper's (`emergence.aggregation.reference_baseline`), and what it would say.

    Example:
        `qfl sweep emergence runs/sweeps/tiny carry --task addition --within runs/add16 --out across.html`

    Args:
        sweep: Whose runs.
        features: Names; by default those of each task with `by_default`.
        task: Only this task.
        length: Only this length.
        d_model: Width of the shape that is probed; by default that of the best configuration at the target budget.
        n_layers: Blocks of that shape; give both or neither.
        target_budget (--budget): FLOPs; by default each task's and length's largest with a finished run.
        within: Runs with many checkpoints of the same task and length: their own verdicts and leads, on the axis of
            their own training, stand beside.
        into: For a sweep on remote storage: the local folder its runs are downloaded to, and their tables kept in.
        config: The probes'.
        ratio: A feature is learned once its metric stays below this fraction of the baseline.
        n_untrained: Untrained models of the shape, for the baselines.
        jobs: Models at a time, each in a process of its own.
        device: Where to compute.
        progress: Draw bars on standard error.

    Returns:
        One row a task, length, feature and third; `.plot()` draws a panel a feature.

    Raises:
        QflError: No run of the shape finished, fewer than two budgets have one, unknown feature, or a run in `within`
            has another task or length.
        ValueError: `n_untrained` is below 1, or only one of `d_model` and `n_layers` is given.
    """
    if n_untrained < 1:
        raise ValueError(
            f"n_untrained must be at least 1, got {n_untrained}: an onset is relative to untrained models."
        )
    if (d_model is None) != (n_layers is None):
        raise ValueError(
            f"d_model and n_layers name a shape together, got {d_model} and {n_layers}. Give both or neither."
        )
    config = config or ProbeConfig()
    shape = None if d_model is None or n_layers is None else (d_model, n_layers)
    matched = _matched(sweep, task, length, shape, target_budget)
    beside = _within(within, matched)
    verdicts, curves, losses = [], [], []
    for found in matched:
        runs = [_opened(sweep, str(run_id), into) for run_id in found.records["run_id"]]
        names = [feature.name for feature in chosen_features(runs[0], features)]
        # The untrained models are those of the last run, at most compute.
        items = [_Probed(run, n_untrained if run is runs[-1] else 0) for run in runs]
        fit = functools.partial(_probed, names, {"config": config, "device": device})
        over_checkpoints(items, _nothing, fit, label=f"probing {found.task}", jobs=jobs, progress=progress)
        # All is in the runs' tables now, and only read.
        table = pd.concat([fit(None, item) for item in items], ignore_index=True)
        loss, transitions = losses_of(found, base_rate(runs[0].task, runs[0].loss_unit))
        losses.append(loss)
        for name in names:
            curve, of_seeds = curves_of(select(table, feature=name), found)
            curves.append(curve)
            for third, points in groups(curve, "third"):
                row = verdict_across(points, select(of_seeds, third=third), transitions, ratio)
                identity = {"task": found.task, "length": found.length, "feature": name}
                identity |= {"metric": points["metric"].iloc[0], "third": third}
                shape_columns = {"d_model": found.d_model, "n_layers": found.n_layers, "target_budget": found.target}
                verdicts.append(identity | row | shape_columns)
    rows = pd.DataFrame(verdicts)
    if beside:
        how: dict[str, Any] = {"config": config, "jobs": jobs, "device": device, "progress": progress}
        rows = with_within(rows, beside, features, ratio=ratio, **how)
    all_curves, all_losses = pd.concat(curves, ignore_index=True), pd.concat(losses, ignore_index=True)
    left_out = [
        {"task": found.task, "length": found.length, "budget_flops": budget}
        for found in matched
        for budget in found.left_out
    ]
    columns = ["task", "length", "feature", "third", "verdict", "certain", "lead_log10", "lead_low", "lead_high"]
    columns += ["within_verdict", "within_lead"]
    probed = pd.concat([found.records for found in matched], ignore_index=True)
    return Across(
        _title(matched),
        rows.filter(columns),
        rows,
        functools.partial(across_figure, all_curves, losses=all_losses),
        all_curves,
        all_losses,
        probed,
        pd.DataFrame(left_out, columns=["task", "length", "budget_flops"]),
        of=label_of(sweep, probed),
        columns=RESULT,
    )


def _title(matched: list[Matched]) -> str:
    """What was probed and what could not be."""
    parts = []
    for found in matched:
        budgets = len(distinct(found.records, "budget_flops"))
        text = f"{found.task} {found.length}: d_model {found.d_model}, {found.n_layers} layers at {budgets} budgets"
        if found.left_out:
            text += f" (none finished at {', '.join(f'{budget:.3g}' for budget in found.left_out)} FLOPs)"
        parts.append(text)
    return "Emergence across compute. " + "; ".join(parts)


def _matched(
    sweep: Sweep, task: str | None, length: int | None, shape: tuple[int, int] | None, target_budget: float | None
) -> list[Matched]:
    """Shape and runs of every task and length."""
    found = []
    table = sweep.table(task=task, length=length)
    for name, of_task in groups(finished(table), "task"):
        for size, runs in groups(of_task, "length"):
            size = int(size)
            target = float(column(runs, "budget_flops").max()) if target_budget is None else target_budget
            of = {"task": name, "length": size}
            best = records(sweep.best(target, **of))[0]
            d_model, n_layers = shape or (int(best["d_model"]), int(best["n_layers"]))
            rows = finished(sweep.matched(d_model, n_layers, **of)).sort_values(["budget_flops", "seed"])
            budgets = distinct(rows, "budget_flops")
            if len(budgets) < 2:
                raise QflError(
                    f"a protocol across compute needs finished runs at 2 budgets, and {name} {size} has d_model "
                    f"{d_model}, {n_layers} layers at {budgets[0]:.3g} FLOPs only. Choose another shape (d_model and "
                    "n_layers), or add budgets to the sweep."
                )
            planned = sorted(distinct(select(table, **of), "budget_flops"))
            left_out = [budget for budget in planned if budget not in budgets]
            found.append(Matched(name, size, d_model, n_layers, target, rows.reset_index(drop=True), left_out))
    return found


def _opened(sweep: Sweep, run_id: str, into: str | Path | None) -> Run:
    """A run of the sweep; a remote one is downloaded once."""
    if into is not None and (Path(into) / run_id / CONFIG_FILE).exists():
        run = Run.open(Path(into) / run_id)
        if run.finished:
            return run
    return sweep.run(run_id, into=into)


def _nothing() -> None:
    """What the runs share."""


def _probed(names: Sequence[str], options: dict[str, Any], shared: None, item: _Probed) -> pd.DataFrame:
    """The probe table of a run's final model and of untrained ones; what is missing of it is fitted and written."""
    return probe(item.run, names, "last", n_untrained=item.n_untrained, **options, progress=False).rows


def _within(within: Run | Sequence[Run], matched: list[Matched]) -> list[Run]:
    """The runs to stand beside, each of a task and length that is looked at."""
    runs = [within] if isinstance(within, Run) else list(within)
    known = [(found.task, found.length) for found in matched]
    for run in runs:
        if (run.config.task, run.config.length) not in known:
            listed = ", ".join(f"{task} {length}" for task, length in known)
            raise QflError(
                f"a run to compare with must have a task and length that is looked at ({listed}), and {run.path} has "
                f"{run.config.task} {run.config.length}. Leave it out, or choose its task."
            )
    return runs
