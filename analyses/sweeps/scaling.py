"""How loss, exact match and pass probability grow with budget, and whether the loss leaves its power law.

At each budget a task's best configuration is taken, with all its seeds. Three questions are answered for each task and
length, each with an interval or a test over seeds: does the curve break the power law L = c + a C^-b; where does the
loss leave its plateau; at which budget are half of the answers right.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from qfl_interp.analyses.result import Result
from qfl_interp.analyses.stored import interval_columns
from qfl_interp.analyses.sweeps.label import label_of
from qfl_interp.analyses.sweeps.scaling_columns import RESULT
from qfl_interp.analyses.sweeps.scaling_figure import scaling_figure
from qfl_interp.analyses.transition import base_rate, known
from qfl_interp.errors import QflError, unknown_name
from qfl_interp.plots.theme import format_p, format_power
from qfl_interp.recipes import loss_unit
from qfl_interp.scaling import (
    across_transition,
    compare_laws,
    crossing,
    fit_broken_power_law,
    fit_power_law,
    lack_of_fit,
)
from qfl_interp.seeding import generator
from qfl_interp.stats import holm
from qfl_interp.sweep.plan import task_at
from qfl_interp.sweep.records import shown_options
from qfl_interp.sweep.sweep import CONFIGURATION, Sweep
from qfl_interp.tables import column, distinct, groups, records, select

ValueT = TypeVar("ValueT")

# A law is tested at this level, after Holm's correction over tasks and lengths.
ALPHA = 0.05
# Which columns of the records are counted how.
_COLUMNS = {
    "answer": {"val_loss_answer": "loss", "val_exact_answer": "exact", "val_pass_answer": "pass"},
    "paper": {"val_loss": "loss", "val_exact": "exact", "val_pass": "pass"},
}
_SCORES = ("loss", "exact", "pass")


@dataclass(frozen=True, repr=False)
class Scaling(Result):
    """The scaling curves of a sweep; `rows` has one row a task, length and budget.

    Attributes:
        fits: One row a task and length: laws, tests, transition, the budget of half right answers, a verdict.
    """

    fits: pd.DataFrame = field(repr=False)

    def tables(self) -> dict[str, pd.DataFrame]:
        """What `qfl sweep scaling --json` prints."""
        return {"fits": self.fits, "rows": self.rows}


class _Curve(NamedTuple):
    """The best configurations of one task and length: all seeds' rows, and scores by name, NaN without a run."""

    rows: pd.DataFrame
    budget: Float[np.ndarray, " budget"]
    scores: dict[str, Float[np.ndarray, "budget seed"]]


