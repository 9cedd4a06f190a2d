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
# Points that a cut's cost may differ from the paper's.
CLOSE: Final = 10.0
# What is swapped, as the table says it.
CARRY_SWAPS: Final = {
    "own": "its own direction", "rest": "all but that", "bit": "bit above", "mean": "class means", "random": "random",
    "whole": "everything",
}  # fmt: skip
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


def labels_row(method: str, part: pd.DataFrame, given: set[int]) -> Row:
    """The four cuts of a feature's labels that cost most, in points of exact match."""
    drops = label_drops(part)
    most = records(drops.sort_values("drop", ascending=False, kind="stable").head(4))
    return {
        "method": method, "cuts": len(drops),
        "cost most (points)": ", ".join(said_label(row, given) for row in most),
        "median": f"{100 * float(np.median(column(drops, 'drop'))):.1f}",
        "random, most": f"{100 * float(column(drops, 'random').max()):.1f}",
    }  # fmt: skip


def ablation_row(entry: Entry, method: str, feature: str, parts: list[pd.DataFrame]) -> Row:
    """What one ablation costs in every seed, in points of exact match, beside its controls."""
    scores = [{row["condition"]: row for row in records(part)} for part in parts]
    intact = [100 * seed["intact"]["exact_answer"] for seed in scores]

    def cost(condition: str) -> str:
        known = [(whole, seed[condition]) for whole, seed in zip(intact, scores, strict=True) if condition in seed]
        return "; ".join(f"{whole - 100 * row['exact_answer']:.1f}" for whole, row in known) or "–"

    return {
        "task": f"{entry.name} {entry.length}",
        "taken out": feature.replace(WITHOUT_NEXT_TOKEN, ", without labels the next token gives away"),
        "method": method, "right (%)": "; ".join(f"{whole:.1f}" for whole in intact), "costs (points)": cost("ablated"),
        **{f"{name} (points)": cost(name) for name in _CONTROLS},
        "p against random": "; ".join(f"{seed['ablated']['p_value_holm']:.2g}" for seed in scores),
    }  # fmt: skip


def interchange_row(entry: Entry, label: int, parts: list[pd.DataFrame]) -> Row:
    """The share of flipped pairs under every swap in every seed, each at the layer where it is largest."""
    row: Row = {"task": f"{entry.name} {entry.length}", "label": label}
    for name in ("feature", "mean_shift", "whole", "random", "none"):
        rows = [select(part, condition=name) for part in parts]
        best = [records(r)[int(column(r, "flipped").argmax())] for r in rows]
        row[name] = "; ".join(f"{top['flipped']:.2f} ({int(top['layer'])})" for top in best)
    return row


def carry_row(entry: Entry, seed: int, table: pd.DataFrame) -> Row:
    """The share of next bits that swaps of inner carries change at the run's end, by what differs in a pair.

    A mean over labels, at the place before the last block's MLP where own directions tell best whether carries differ.
    """
    last = select(table, step=table["step"].max())
    layer, site = carry_place(last)
    there = select(last, layer=layer, site=site)
    row: Row = {"task": f"{entry.name} {entry.length}", "seed": seed}
    row |= {"carries": ", ".join(map(str, sorted(set(there["label"])))), "where": f"{site} {layer}"}
    for condition, name in CARRY_SWAPS.items():
        shares = select(there, swapped=condition).groupby("pairs", sort=False)["changed"].mean()
        row[name] = " / ".join(f"{100 * share:.0f}" for share in shares)
    cuts = (f"{100 * select(there, swapped=f'cut {name}')['changed'].mean():.0f}" for name in ("own", "probe"))
    reads = (f"{100 * there[name].mean():.0f}" for name in ("carry_read", "next_read"))
    return row | {"cut: own / probe's": " / ".join(cuts), "read there: carry / next bit": " / ".join(reads)}


def carry_place(last: pd.DataFrame) -> tuple[int, str]:
    """Layer and site where swaps along own directions tell best whether carries differ, before the last block's MLP."""
    inside = last[~((last["layer"] == last["layer"].max()) & (last["site"] == "resid_post"))]
    shares = select(inside, swapped="own").groupby(["layer", "site", "pairs"])["changed"].mean().unstack("pairs")
    layer, site = (shares["carry"] - shares["neither"]).idxmax()
    return int(layer), str(site)


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


