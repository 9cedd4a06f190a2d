"""The tables of docs/tasks.md about the paper's lengths, and their figure, made of the kept tables alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import pandas as pd
import plotly.graph_objects as go
from figures.overview import losses_figure
from pages import markdown
from paper_kept import Kept
from paper_queue import Entry, Queue, budget_name
from paper_words import (
    Row,
    ablation_row,
    agreement,
    between,
    between_of,
    interchange_row,
    labels_row,
    said_transitions,
    said_verdict,
    said_verdicts,
    ways,
    window_verdict,
)

from qfl_interp.analyses.sweeps.across_verdicts import Matched, curves_of, losses_of, verdict_across
from qfl_interp.data.next_token import next_token_labels
from qfl_interp.emergence.aggregation import THIRDS
from qfl_interp.tables import column, distinct, groups, records, select

NOTHING: Final = "Nothing is kept yet.\n"
# Budgets that a curve across compute takes.
_MIN_BUDGETS: Final = 3


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

    def parts(self) -> dict[str, str]:
        """Every table by the name of its markers."""
        made = {
            "paper claims": self.claims(), "paper runs": self.runs(), "paper features": self.features(),
            "paper across": self.across(), "paper ablation": self.ablation(), "paper labels": self.by_label(),
            "paper interchange": self.interchange(), "paper searches": self.searches(),
        }  # fmt: skip
        return {name: markdown(pd.DataFrame(rows)) if rows else NOTHING for name, rows in made.items()}

    def of(self, entry: Entry) -> list[Row]:
        """The task's runs that were watched while they trained, by budget and seed."""
        return [row for row in self.watched if (row["task"], row["length"]) == entry[:2]]

    def verdict_runs(self, entry: Entry) -> list[Row]:
        """All seeds of the budget that verdicts are of: the smallest with a transition in seed 0, or the largest."""
        first = [row for row in self.of(entry) if row["seed"] == 0]
        if not first:
            return []
        found = [row for row in first if math.isfinite(row["transition_start"])]
        budget = (found[0] if found else first[-1])["budget_flops"]
        return [row for row in self.of(entry) if row["budget_flops"] == budget]

    def runs(self) -> list[Row]:
        """One row a run that was watched while it trained."""
        return [
            {
                "task": f"{row['task']} {row['length']}", "budget (FLOPs)": budget_name(row["budget_flops"]),
                "seed": row["seed"], "d_model x layers": f"{row['d_model']} x {row['n_layers']}",
                "batch": row["batch_size"], "lr": row["lr"], "base rate": row["base_rate"],
                "final loss": row["final_loss"], "exact match": f"{row['exact_match']:.3f}",
                "transition (FLOPs)": between(row), "minutes": f"{row['train_seconds'] / 60:.0f}",
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
        rows = []
        for entry in self.entries:
            runs, verdicts = self.verdict_runs(entry), self._verdicts(entry)
            of = {"task": f"{entry.name} {entry.length}"}
            far = (
                {"seeds": len(runs), "budget": budget_name(runs[0]["budget_flops"])}
                if runs
                else {"seeds": 0, "budget": "–"}
            )
            if entry.window:
                low, high = (budget_name(x) for x in entry.window)
                claim = f"the loss falls between {low} and {high} FLOPs"
                rows.append(
                    of | {"paper": claim, "ours": said_transitions(runs), "": window_verdict(entry, runs)} | far
                )
            for feature, claim in entry.paper.items():
                part = select(select(verdicts, feature=feature), third="all") if len(verdicts) else verdicts
                rows.append(
                    of | {"paper": f"{feature} is {claim}", "ours": said_verdicts(part) if len(part) else "not yet"}
                    | {"": agreement(claim, part)} | far
                )  # fmt: skip
            for feature, drop in entry.drops.items():
                claim = f"taking {feature} out costs {drop} points"
                costs = [self._costs(row, feature) for row in runs]
                rows.append(of | {"paper": claim, "ours": "; ".join(costs) or "not yet", "": "see below"} | far)
        return rows

    def _costs(self, run: Row, feature: str) -> str:
        """What taking a feature out costs, by every method."""
        table = self.kept.table(run["item"], "ablate")
        if table is None:
            return f"nothing to lose: {100 * run['exact_match']:.1f} % right"
        said = []
        for (method, top_k), part in ways(select(table, feature=feature)):
            right = {row["condition"]: row["exact_answer"] for row in records(part)}
            where = method if top_k == 1 else f"{method}, all layers"
            said.append(f"{100 * (right['intact'] - right['ablated']):.1f} ({where})")
        return ", ".join(said)

    def ablation(self) -> list[Row]:
        """One row a task, run, feature and method: exact match without the feature, beside the controls."""
        return [
            ablation_row(entry, run, way, feature, part)
            for entry, run, table in self._tables("ablate")
            for way, of_way in ways(table)
            for feature, part in groups(of_way, "feature")
        ]

    def by_label(self) -> list[Row]:
        """One row a run and feature: the labels that cost most, each taken out alone."""
        rows = []
        for entry, run, table in self._tables("ablate_labels"):
            for feature, of_feature in groups(table, "feature"):
                given = set(next_token_labels(entry.task, feature))
                of = {"task": f"{entry.name} {entry.length}", "seed": run["seed"], "feature": feature}
                rows += [of | labels_row(way, part, given) for way, part in ways(of_feature)]
        return rows

    def interchange(self) -> list[Row]:
        """One row a run and label: the largest share over layers of pairs whose answer follows the swap."""
        return [
            interchange_row(entry, run, int(label), part)
            for entry, run, table in self._tables("interchange")
            for label, part in groups(table, "label")
        ]

    def _tables(self, name: str) -> Iterator[tuple[Entry, Row, pd.DataFrame]]:
        """The kept tables of this name, each with its entry and run."""
        for entry in self.entries:
            for run in self.verdict_runs(entry):
                table = self.kept.table(run["item"], name)
                if table is not None:
                    yield entry, run, table

    def searches(self) -> list[Row]:
        """One row a task whose search is kept: the runs' losses and what was chosen."""
        rows = []
        for entry in self.entries:
            for kind in ("rates", "widths"):
                table, best = self.kept.search(f"{entry.label}-{kind}"), self.queue.best(entry, kind)
                if table is None or best is None:
                    continue
                losses = table["val_loss_answer"]
                rows.append(
                    {"task": f"{entry.name} {entry.length}", "search": kind, "runs": len(table),
                     "budget each": budget_name(float(table["budget_flops"].iloc[0])),
                     "chosen: d_model, batch, lr": f"{best['d_model']}, {best['batch_size']}, {best['lr']:g}",
                     "its loss": float(losses.min()), "worst loss": float(losses.max())}
                )  # fmt: skip
        return rows

    def across(self) -> list[Row]:
        """One row a task and feature: the verdict across budgets, where there are enough of the shape."""
        rows = []
        for entry in self.entries:
            found = self._matched(entry)
            if found is None:
                continue
            matched, probes = found
            _, transitions = losses_of(matched, entry.task.baselines["base_rate"])
            for feature, of_feature in groups(probes, "feature"):
                curve, seeds = curves_of(of_feature, matched)
                said = {}
                for third, points in groups(curve, "third"):
                    verdict = verdict_across(points, select(seeds, third=third), transitions)
                    said[third] = said_verdict(verdict["verdict"], verdict["certain"], verdict["lead_log10"])
                budgets = [float(b) for b in distinct(matched.records, "budget_flops")]
                row: Row = {"task": f"{entry.name} {entry.length}", "feature": feature}
                row |= {"budgets": f"{len(budgets)}, {budget_name(min(budgets))} to {budget_name(max(budgets))}"}
                row |= {"transition (FLOPs)": between_of(transitions.mean)}
                rows.append(row | {third: said.get(third, "–") for third in ("all", *THIRDS)})
        return rows

    def _matched(self, entry: Entry) -> tuple[Matched, pd.DataFrame] | None:
        """Seed 0's runs of every budget with the probes of their final models; None with too few."""
        own = [row for row in self.all if (row["task"], row["length"], row["seed"]) == (*entry[:2], 0)]
        own = [row for row in own if self.kept.table(row["item"], "probe") is not None]
        own = [row for row in own if row["d_model"] == own[-1]["d_model"]]
        if len(own) < _MIN_BUDGETS:
            return None
        table = pd.DataFrame(own).rename(columns={"final_loss": "val_loss_answer"})
        parts = []
        for row in own:
            rows = self.kept.table(row["item"], "probe")
            assert rows is not None
            trained = select(rows, source="trained")
            last = select(trained, step=column(trained, "step").max())
            parts.append(last if row is not own[-1] else pd.concat([last, select(rows, source="untrained")]))
            parts[-1] = parts[-1].assign(run_id=row["run_id"])
        shape = (own[-1]["d_model"], own[-1]["n_layers"], own[-1]["budget_flops"])
        return Matched(*entry[:2], *shape, table, []), pd.concat(parts, ignore_index=True)

    def figure(self) -> go.Figure | None:
        """Loss over compute of every task with a kept run, transitions shaded, onsets of features marked; or None."""
        curves, panels, found, onsets = [], [], [], []
        for entry in self.entries:
            runs = self.verdict_runs(entry)
            of = {"task": entry.name, "length": entry.length}
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
        return losses_figure(pd.concat(curves), pd.DataFrame(panels), pd.DataFrame(found, columns=columns), marks)
