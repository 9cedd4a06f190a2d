"""The tables of docs/tasks.md about the paper's lengths, and their figure, made of the kept tables alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from figures.overview import losses_figure
from pages import markdown
from paper_kept import Kept
from paper_queue import LEAST_RIGHT, SEARCHES, Entry, Queue, budget_name, of_shape, verdict_budget
from paper_words import (
    Row,
    ablation_row,
    agreement,
    between,
    between_of,
    carry_row,
    drop_agrees,
    interchange_row,
    labels_row,
    predicted,
    reached,
    said_across,
    said_transitions,
    said_verdicts,
    spanned,
    window_verdict,
)

from qfl_interp.analyses.sweeps.across_verdicts import Matched, Transitions, curves_of, losses_of, verdict_across
from qfl_interp.data.next_token import next_token_labels
from qfl_interp.emergence.aggregation import THIRDS
from qfl_interp.tables import column, groups, records, select

NOTHING: Final = "Nothing is kept yet.\n"
# Budgets that a curve across compute takes.
_MIN_BUDGETS: Final = 3


class Across(NamedTuple):
    """What the final models of several budgets say of a task.

    Attributes:
        n_seeds: How many seeds there are of every budget.
        budgets: FLOPs, increasing.
        transitions: Of the loss.
        verdicts: Rows of `verdict_across` by feature and third.
        finals: Columns flops, val_loss_answer: where every run ended.
    """

    n_seeds: int
    budgets: list[float]
    transitions: Transitions
    verdicts: dict[tuple[str, str], Row]
    finals: pd.DataFrame


class Pages:
    """What the kept runs say, task by task.

    Args:
        queue: Its tasks, in the order of the tables, and what the paper says of them.
        kept: The tables.
    """

    def __init__(self, queue: Queue, kept: Kept) -> None:
        self.entries, self.queue, self.kept = queue.entries, queue, kept
        self.all = kept.rows()
        self.watched = [row for row in self.all if not row["across"]]
        self.curves = {entry.label: self._across(entry) for entry in self.entries}

    def parts(self) -> dict[str, str]:
        """Every table by the name of its markers."""
        made = {
            "paper claims": self.claims(), "paper runs": self.runs(), "paper features": self.features(),
            "paper across": self.across(), "paper ablation": self.ablation(), "paper labels": self.by_label(),
            "paper interchange": self.interchange(), "paper carries": self.carries(),
            "paper searches": self.searches(),
        }  # fmt: skip
        return {name: markdown(pd.DataFrame(rows)) if rows else NOTHING for name, rows in made.items()}

    def of(self, entry: Entry) -> list[Row]:
        """The task's runs that were watched while they trained, by budget and seed."""
        return [row for row in self.watched if (row["task"], row["length"]) == entry[:2]]

    def verdict_runs(self, entry: Entry) -> list[Row]:
        """All seeds of the budget that verdicts are of (`verdict_budget`), of the task's shape."""
        seen = self.queue.seen(self.all, entry)
        return self._at(entry, verdict_budget(seen)) if seen else []

    def _at(self, entry: Entry, budget: float) -> list[Row]:
        """All seeds of one budget, of the task's shape."""
        own = of_shape(self.of(entry), self.queue.shape(entry))
        return [row for row in own if row["budget_flops"] == budget]

    def taken_out(self, entry: Entry) -> list[Row]:
        """All seeds of the budget that ablations are of: the verdicts' own, if it has any, or the largest with any."""
        for budget in [row["budget_flops"] for row in [*self.of(entry), *self.verdict_runs(entry)]][::-1]:
            runs = self._at(entry, budget)
            if any(self.kept.table(row["item"], "ablate") is not None for row in runs):
                return runs
        return self.verdict_runs(entry)

    def runs(self) -> list[Row]:
        """One row a run that was watched while it trained."""
        return [
            {
                "task": f"{row['task']} {row['length']}", "budget (FLOPs)": budget_name(row["budget_flops"]),
                "seed": row["seed"], "d_model x layers": f"{row['d_model']} x {row['n_layers']}",
                "batch": row["batch_size"], "lr": row["lr"], "base rate": row["base_rate"],
                "final loss": row["final_loss"], "exact match": f"{row['exact_match']:.3f}", "problems": row["n_val"],
                "transition (FLOPs)": between(row), "predicted minutes": predicted(row),
                "minutes": f"{row['train_seconds'] / 60:.0f}",
            }
            for entry in self.entries for row in self.of(entry)
        ]  # fmt: skip

    def _verdicts(self, entry: Entry) -> pd.DataFrame:
        """Verdict rows of all seeds of the budget that counts; without rows where there is none."""
        tables = []
        for row in self.verdict_runs(entry):
            table = self.kept.table(row["item"], "emergence")
            if table is not None:
                tables.append(table.assign(seed=row["seed"]))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"feature": [], "third": []})

    def features(self) -> list[Row]:
        """One row a task and feature: the verdicts of every third, with the lead's interval over seeds."""
        rows = []
        for entry in self.entries:
            for name, part in groups(self._verdicts(entry), "feature"):
                budget = self.verdict_runs(entry)[0]["budget_flops"]
                row: Row = {"task": f"{entry.name} {entry.length}", "feature": name, "budget": budget_name(budget)}
                row |= {third: said_verdicts(select(part, third=third)) for third in ("all", *THIRDS)}
                whole = select(part, third="all")
                baseline, best = (float(column(whole, c).mean()) for c in ("baseline", "best"))
                rows.append(row | {"probe loss: untrained → best": f"{baseline:.3g} → {best:.3g}"})
        return rows

    def claims(self) -> list[Row]:
        """One row a claim of the paper: what it says, what is found here, whether they agree."""
        rows = [row for entry in self.entries for row in self._claims(entry)]
        return [*rows, self._phases(), self._drops()]

    def _claims(self, entry: Entry) -> list[Row]:
        """What the paper says of one task, beside ours; the words of agreement say which of ours they go by."""
        runs, verdicts, across = self.verdict_runs(entry), self._verdicts(entry), self.curves[entry.label]
        of = {"task": f"{entry.name} {entry.length}"}
        low, high = (budget_name(x) for x in entry.window or (0.0, 0.0))
        window = f"the loss falls between {low} and {high} FLOPs" if entry.window else "draws no transition"
        found = {
            "ours, within a run": said_transitions(runs),
            "ours, across budgets": between_of(across.transitions.mean, len(across.budgets)) if across else "–",
            "agree?": window_verdict(entry, runs, across.transitions.mean if across else None),
        }
        rows = [of | {"paper": window} | found | reached(runs, len(runs))]
        for feature, claim in entry.paper.items():
            part = select(select(verdicts, feature=feature), third="all") if len(verdicts) else verdicts
            row = across.verdicts.get((feature, "all")) if across else None
            found = {
                "ours, within a run": said_verdicts(part) if len(part) else "not yet",
                "ours, across budgets": said_across(row) if row else "–",
                "agree?": agreement(claim, part, row),
            }
            rows.append(of | {"paper": f"{feature} is {claim}"} | found | reached(runs, len(part)))
        for feature, drop in entry.drops.items():
            runs = self.taken_out(entry)
            costs = [cost for row in runs if math.isfinite(cost := self._costs(row, feature))]
            said = "; ".join(f"{cost:.1f}" for cost in costs)
            if not said:
                lost = runs and runs[0]["exact_match"] < LEAST_RIGHT
                said = f"nothing to lose: {100 * runs[0]['exact_match']:.1f} % right" if lost else "not yet"
            found = {"ours, within a run": said, "ours, across budgets": "–", "agree?": drop_agrees(drop, costs)}
            rows.append(of | {"paper": f"taking {feature} out costs {drop} points"} | found | reached(runs, len(costs)))
        return rows

    def _costs(self, run: Row, feature: str) -> float:
        """Points that taking a feature out costs as the paper does it, `=` scored; NaN where nothing was taken out."""
        table = self.kept.table(run["item"], "ablate")
        if table is None:
            return math.nan
        rows = records(select(table, feature=feature, method="project_out", top_k=1))
        right = {row["condition"]: row["exact"] for row in rows}
        return 100 * (right["intact"] - right["ablated"])

    def _phases(self) -> Row:
        """In how many of the paper's ten tasks the loss has a transition."""
        ten = {entry.name: self.verdict_runs(entry) for entry in reversed(self.entries)}  # addition: 16, not 64
        trained = {name: runs[0] for name, runs in ten.items() if runs}
        falls = [name for name, row in trained.items() if math.isfinite(row["transition_start"])]
        budgets = sorted({row["budget_flops"] for row in trained.values()})
        found = {
            "ours, within a run": f"{len(falls)} of the {len(trained)} trained ({', '.join(sorted(falls)) or 'none'})",
            "ours, across budgets": "–", "agree?": "see the rows above", "seeds": "1",
            "budget": " to ".join(budget_name(b) for b in dict.fromkeys([budgets[0], budgets[-1]])) if budgets else "–",
        }  # fmt: skip
        return {"task": "all ten", "paper": "two phases in six tasks"} | found

    def _drops(self) -> Row:
        """What taking out the features costs that are quiet here."""
        said, seeds = [], 0
        for entry in self.entries:
            verdicts, runs = self._verdicts(entry), self.taken_out(entry)
            quiet = select(select(verdicts, third="all"), verdict="quiet") if len(verdicts) else verdicts
            for feature, part in groups(quiet, "feature"):
                own = [run for run in runs if run["seed"] in set(part["seed"])]  # where it is quiet
                costs = [cost for run in own if math.isfinite(cost := self._costs(run, str(feature)))]
                seeds = max(seeds, len(costs))
                said += [f"{feature} of {entry.name} {entry.length}: {spanned(costs)}"] if costs else []
        found = {"ours, within a run": "; ".join(said) or "–", "ours, across budgets": "–", "agree?": "see below"}
        paper = "taking a quiet feature out costs 41 to 75 points"
        return {"task": "all ten", "paper": paper} | found | {"seeds": f"up to {seeds}", "budget": "–"}

    def ablation(self) -> list[Row]:
        """One row a task, feature and method: what taking the feature out costs, beside the controls."""
        return [
            ablation_row(entry, method, feature, parts)
            for entry, tables in self._tables("ablate")
            for (method, feature), parts in _parts(tables.values(), "method", "feature")
        ]

    def by_label(self) -> list[Row]:
        """One row a feature and method of the first seed: the labels that cost most, each taken out alone."""
        rows = []
        for entry, tables in self._tables("ablate_labels"):
            for (feature, method), parts in _parts(tables.values(), "feature", "method"):
                given = set(next_token_labels(entry.task, feature))
                row = {"task": f"{entry.name} {entry.length}", "feature": feature}
                rows.append(row | labels_row(method, parts[0], given))
        return rows

    def interchange(self) -> list[Row]:
        """One row a label: the largest share over layers of pairs whose answer follows the swap."""
        return [
            interchange_row(entry, label, parts)
            for entry, tables in self._tables("interchange")
            for (label,), parts in _parts(tables.values(), "label")
        ]

    def carries(self) -> list[Row]:
        """One row a run: what swapping inner carries does to the next sum bit."""
        return [
            carry_row(entry, seed, table) for entry, tables in self._tables("carries") for seed, table in tables.items()
        ]

    def _tables(self, name: str) -> Iterator[tuple[Entry, dict[int, pd.DataFrame]]]:
        """Each task with the kept tables of this name by seed, of the best layer where layers were tried."""
        for entry in self.entries:
            found = {run["seed"]: self.kept.table(run["item"], name) for run in self.taken_out(entry)}
            kept = {seed: table for seed, table in found.items() if table is not None}
            yield entry, {s: select(t, top_k=1) if "top_k" in t.columns else t for s, t in kept.items()}

    def searches(self) -> list[Row]:
        """One row a task whose search is kept: the runs' losses and what was chosen."""
        rows = []
        for entry in self.entries:
            for kind in SEARCHES:
                table, best = self.kept.search(f"{entry.label}-{kind}"), self.queue.best(entry, kind)
                if table is None or best is None:
                    continue
                own = select(table, **best)
                right = [100 * float(share) for share in column(own, "val_exact_answer")]
                rows.append(
                    {"task": f"{entry.name} {entry.length}", "search": kind, "runs": len(table),
                     "budget each": budget_name(float(table["budget_flops"].iloc[0])),
                     "chosen: d_model, batch, lr": f"{best['d_model']}, {best['batch_size']}, {best['lr']:g}",
                     "its loss": float(column(own, "val_loss_answer").mean()), "right (%)": spanned(right),
                     "worst loss": float(column(table, "val_loss_answer").max())}
                )  # fmt: skip
        return rows

    def across(self) -> list[Row]:
        """One row a task and feature: the verdict across budgets, where there are enough of the shape."""
        rows = []
        for entry in self.entries:
            found = self.curves[entry.label]
            if found is None:
                continue
            for feature in dict.fromkeys(feature for feature, _ in found.verdicts):
                low, high = (budget_name(b) for b in (found.budgets[0], found.budgets[-1]))
                row: Row = {"task": f"{entry.name} {entry.length}", "feature": feature, "seeds": found.n_seeds}
                row |= {"budgets": f"{len(found.budgets)}, {low} to {high}"}
                row |= {"transition (FLOPs)": between_of(found.transitions.mean, len(found.budgets))}
                said = {third: found.verdicts.get((feature, third)) for third in ("all", *THIRDS)}
                rows.append(row | {third: said_across(one) if one else "–" for third, one in said.items()})
        return rows

    def _across(self, entry: Entry) -> Across | None:
        """The transition and the verdicts across the budgets that all seeds have; None with too few."""
        own = [row for row in self.all if (row["task"], row["length"]) == entry[:2]]
        own = [row for row in own if self.kept.table(row["item"], "probe") is not None]
        own = of_shape(own, self.queue.shape(entry))
        by_seed = {
            seed: {row["budget_flops"]: row for row in own if row["seed"] == seed}
            for seed in sorted({row["seed"] for row in own})
        }
        # A seed counts once it has all that its stage trains.
        by_seed = {seed: rows for seed, rows in by_seed.items() if seed == 0 or self.queue.curve <= set(rows)}
        common = sorted(set.intersection(*map(set, by_seed.values()))) if by_seed else []
        if len(common) < _MIN_BUDGETS:
            return None
        chosen = [rows[budget] for rows in by_seed.values() for budget in common]
        last = chosen[-1]
        table = pd.DataFrame(chosen).rename(columns={"final_loss": "val_loss_answer"})
        matched = Matched(*entry[:2], last["d_model"], last["n_layers"], last["budget_flops"], table, [])
        _, transitions = losses_of(matched, entry.task.baselines["base_rate"])
        verdicts = {}
        for feature, rows in groups(self._final_probes(chosen), "feature"):
            curve, of_seeds = curves_of(rows, matched)
            for third, points in groups(curve, "third"):
                row = verdict_across(points, select(of_seeds, third=third), transitions)
                verdicts[str(feature), str(third)] = row
        finals = table.rename(columns={"budget_flops": "flops"})[["flops", "val_loss_answer"]]
        return Across(len(by_seed), common, transitions, verdicts, finals)

    def _final_probes(self, runs: list[Row]) -> pd.DataFrame:
        """The probes of the runs' final models, and of the last one's untrained models."""
        parts = []
        for row in runs:
            rows = self.kept.table(row["item"], "probe")
            assert rows is not None
            trained = select(rows, source="trained")
            last = select(trained, step=column(trained, "step").max())
            parts.append(last if row is not runs[-1] else pd.concat([last, select(rows, source="untrained")]))
            parts[-1] = parts[-1].assign(run_id=row["run_id"])
        return pd.concat(parts, ignore_index=True)

    def figure(self) -> go.Figure | None:
        """Loss over compute of every task with a kept run, within it and across budgets; or None."""
        curves, panels, found, onsets, finals = [], [], [], [], []
        for entry in self.entries:
            runs = self.verdict_runs(entry)
            of = {"task": entry.name, "length": entry.length}
            across = self.curves[entry.label]
            if across is not None:
                finals.append(across.finals.assign(**of))
            for row in runs:
                metrics = self.kept.table(row["item"], "metrics")
                assert metrics is not None
                curves.append(metrics.assign(**of, seed=row["seed"]))
                if math.isfinite(row["transition_start"]):
                    found.append(
                        of
                        | {
                            "seed": row["seed"],
                            "start_flops": row["transition_start"],
                            "end_flops": row["transition_end"],
                        }
                    )
            if runs:
                panels.append(of | {"base_rate": runs[0]["base_rate"]})
                whole = self._verdicts(entry)
                if len(whole):
                    onsets.append(select(select(whole, third="all"), seed=0).assign(**of))
        if not panels:
            return None
        columns = ["task", "length", "seed", "start_flops", "end_flops"]
        marks = pd.concat(onsets, ignore_index=True) if onsets else None
        ends = pd.concat(finals) if finals else None
        return losses_figure(pd.concat(curves), pd.DataFrame(panels), pd.DataFrame(found, columns=columns), marks, ends)


def _parts(tables: Iterable[pd.DataFrame], *by: str) -> Iterator[tuple[tuple[Any, ...], list[pd.DataFrame]]]:
    """The rows of every combination of values, of each table that has any."""
    found: dict[tuple[Any, ...], list[pd.DataFrame]] = {}
    for table in tables:
        for key, part in table.groupby(list(by), sort=False):
            found.setdefault(key, []).append(part)
    yield from found.items()