def scaling(
    sweep: Sweep,
    *,
    task: str | None = None,
    length: int | None = None,
    count: Literal["answer", "paper"] | str = "answer",
    rule: Literal["mean", "paper"] | str = "mean",
    irreducible: bool = True,
    resolution: float = 0.01,
    n_resamples: int = 499,
    seed: int = 0,
) -> Scaling:
    """Fit loss against budget for every task: power law or not, the transition, where half of the answers are right.

    The power law is tested by the lack-of-fit F statistic where configurations have several seeds, its p-value by a
    bootstrap in which every budget has its own variance (seeds spread most within a transition; the classical p, of
    equal variances, is `lack_of_fit_p_equal`); otherwise by a parametric bootstrap against a law with one smooth break.
    `p_holm` is Holm's correction over tasks and lengths.
    The loss's transition is `qfl_interp.emergence.transition.find_transition` on the mean over seeds, its bracket the
    spacing of budgets. The best configuration of a budget is chosen by the final validation loss (`=` scored), on the
    validation examples whose losses are then fitted.

    Example:
        `qfl sweep scaling runs/sweeps/tiny --out scaling.html`

    Args:
        sweep: What to look at.
        task: Only this task.
        length: Only this length.
        count: "answer": losses and scores over the answer alone, whose chance is the base rate. "paper": with `=`
            scored, whose chance is the paper's random line, or the base rate where it has none.
        rule: "mean": a configuration's mean loss over seeds decides. "paper": the single best run does.
        irreducible (--floor): The laws have a floor c >= 0, so that levelling off is no break.
        resolution: Losses below this many nats count as this in the laws and their tests: once every answer is right,
            seeds differ by decades in a loss that says little more. 0 takes them as they are.
        n_resamples: Resamples of every bootstrap.
        seed: Draws the bootstraps.

    Raises:
        QflError: No run finished, the sweep has no such task or length, or `count` or `rule` is none of its values.
        ValueError: `resolution` is negative, or `n_resamples` is below 1.
    """
    if not resolution >= 0:
        raise ValueError(f"resolution must be at least 0 nats, got {resolution}. 0 takes losses as they are.")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}. 499 give p-values of 0.002 and more.")
    if count not in _COLUMNS:
        raise unknown_name("count of the scored tokens", count, _COLUMNS)
    table = sweep.table(task=task, length=length)
    runs = finished(table)
    budgets = sorted(distinct(runs, "budget_flops"))
    chosen = pd.concat([sweep.best(b, task=task, length=length, rule=rule) for b in budgets], ignore_index=True)
    rows, fits, lines = [], [], []
    for name, of_task in groups(chosen.rename(columns=_COLUMNS[count]), "task"):
        for size, part in groups(of_task, "length"):
            curve = _curve(part, rule)
            rows.append(_best_rows(curve))
            rng = generator(seed, f"scaling/{name}/{size}")
            fit, drawn = _fits(curve, _chance(sweep, part, count), irreducible, resolution, n_resamples, rng)
            of = {"task": name, "length": int(size), "count": count, "rule": rule, "resolution": resolution}
            fits.append(of | fit)
            lines.append(drawn.assign(task=name, length=int(size)))
    found = _with_verdicts(pd.DataFrame(fits))
    best = pd.concat(rows, ignore_index=True)
    dots = runs.rename(columns=_COLUMNS[count])

    points, notes = pd.concat(lines, ignore_index=True), _notes(found, runs, count)
    draw = functools.partial(scaling_figure, dots, lines=points, notes=notes, unit=_unit(sweep))
    over = "over the answer alone" if count == "answer" else "as the paper counts"
    left = len(table) - len(runs)
    title = f"Scaling of {len(runs)} runs ({left} did not finish), {over}"
    summary = found.filter(["task", "length", "n_budgets", "n_seeds", "verdict"])
    return Scaling(title, summary, best, draw, found, of=label_of(sweep, runs), columns=RESULT)


def _unit(sweep: Sweep) -> str:
    """What the losses of a sweep are counted in: of several grids one, or their units side by side."""
    return ", ".join(dict.fromkeys(loss_unit(next(grid.points()).train.loss_name) for grid in sweep.config.grids))