def said_across(row: Row) -> str:
    """A verdict across budgets with its lead in decades, and the lead's interval over seeds where there are several."""
    known = [f"{row['lead_log10']:+.2f}"] if math.isfinite(row["lead_log10"]) else []
    if known and math.isfinite(row["lead_seed_low"]):
        known.append(f"{row['lead_seed_low']:+.2f} to {row['lead_seed_high']:+.2f}")
    lead = f" ({', '.join(known)})" if known else ""
    return f"{row['verdict']}{'' if row['certain'] else ' (?)'}{lead}"


def agreement(claim: str, rows: pd.DataFrame, across: Row | None = None) -> str:
    """Whether the verdict is the paper's: that across budgets where it is quiet or loud, else those of the seeds."""
    if across is not None and across["verdict"] in ("quiet", "loud"):
        word = "agrees" if across["verdict"] == claim else "disagrees"
        return word if across["certain"] else f"{word}, uncertain"
    if not len(rows):
        return "–"
    verdicts = {str(row["verdict"]) for row in records(rows)}
    if not verdicts & {"quiet", "loud"}:
        return "no verdict"
    if len(verdicts) > 1:
        return "seeds differ"
    sure = all(bool(row["certain"]) for row in records(rows))
    word = "agrees" if verdicts == {claim} else "disagrees"
    return f"{word} within a run{'' if sure else ', uncertain'}"


def reached(runs: list[Row], n_seeds: int) -> Row:
    """How many seeds a row is of, and which budget."""
    return {"seeds": n_seeds, "budget": budget_name(runs[0]["budget_flops"]) if runs else "–"}


def drop_agrees(paper: float, costs: Iterable[float]) -> str:
    """Whether what a cut costs is the paper's number to 10 points."""
    known = [cost for cost in costs if math.isfinite(cost)]
    if not known:
        return "–"
    words = ["agrees" if abs(cost - paper) <= CLOSE else "smaller" if cost < paper else "larger" for cost in known]
    return ", ".join(dict.fromkeys(words))


def spanned(values: Iterable[float], digits: str = ".1f") -> str:
    """From the least to the most of some numbers."""
    known = list(values)
    return " to ".join(dict.fromkeys(format(value, digits) for value in (min(known), max(known))))


def predicted(row: Row) -> str:
    """The minutes that a run was predicted to take, where they were."""
    return f"{row['predicted_minutes']:.0f}" if "predicted_minutes" in row else "–"


def said_transitions(runs: Iterable[Row]) -> str:
    """Where the loss falls within the runs."""
    runs = list(runs)
    if not runs:
        return "not yet"
    found = [row for row in runs if math.isfinite(row["transition_start"])]
    if not found:
        return f"no transition by {budget_name(runs[0]['budget_flops'])} FLOPs"
    return "; ".join(dict.fromkeys(between(row) for row in found))


def window_verdict(entry: Entry, runs: list[Row], across: Transition | None = None) -> str:
    """Whether the transition overlaps the paper's window: that across budgets if there is one, or those of runs."""
    low, high = entry.window or (math.nan, math.nan)
    if not entry.window:
        return "–"
    if across is not None and across.found:
        return "agrees" if across.start_flops <= high and across.end_flops >= low else "disagrees"
    if not runs:
        return "–"
    found = [row for row in runs if math.isfinite(row["transition_start"])]
    if not found:
        return "disagrees at this budget" if runs[0]["budget_flops"] >= high else "not reached"
    inside = [row for row in found if row["transition_start"] <= high and row["transition_end"] >= low]
    word = "agrees" if len(inside) == len(runs) else "agrees in some seeds" if inside else "disagrees"
    return f"{word} within a run"


def between(row: Row) -> str:
    """Where a run's loss falls."""
    if not math.isfinite(row["transition_start"]):
        return f"none by {budget_name(row['budget_flops'])}"
    open_end = "" if row["complete_transition"] else ", not at rest by the end"
    return f"{row['transition_start']:.1e} → {row['transition_end']:.1e}{open_end}"


def between_of(transition: Transition, n_budgets: int) -> str:
    """Where a loss falls across budgets; without a fall, in how many of them it was looked for."""
    if transition.found:
        return f"{transition.start_flops:.0e} → {transition.end_flops:.0e}"
    return f"none ({transition.n_points} of {n_budgets})"
