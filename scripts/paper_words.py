"""How the tables about the paper's lengths say what was found."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pandas as pd
from paper_queue import Entry, budget_name

from qfl_interp.analyses.choose import WITHOUT_NEXT_TOKEN
from qfl_interp.emergence.transition import Transition
from qfl_interp.emergence.verdict import lead_interval_seeds
from qfl_interp.tables import column, groups, records, select

Row = dict[str, Any]
_CONTROLS: Final = ("random", "random_feature", "same_norm")


def label_drops(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns labels, drop, random: what each cut costs, and its random control, as shares of right answers."""
    found = []
    for labels, part in groups(rows, "labels"):
        scores = {row["condition"]: row["exact_answer"] for row in records(part)}
        drop, random = scores["intact"] - scores["ablated"], scores["intact"] - scores["random"]
        found.append({"labels": labels, "drop": drop, "random": random})
    return pd.DataFrame(found)


def said_label(row: Row, given: set[int]) -> str:
    """A cut with its cost: "15 (next token): 74.1"."""
    labels = [int(label) for label in str(row["labels"]).split(",")]
    name = str(labels[0]) if len(labels) == 1 else f"{labels[0]} to {labels[-1]}"
    note = " (next token)" if set(labels) <= given else ""
    return f"{name}{note}: {100 * row['drop']:.1f}"


def labels_row(way: tuple[str, int], part: pd.DataFrame, given: set[int]) -> Row:
    """The four cuts of a feature's labels that cost most, in points of exact match."""
    drops = label_drops(part)
    most = records(drops.sort_values("drop", ascending=False, kind="stable").head(4))
    return {
        "layers": said_layers(way[1]), "cuts": len(drops),
        "cost most (points)": ", ".join(said_label(row, given) for row in most),
        "median": f"{100 * float(np.median(column(drops, 'drop'))):.1f}",
        "random, most": f"{100 * float(column(drops, 'random').max()):.1f}",
    }  # fmt: skip


def said_layers(top_k: int) -> str:
    """Where labels are taken out."""
    return "best" if top_k == 1 else "all"


def ways(rows: pd.DataFrame) -> list[tuple[tuple[str, int], pd.DataFrame]]:
    """The rows of every method and number of layers."""
    return [
        ((str(method), int(top_k)), part)
        for method, of_method in groups(rows, "method")
        for top_k, part in groups(of_method, "top_k")
    ]


def ablation_row(entry: Entry, run: Row, way: tuple[str, int], feature: str, part: pd.DataFrame) -> Row:
    """What one ablation costs, in points of exact match, beside its controls."""
    scores = {row["condition"]: row for row in records(part)}
    drop = {name: 100 * (scores["intact"]["exact_answer"] - row["exact_answer"]) for name, row in scores.items()}
    method, top_k = way
    paper = entry.drops.get(feature) if method == "project_out" else None
    return {
        "task": f"{entry.name} {entry.length}", "seed": run["seed"],
        "taken out": feature.replace(WITHOUT_NEXT_TOKEN, ", without labels the next token gives away"),
        "method": method, "layers": said_layers(top_k), "intact": f"{scores['intact']['exact_answer']:.3f}",
        "costs (points)": f"{drop['ablated']:.1f}",
        **{f"{name} (points)": f"{drop[name]:.1f}" if name in drop else "–" for name in _CONTROLS},
        "p, Holm": scores["ablated"]["p_value_holm"], "paper": f"{paper:.1f}" if paper is not None else "–",
    }  # fmt: skip


def interchange_row(entry: Entry, run: Row, label: int, part: pd.DataFrame) -> Row:
    """The share of flipped pairs under every swap, each at the layer where it is largest."""
    best = {name: select(part, condition=name) for name in ("feature", "mean_shift", "whole", "random", "none")}
    row: Row = {"task": f"{entry.name} {entry.length}", "seed": run["seed"], "label": label}
    for name, rows in best.items():
        top = records(rows)[int(column(rows, "flipped").argmax())]
        row[name] = f"{top['flipped']:.2f} (layer {int(top['layer'])})"
    return row


def said_verdicts(rows: pd.DataFrame) -> str:
    """The verdicts of the seeds, with the mean lead and Student's interval over those that have one."""
    if not len(rows):
        return "–"
    marked = [f"{r['verdict']}{'' if r['certain'] else ' (?)'}" for r in records(rows)]
    words = ", ".join(dict.fromkeys(marked)) if len(set(marked)) == 1 else ", ".join(marked)
    leads = column(rows, "lead_log10").astype(float)
    leads = leads[np.isfinite(leads)]
    if not leads.size:
        return words
    interval = lead_interval_seeds(leads)
    span = "" if interval is None else f", {interval.low:+.2f} to {interval.high:+.2f}"
    return f"{words} ({leads.mean():+.2f}{span})"


def said_verdict(verdict: str, certain: bool, lead: float) -> str:
    """A verdict with its lead, in decades."""
    known = f" ({lead:+.2f})" if math.isfinite(lead) else ""
    return f"{verdict}{'' if certain else ' (?)'}{known}"


def agreement(claim: str, rows: pd.DataFrame) -> str:
    """Whether the verdicts of the seeds are the paper's."""
    if not len(rows):
        return "–"
    verdicts = {str(row["verdict"]) for row in records(rows)}
    sure = all(bool(row["certain"]) for row in records(rows))
    if verdicts == {claim}:
        return "agrees" if sure else "agrees, uncertain"
    if verdicts <= {"quiet", "loud"} and len(verdicts) == 1:
        return "disagrees" if sure else "disagrees, uncertain"
    if verdicts <= {"quiet", "loud"}:
        return "seeds differ"
    return "no verdict"


def said_transitions(runs: Iterable[Row]) -> str:
    """Where the loss falls within the runs."""
    runs = list(runs)
    if not runs:
        return "not yet"
    found = [row for row in runs if math.isfinite(row["transition_start"])]
    if not found:
        return f"no transition by {budget_name(runs[0]['budget_flops'])} FLOPs"
    return "; ".join(dict.fromkeys(between(row) for row in found))


def window_verdict(entry: Entry, runs: list[Row]) -> str:
    """Whether the transition of most seeds overlaps the paper's window."""
    if not runs:
        return "–"
    found = [row for row in runs if math.isfinite(row["transition_start"])]
    if not found:
        reached = runs[0]["budget_flops"] >= entry.window[1]
        return "disagrees at this budget" if reached else "not reached"
    low, high = entry.window
    inside = [row for row in found if row["transition_start"] <= high and row["transition_end"] >= low]
    return "agrees" if len(inside) == len(runs) else "agrees in some seeds" if inside else "disagrees"


def between(row: Row) -> str:
    """Where a run's loss falls."""
    if not math.isfinite(row["transition_start"]):
        return f"none by {budget_name(row['budget_flops'])}"
    return f"{row['transition_start']:.1e} → {row['transition_end']:.1e}"


def between_of(transition: Transition) -> str:
    """Where a loss falls across budgets."""
    return f"{transition.start_flops:.0e} → {transition.end_flops:.0e}" if transition.found else "none"