def finished(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that finished.

    Raises:
        QflError: There is none, or those of a task and length were made with different options.
    """
    runs = select(table, status="finished")
    if runs.empty:
        ended = ", ".join(f"{len(part)} {status}" for status, part in groups(table, "status")) or "no run at all"
        raise QflError(f"this sweep has no finished run to look at: {ended}. Run `qfl sweep` until some have finished.")
    for _, part in runs.groupby(["task", "length"]):
        options = sorted(distinct(part, "task_options"))
        if len(options) > 1:
            shown, first = ", ".join(repr(text) for text in options), records(part)[0]
            raise QflError(
                f"the runs of {first['task']} {first['length']} must have the same task options to lie on a curve, got "
                f"{shown}. "
                "Give each a sweep of its own; sweep.table() and sweep.best() keep them apart."
            )
    return runs


def _curve(rows: pd.DataFrame, rule: str) -> _Curve:
    """The best configurations of one task and length by budget and seed; single best runs are no seed's curve."""
    if rule == "paper":
        rows = rows.assign(seed=0)
    tables = {name: rows.pivot(index="budget_flops", columns="seed", values=name) for name in _SCORES}
    budget = tables["loss"].index.to_numpy(dtype=float)
    return _Curve(rows, budget, {name: table.to_numpy(dtype=float) for name, table in tables.items()})


def _best_rows(curve: _Curve) -> pd.DataFrame:
    """One row a budget: the configuration, and mean and range over seeds of each score."""
    rows = []
    for budget, part in groups(curve.rows, "budget_flops"):
        first = records(part)[0]
        row: dict[str, Any] = {"task": first["task"], "length": first["length"], "budget_flops": budget}
        row |= {name: first[name] for name in CONFIGURATION} | {"n_seeds": len(part)}
        for name in _SCORES:
            values = column(part, name)
            row |= {name: float(values.mean()), f"{name}_low": values.min(), f"{name}_high": values.max()}
        rows.append(row)
    return pd.DataFrame(rows)


class _Chance(NamedTuple):
    """Losses of guessing, in the trained loss's unit; NaN where there is none."""

    base_rate: float
    paper: float
    used: float


def _chance(sweep: Sweep, rows: pd.DataFrame, count: str) -> _Chance:
    """The chance lines of the task of these runs, and the one that goes with the count."""
    first = records(rows)[0]
    for point in sweep.config.points():
        if point.task != first["task"]:
            continue
        task = task_at(point.task, point.length, point.task_options)
        if (task.length, shown_options(task.options)) == (first["length"], first["task_options"]):
            level = base_rate(task, loss_unit(point.train.loss_name))
            paper = task.baselines.get("paper", math.nan) if math.isfinite(level) else math.nan
            return _Chance(level, paper, paper if count == "paper" and math.isfinite(paper) else level)
    return _Chance(math.nan, math.nan, math.nan)


def _fits(
    curve: _Curve,
    chance: _Chance,
    irreducible: bool,
    resolution: float,
    n_resamples: int,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The row of one task and length, and the points of the laws that are drawn."""
    budget, loss = curve.budget, np.maximum(curve.scores["loss"], resolution)
    options: dict[str, Any] = {"irreducible": irreducible, "n_resamples": n_resamples}
    notes: list[str] = []
    power = _tried(notes, lambda: fit_power_law(budget, loss, rng=rng, **options))
    broken = _tried(notes, lambda: fit_broken_power_law(budget, loss, rng, **options))
    fit_test = _tried(notes, lambda: lack_of_fit(budget, loss, rng=rng, **options))
    compared = _tried(notes, lambda: compare_laws(budget, loss, rng, **options))
    across = _tried(notes, lambda: across_transition(budget, curve.scores["loss"], rng, chance_loss=known(chance.used)))
    # The law of the budgets up to the transition's start, where there are at least three.
    early = None
    if across and across.transition.found:
        kept = budget <= across.transition.start_flops
        early = _tried([], lambda: fit_power_law(budget[kept], loss[kept]))
    # -log of the pass probability is a loss of whole answers: positive, and finite below the floor of exact match.
    with np.errstate(divide="ignore"):
        of_answer = -np.log(curve.scores["pass"])
    surprise = np.where(np.isfinite(of_answer) & (of_answer > 0), of_answer, np.nan)
    passing = _tried([], lambda: fit_power_law(budget, surprise))
    half = crossing(budget, curve.scores["exact"])
    transition = across.transition if across else None
    row = {
        "n_budgets": budget.size,
        "n_seeds": loss.shape[1],
        **interval_columns("exponent", power.exponent if power else None),
        "floor": power.floor.estimate if power and power.floor else math.nan,
        "power_aicc": power.aicc if power else math.nan,
        **interval_columns("early_exponent", early.exponent if early else None),
        **interval_columns("broken_exponent", broken.exponent if broken else None),
        **interval_columns("broken_change", broken.change if broken else None),
        **interval_columns("break_flops", broken.break_flops if broken else None),
        "broken_aicc": broken.aicc if broken else math.nan,
        "lack_of_fit": fit_test.statistic if fit_test else math.nan,
        "lack_of_fit_p": fit_test.p_value_unequal if fit_test else math.nan,
        "lack_of_fit_p_equal": fit_test.p_value if fit_test else math.nan,
        "one_break_p": compared.p_value if compared else math.nan,
        "transition_found": bool(transition and transition.found),
        **interval_columns("transition_start", across.start if across else None),
        **interval_columns("transition_end", across.end if across else None),
        "transition_share": across.found_share if across else math.nan,
        "grid_step_decades": across.step_decades if across else math.nan,
        "plateau_loss": transition.plateau_loss if transition else math.nan,
        "transition_reason": transition.reason if transition else notes[-1],
        **interval_columns("half_exact", half.mean),
        "half_exact_seeds": int(np.isfinite(half.budgets).sum()),
        "half_exact_first": _first_half(curve.scores["exact"]),
        **interval_columns("pass_exponent", passing.exponent if passing else None),
        "base_rate": chance.base_rate,
        "paper_line": chance.paper,
        "not_fitted": " ".join(dict.fromkeys(notes)),
    }
    if half.mean is None and np.isfinite(half.budgets).any():
        row["half_exact"] = float(half.budgets[np.isfinite(half.budgets)][0])
    laws = {"power law": early or power, "broken power law": broken}
    at = np.geomspace(budget[0], budget[-1], 60) if budget.size > 1 else budget
    parts = [
        pd.DataFrame({"kind": kind, "budget_flops": at, "loss": law.predict(at)}) for kind, law in laws.items() if law
    ]
    empty = pd.DataFrame({"kind": [], "budget_flops": [], "loss": []})
    return row, pd.concat(parts, ignore_index=True) if parts else empty


def _first_half(exact: Float[np.ndarray, "budget seed"]) -> float:
    """Seeds with half of the answers right at their first budget, so that none is where they pass it; NaN without any.

    Real-valued tasks have no exact match.
    """
    firsts = [own[~np.isnan(own)][0] for own in exact.T if not np.isnan(own).all()]
    return float(np.sum(np.array(firsts) >= 0.5)) if firsts else math.nan


def _tried(notes: list[str], fit: Callable[[], ValueT]) -> ValueT | None:
    """What a fit returns; None, and its reason noted, where the data are too few for it."""
    try:
        return fit()
    except ValueError as error:
        notes.append(str(error))
        return None


def _with_verdicts(fits: pd.DataFrame) -> pd.DataFrame:
    """The rows with the test that counts, its p-value corrected over rows, and the verdict in words."""
    lack, one_break = column(fits, "lack_of_fit_p"), column(fits, "one_break_p")
    p_values = np.where(np.isfinite(lack), lack, one_break)
    test = np.where(np.isfinite(lack), "lack of fit", np.where(np.isfinite(one_break), "one break", ""))
    corrected = np.full(len(fits), np.nan)
    tested = np.isfinite(p_values)
    if tested.any():
        corrected[tested] = holm(p_values[tested])
    found = fits.assign(test=test, p_value=p_values, p_holm=corrected, breaks=corrected < ALPHA)
    return found.assign(verdict=["; ".join(_words(row)) for row in records(found)])


def _words(row: dict[str, Any]) -> list[str]:
    """The verdict of one task and length: law, transition, half right answers."""
    if math.isnan(row["p_holm"]):
        law = "power law not tested"
    elif row["breaks"]:
        law = f"breaks the power law ({format_p(row['p_holm'])})"
    else:
        law = f"no break shown ({format_p(row['p_holm'])})"
    parts = [law]
    if row["transition_found"]:
        span = f"{format_power(row['transition_start'])} – {format_power(row['transition_end'])}"
        parts.append(f"transition {span}")
    else:
        parts.append("no transition")
    half = row["half_exact"]
    if math.isfinite(half):
        parts.append(f"half right at {format_power(half)}")
    elif math.isfinite(row["half_exact_first"]):
        parts.append("half right from the first budget" if row["half_exact_first"] else "never half right")
    return parts


def _notes(fits: pd.DataFrame, runs: pd.DataFrame, count: str) -> pd.DataFrame:
    """What the figure writes and shades beside the curves."""
    rows = []
    for row in records(fits):
        part = select(runs, task=row["task"], length=row["length"])
        rows.append(
            {
                "task": row["task"],
                "length": row["length"],
                # A base rate over the answer alone is no chance of a loss that scores `=` too.
                "base_rate": row["base_rate"] if count == "answer" or math.isnan(row["paper_line"]) else math.nan,
                "paper": row["paper_line"],
                "floor": 1 / float(column(part, "n_val").max()),
                "transition_start": row["transition_start"],
                "transition_end": row["transition_end"],
                "note": "\n".join(_words(row)),
            }
        )
    return pd.DataFrame(rows)
