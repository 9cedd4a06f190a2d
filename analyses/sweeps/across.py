"""The paper's protocol across compute: probes of the final models of one shape at every budget; quiet, loud or neither.

A task's best shape at a target budget is taken at every budget of the sweep, with the learning rate and batch size that
do best there. Each final model is probed once. A feature's onset and the transition of the loss are then both places on
the axis of budgets, found by the same rules as on a run's own axis (`qfl_interp.emergence`), and no finer than its
grid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from analyses.checkpoints import over_checkpoints
from analyses.choose import chosen_features
from analyses.lenses.emergence.tables import by_site, emergence_curve, emergence_tables
from analyses.lenses.probe.lens import probe
from analyses.result import Result
from analyses.sweeps.across_figure import across_figure
from analyses.sweeps.scaling import finished
from qfl_interp.config import ProbeConfig
from qfl_interp.emergence.aggregation import reference_baseline
from qfl_interp.emergence.onset import RATIO, find_onset
from qfl_interp.emergence.transition import Bracket, Transition, find_transition
from qfl_interp.emergence.verdict import Verdict, classify, lead_interval_seeds
from qfl_interp.errors import QflError
from qfl_interp.runs.config import CONFIG_FILE
from qfl_interp.runs.run import Run
from qfl_interp.scaling import across_transition
from qfl_interp.seeding import generator
from qfl_interp.stats import Interval
from qfl_interp.sweep.sweep import Sweep
from qfl_interp.tables import column, distinct, groups, records, select

# Fewer budgets hold no plateau, fall and level after it.
_MIN_BUDGETS = 3


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


class _Matched(NamedTuple):
    """The runs of one task and length.

    Attributes:
        task: Its name.
        length: Its length.
        d_model: The shape's.
        n_layers: The shape's.
        target: The target budget, FLOPs.
        records: One row a run, by budget and seed.
        left_out: Budgets without a finished run of the shape.
    """

    task: str
    length: int
    d_model: int
    n_layers: int
    target: float
    records: pd.DataFrame
    left_out: list[float]


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
        table = _probe_all(found, runs, names, config, n_untrained, jobs, device, progress)
        loss, transitions = _losses(found, runs[0].task.baselines["base_rate"])
        losses.append(loss)
        for name in names:
            curve, of_seeds = _curves(select(table, feature=name), found)
            curves.append(curve)
            for third, points in groups(curve, "third"):
                row = verdict_across(points, select(of_seeds, third=third), transitions, ratio)
                identity = {"task": found.task, "length": found.length, "feature": name}
                identity |= {"metric": points["metric"].iloc[0], "third": third}
                shape_columns = {"d_model": found.d_model, "n_layers": found.n_layers, "target_budget": found.target}
                verdicts.append(identity | row | shape_columns)
    rows = pd.DataFrame(verdicts)
    if beside:
        rows = _with_within(rows, beside, features, config, ratio, jobs, device, progress)
    all_curves, all_losses = pd.concat(curves, ignore_index=True), pd.concat(losses, ignore_index=True)
    left_out = [
        {"task": found.task, "length": found.length, "budget_flops": budget}
        for found in matched
        for budget in found.left_out
    ]
    columns = ["task", "length", "feature", "third", "verdict", "certain", "lead_log10", "lead_low", "lead_high"]
    columns += ["within_verdict", "within_lead"]
    return Across(
        _title(matched),
        rows.filter(columns),
        rows,
        functools.partial(across_figure, all_curves, losses=all_losses),
        all_curves,
        all_losses,
        pd.concat([found.records for found in matched], ignore_index=True),
        pd.DataFrame(left_out, columns=["task", "length", "budget_flops"]),
    )


def _title(matched: list[_Matched]) -> str:
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
) -> list[_Matched]:
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
            found.append(_Matched(name, size, d_model, n_layers, target, rows.reset_index(drop=True), left_out))
    return found


def _opened(sweep: Sweep, run_id: str, into: str | Path | None) -> Run:
    """A run of the sweep; a remote one is downloaded once."""
    if into is not None and (Path(into) / run_id / CONFIG_FILE).exists():
        run = Run.open(Path(into) / run_id)
        if run.finished:
            return run
    return sweep.run(run_id, into=into)


def _probe_all(
    found: _Matched,
    runs: list[Run],
    features: Sequence[str],
    config: ProbeConfig,
    n_untrained: int,
    jobs: int,
    device: str | torch.device,
    progress: bool,
) -> pd.DataFrame:
    """The probe tables of all runs' final models; the untrained models are those of the last run, at most compute."""
    items = [_Probed(run, n_untrained if run is runs[-1] else 0) for run in runs]
    fit = functools.partial(_fit, features, config, device)
    over_checkpoints(items, _nothing, fit, label=f"probing {found.task}", jobs=jobs, progress=progress)
    # All is in the runs' tables now, and only read.
    return pd.concat([_rows(features, config, device, item) for item in items], ignore_index=True)


