"""Curves over the budgets of a sweep, the transition of their loss, and the verdicts on both, beside those of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from qfl_interp.analyses.lenses.emergence.tables import by_site, emergence_curve, emergence_tables
from qfl_interp.analyses.transition import known
from qfl_interp.emergence.aggregation import reference_baseline
from qfl_interp.emergence.onset import RATIO, find_onset
from qfl_interp.emergence.transition import Bracket, Transition, find_transition
from qfl_interp.emergence.verdict import Verdict, classify, lead_interval_seeds
from qfl_interp.runs.run import Run
from qfl_interp.scaling import across_transition
from qfl_interp.seeding import generator
from qfl_interp.stats import Interval
from qfl_interp.tables import column, groups, records, select

# Fewer budgets hold no plateau, fall and level after it.
_MIN_BUDGETS = 3


class Matched(NamedTuple):
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


def losses_of(found: Matched, base_rate: float) -> tuple[pd.DataFrame, Transitions]:
    """The models' validation loss over the answer alone, by budget, and its transitions; `base_rate` may be NaN."""
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
    chance = known(base_rate)
    whole = across_transition(budgets, losses, rng, chance_loss=chance)
    seeds = {}
    for seed, values in zip(pivot.columns.tolist(), losses.T, strict=True):
        there = np.isfinite(values)
        seeds[int(seed)] = (
            find_transition(budgets[there], values[there], chance_loss=chance, min_plateau_points=2)
            if there.sum() >= _MIN_BUDGETS
            else _no_transition(f"{int(there.sum())} budgets are too few")
        )
    return table, Transitions(whole.transition, seeds, whole.found_share)


def _no_transition(reason: str) -> Transition:
    gap = Bracket(math.nan, math.nan)
    return Transition(False, reason, math.nan, math.nan, gap, gap, math.nan, math.nan, math.nan, False, 0)


def curves_of(rows: pd.DataFrame, found: Matched) -> tuple[pd.DataFrame, pd.DataFrame]:
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


def with_within(
    rows: pd.DataFrame, runs: Sequence[Run], features: str | Sequence[str] | None, **options: Any
) -> pd.DataFrame:
    """The rows with the verdicts and leads of the protocol within one run, over the runs; options of `emergence`."""
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
