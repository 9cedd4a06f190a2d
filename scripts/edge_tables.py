"""The tables and heat maps of docs/edge_of_stability.md, made of the study's rows."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from edge_experiments import PATTERNS, SEEDS
from pages import markdown

from qfl_interp.tables import select

# Train accuracy of a training that learned.
LEARNED = 0.9


def over_seeds(rows: pd.DataFrame, keys: list[str]) -> list[dict[str, Any]]:
    """One record for each combination of keys: how many trainings, diverged, learned, and medians over the others."""
    found = []
    for at, group in rows.groupby(keys, sort=False, dropna=False):
        alive = pd.DataFrame(group.loc[group["status"] != "diverged"])
        record = dict(zip(keys, at, strict=True)) | {"n": len(group), "diverged": len(group) - len(alive)}
        record["learned"] = int((alive["train_accuracy"] > LEARNED).sum())
        numbers = [name for name in alive.columns if name not in keys and alive[name].dtype.kind == "f"]
        found.append(record | {name: float(alive[name].median()) if len(alive) else math.nan for name in numbers})
    return found


def outcome(one: dict[str, Any]) -> str:
    """What became of a combination's trainings: loss, accuracy, soft rank and sharpness, or how many were lost."""
    if one["diverged"]:
        return f"diverged {one['diverged']}/{one['n']}"
    if not one["learned"]:
        return f"finite, learned 0/{one['n']}"
    spike = f", spike {one['spike']:.1f}x" if one["spike"] > 1.05 else ""
    some = f"learned {one['learned']}/{one['n']}: " if one["learned"] < one["n"] else ""
    return (
        f"{some}{one['train_loss']:.2g}, {one['test_accuracy']:.3f}, {one['soft_rank']:.2f}, "
        f"{one['edge_ratio_p']:.2g}{spike}"
    )


def outcomes(rows: pd.DataFrame, lines: list[str], across: str) -> str:
    """A row for each combination of some columns, what became of its trainings for each value of another."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in over_seeds(rows, [*lines, across]):
        at = tuple(_text(one[name]) for name in lines)
        line = found.setdefault(at, dict(zip(lines, at, strict=True)))
        line[f"{across}={_text(one[across])}"] = outcome(one)
    return markdown(pd.DataFrame(list(found.values())).fillna("–"))


def _text(value: Any) -> str:
    """A number, a name, or "none"."""
    if isinstance(value, str):
        return value
    return "none" if math.isnan(value) else f"{value:g}"


# Tables of outcomes: the experiment, what a row is, and what a column.
OF_OUTCOMES = {
    "E2": (["r", "rule"], "q"),
    "E6": (["depth", "q", "rule"], "max_u"),
    "deep": (["activation", "rule"], "q"),
    "norm_power": (["depth", "schedule"], "q"),
}


def outcome_table(rows: pd.DataFrame, experiment: str) -> str:
    """The table of an experiment's outcomes."""
    return outcomes(select(rows, experiment=experiment), *OF_OUTCOMES[experiment])


def along_table(rows: pd.DataFrame) -> str:
    """E3: the quadratic model along the steps of E2's trainings with r = 2 that learned, and with the squared error."""
    entropy = select(rows, experiment="E2", r=2.0)
    entropy = pd.DataFrame(entropy.loc[entropy["train_accuracy"] > LEARNED])
    own = pd.concat([entropy, select(rows, experiment="E3")])
    found = [one for one in over_seeds(own, ["loss", "rule", "q"]) if one["diverged"] < one["n"]]
    return markdown(pd.DataFrame([
        {"loss": one["loss"], "rule": one["rule"], "q": f"{one['q']:g}", "median lr S / 2":
         f"{one['edge_along_step']:.2f}", "steps above 1": f"{one['share_beyond']:.0%}",
         "steps that raise their own batch's loss": f"{one['share_raising']:.0%}",
         "Gauss-Newton share of c2": f"{one['gauss_newton_share']:.2f}",
         "trainings": f"{one['n'] - one['diverged']}/{len(SEEDS)}"}
        for one in found
    ]))  # fmt: skip


def full_batch_table(rows: pd.DataFrame) -> str:
    """E4."""
    own = select(rows, experiment="E4")
    found = over_seeds(own.assign(product=own["lambda_p"] * own["soft_rank"] ** 2), ["q", "rule"])
    return markdown(pd.DataFrame([
        {"q": f"{one['q']:g}", "rule": one["rule"], "lr lambda_P / 2 at the end": f"{one['edge_ratio_p']:.2f}",
         "soft rank": f"{one['soft_rank']:.2f}", "lambda_P soft rank^2":
         f"{one['product']:.2f}", "train loss": f"{one['train_loss']:.2g}"}
        for one in found
    ]))  # fmt: skip


def pattern_table(rows: pd.DataFrame) -> str:
    """E5: a row a depth and rule, a column a width pattern."""
    lines: dict[tuple[Any, Any], dict[str, Any]] = {}
    for one in over_seeds(select(rows, experiment="E5"), ["depth", "width", "q", "rule", "r"]):
        start = {"l": one["depth"], "m": one["width"], "q": f"{one['q']:g}", "rule": one["rule"]}
        line = lines.setdefault((one["depth"], one["rule"]), start)
        lost = f", diverged {one['diverged']}/{one['n']}" if one["diverged"] else ""
        accuracy = "–" if math.isnan(one["train_accuracy"]) else f"{one['train_accuracy']:.2f}"
        line[f"r={one['r']:g}"] = f"{accuracy}{lost}"
    return markdown(pd.DataFrame([lines[at] for at in sorted(lines)]))


def explosion_table(rows: pd.DataFrame) -> str:
    """E1: the learning rates at which trainings diverged, how many of the seeds, and when."""
    lines = []
    for (loss, depth, r), group in select(rows, experiment="E1").groupby(["loss", "depth", "r"], sort=False):
        line: dict[str, Any] = {"loss": loss, "l": depth, "r": f"{r:g}"}
        for rule, part in group.groupby("rule", sort=False):
            texts = []
            for q, trainings in part.groupby("q"):
                stopped = trainings.loc[trainings["status"] == "diverged", "stopped"]
                if len(stopped):
                    low, high = stopped.min(), stopped.max()
                    at = f"step {low}" if low == high else f"steps {low} to {high}"
                    texts.append(f"q={q:g} ({len(stopped)}/{len(trainings)}, {at})")
            line[str(rule)] = ", ".join(texts) or "never"
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def maps(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """The grid's cells for a figure: the median over seeds of one number, and how many seeds diverged."""
    cells = []
    for one in over_seeds(select(rows, experiment="grid"), ["r", "rule", "depth", "q"]):
        lost = f"× {one['diverged']}/{one['n']}" if one["diverged"] else ""
        number = "" if math.isnan(one[value]) else f"{one[value]:.2f}"
        panel = f"{PATTERNS[int(one['r'])]} widths, {one['rule']}"
        cells.append({"panel": panel, "x": f"{one['q']:g}", "y": f"{one['depth']}", "value": one[value],
                      "note": "  ".join(t for t in (number, lost) if t)})  # fmt: skip
    return pd.DataFrame(cells)