def _nothing() -> None:
    """What the runs share."""


def _fit(features: Sequence[str], config: ProbeConfig, device: str | torch.device, shared: None, item: _Probed) -> None:
    """Fit and write what is missing of one run."""
    _rows(features, config, device, item)


def _rows(features: Sequence[str], config: ProbeConfig, device: str | torch.device, item: _Probed) -> pd.DataFrame:
    """The probe table of a run's final model and of untrained ones."""
    options: dict[str, Any] = {"config": config, "n_untrained": item.n_untrained, "device": device}
    return probe(item.run, features, "last", **options, progress=False).rows


class Transitions(NamedTuple):
    """Where the loss falls.

    Attributes:
        mean: Of the mean over seeds.
        seeds: Of each seed's own losses.
        share: Share of resamples of seeds in which the mean has one; NaN with fewer than three budgets.
    """

    mean: Transition
    seeds: dict[int, Transition]
    share: float


def _losses(found: _Matched, base_rate: float) -> tuple[pd.DataFrame, Transitions]:
    """The models' validation loss over the answer alone, by budget, and its transitions."""
    pivot = found.records.pivot(index="budget_flops", columns="seed", values="val_loss_answer")
    budgets, losses = pivot.index.to_numpy(dtype=float), pivot.to_numpy(dtype=float)
    table = pd.DataFrame(
        {
            "task": found.task,
            "length": found.length,
            "budget_flops": budgets,
            "loss": np.nanmean(losses, axis=1),
            "loss_low": np.nanmin(losses, axis=1),
            "loss_high": np.nanmax(losses, axis=1),
            "n_seeds": np.isfinite(losses).sum(axis=1),
            "base_rate": base_rate,
        }
    )
    if budgets.size < _MIN_BUDGETS:
        none = _no_transition(f"{budgets.size} budgets are too few for a plateau and a fall, which take {_MIN_BUDGETS}")
        return table, Transitions(none, {int(seed): none for seed in pivot.columns}, math.nan)
    rng = generator(0, f"across/{found.task}/{found.length}")
    whole = across_transition(budgets, losses, rng, chance_loss=base_rate)
    seeds = {}
    for seed, values in zip(pivot.columns.tolist(), losses.T, strict=True):
        there = np.isfinite(values)
        seeds[int(seed)] = (
            find_transition(budgets[there], values[there], chance_loss=base_rate, min_plateau_points=2)
            if there.sum() >= _MIN_BUDGETS
            else _no_transition(f"{int(there.sum())} budgets are too few")
        )
    return table, Transitions(whole.transition, seeds, whole.found_share)


def _no_transition(reason: str) -> Transition:
    """No transition, and why."""
    gap = Bracket(math.nan, math.nan)
    return Transition(False, reason, math.nan, math.nan, gap, gap, math.nan, math.nan, math.nan, False, 0)


def _curves(rows: pd.DataFrame, found: _Matched) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A feature's curves over budget: one row a third and budget; one row a third, budget and seed."""
    untrained = select(rows, source="untrained")
    models = [by_site(part, "test_loss") for _, part in groups(untrained, "model_seed")]
    paper = reference_baseline(np.stack(models))
    parts = []
    for row in records(found.records):
        trained = select(rows, source="trained", run_id=row["run_id"])
        curve = emergence_curve(pd.concat([trained, untrained]))
        at = {"task": found.task, "length": found.length, "budget_flops": row["budget_flops"], "seed": row["seed"]}
        parts.append(curve.assign(**at))
    of_seeds = pd.concat(parts, ignore_index=True)
    points = []
    for third, of_third in groups(of_seeds, "third"):
        for budget, part in groups(of_third, "budget_flops"):
            first, values, arithmetic = records(part)[0], column(part, "geometric"), column(part, "arithmetic")
            points.append(
                {
                    **{name: first[name] for name in ("task", "length", "feature", "metric")},
                    "third": third,
                    "budget_flops": budget,
                    "geometric": float(values.mean()),
                    "geometric_low": float(values.min()),
                    "geometric_high": float(values.max()),
                    "arithmetic": float(arithmetic.mean()),
                    "n_seeds": len(part),
                    "n_labels": first["n_labels"],
                    "shuffled_geometric": float(column(part, "shuffled_geometric").mean()),
                    "baseline_clean": first["baseline_geometric"],
                    "baseline_paper": paper[third].geometric_mean,
                }
            )
    return pd.DataFrame(points), of_seeds


def verdict_across(
    curve: pd.DataFrame, of_seeds: pd.DataFrame, transitions: Transitions, ratio: float = RATIO
) -> dict[str, Any]:
    """The verdict on one feature's third, with what each seed says on its own, as a row.

    Args:
        curve: Columns budget_flops, geometric, baseline_clean, baseline_paper; one row a budget.
        of_seeds: Columns seed, budget_flops, geometric; one row a seed and budget.
        transitions: Of the loss.
        ratio: As in `find_onset`.
    """
    baseline = float(column(curve, "baseline_clean")[0])
    paper = float(column(curve, "baseline_paper")[0])
    budgets, metric = column(curve, "budget_flops"), column(curve, "geometric")
    onset = find_onset(budgets, metric, baseline, ratio)
    by_paper = find_onset(budgets, metric, paper, ratio)
    own: list[Verdict] = []
    for seed, points in groups(of_seeds, "seed"):
        if len(points) > 1:
            of_seed = find_onset(column(points, "budget_flops"), column(points, "geometric"), baseline, ratio)
            own.append(classify(of_seed, transitions.seeds[int(seed)]))
    leads = [verdict for verdict in own if math.isfinite(verdict.lead)]
    alone = classify(onset, transitions.mean)
    spread = None
    if leads and math.isfinite(alone.lead):
        low, high = min(v.lead_low for v in leads), max(v.lead_high for v in leads)
        spread = Interval(alone.lead, low, high, len(leads), math.nan, "range over seeds and grid")
    verdict = classify(onset, transitions.mean, spread)
    over_seeds = lead_interval_seeds(np.array([v.lead for v in leads])) if leads else None
    transition = transitions.mean
    return {
        "verdict": verdict.kind,
        "certain": verdict.certain and all(v.kind == verdict.kind for v in own),
        "reason": verdict.reason,
        "onset_flops": onset.onset_flops,
        "onset_low": onset.bracket.low,
        "onset_high": onset.bracket.high,
        "lead_log10": verdict.lead,
        "lead_low": verdict.lead_low,
        "lead_high": verdict.lead_high,
        "lead_seed_low": over_seeds.low if over_seeds else math.nan,
        "lead_seed_high": over_seeds.high if over_seeds else math.nan,
        "seed_verdicts": _counted([v.kind for v in own]),
        "n_seeds": len(own),
        "baseline": baseline,
        "baseline_paper": paper,
        "verdict_paper_baseline": classify(by_paper, transition).kind,
        "onset_flops_paper_baseline": by_paper.onset_flops,
        "best": float(metric.min()),
        "ratio": ratio,
        "transition_found": transition.found,
        "transition_start_flops": transition.start_flops,
        "transition_end_flops": transition.end_flops,
        "transition_share": transitions.share,
        "transition_reason": transition.reason,
    }


def _counted(kinds: Sequence[str]) -> str:
    """How often each verdict was given: "2 quiet, 1 loud"."""
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def _within(within: Run | Sequence[Run], matched: list[_Matched]) -> list[Run]:
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


def _with_within(
    rows: pd.DataFrame,
    runs: Sequence[Run],
    features: str | Sequence[str] | None,
    config: ProbeConfig,
    ratio: float,
    jobs: int,
    device: str | torch.device,
    progress: bool,
) -> pd.DataFrame:
    """The rows with the verdicts and leads of the protocol within one run, over the runs given."""
    options: dict[str, Any] = {"config": config, "ratio": ratio, "jobs": jobs, "device": device, "progress": progress}
    tables = []
    for run in runs:
        found = emergence_tables(run, features, "all", **options).verdicts
        tables.append(found.assign(task=run.config.task, length=run.config.length))
    table = pd.concat(tables, ignore_index=True)
    added = []
    for row in records(rows):
        same = select(table, **{name: row[name] for name in ("task", "length", "feature", "third")})
        leads, lows, highs = (column(same, name) for name in ("lead_log10", "lead_low", "lead_high"))
        known = np.isfinite(leads)
        added.append(
            {
                "within_verdict": _counted([str(verdict) for verdict in same["verdict"]]),
                "within_lead": float(leads[known].mean()) if known.any() else math.nan,
                "within_lead_low": float(lows[known].min()) if known.any() else math.nan,
                "within_lead_high": float(highs[known].max()) if known.any() else math.nan,
                "within_runs": len(same),
            }
        )
    return pd.concat([rows, pd.DataFrame(added)], axis=1)
