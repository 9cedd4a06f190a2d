"""Whether the model needs what was taken out, as sentences, with the caveat of labels that are the next token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from qfl_interp.analyses.choose import WITHOUT_NEXT_TOKEN
from qfl_interp.plots.conditions import ABLATION
from qfl_interp.report.page import Finding
from qfl_interp.tables import groups, records

_SIGNIFICANT: Final = 0.05
# "Not needed" wants the interval of exact match to lie above the intact model's less this.
_MARGIN: Final = 0.01


def findings(rows: pd.DataFrame, given: Mapping[str, Sequence[int]]) -> list[Finding]:
    """One finding a feature. It is needed where the ablated model is worse than under every control (Holm).

    It is not needed where, beside controls, the ablated model provably gets about as many answers right as the intact
    one: the lower end of the 95 % interval is at most a hundredth below, of 300 examples or more. Whatever lies between
    is not shown. Where the very next token gives some of its labels away, the rows without these labels decide.

    Args:
        rows: Table "ablate", of one step.
        given: The labels that the very next token gives away, by feature.
    """
    tables = {str(name): {row["condition"]: row for row in records(part)} for name, part in groups(rows, "feature")}
    found = []
    for name, table in tables.items():
        if name.endswith(WITHOUT_NEXT_TOKEN):
            continue
        rest = tables.get(name + WITHOUT_NEXT_TOKEN)
        labels = given.get(name, ())
        sentence = f"without what the model writes of it, {_scores(table)}"
        if rest is not None:
            listed = ", ".join(map(str, labels))
            sentence += f". The very next token gives label {listed} away; with the others alone out, {_scores(rest)}"
        elif labels:
            sentence += ". The very next token gives every label of it away"
        decides = rest if rest is not None else table
        needed = _needed(decides) and (rest is not None or not labels)
        verdict = "needed" if needed else "next token only" if labels and _needed(table) else _otherwise(decides)
        found.append(Finding(f"{name}, taken out", verdict, sentence))
    return found


def _needed(table: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the ablated model is worse than under each of the controls there are."""
    controls = [row for name, row in table.items() if name not in ("intact", "ablated")]
    return bool(controls) and all(row["difference"] < 0 and row["p_value_holm"] < _SIGNIFICANT for row in controls)


def _otherwise(table: Mapping[str, Mapping[str, Any]]) -> str:
    """What is said where the feature is not shown to be needed."""
    least = float(table["intact"]["exact_answer"]) - _MARGIN
    ablated = table["ablated"]
    # Without a wrong answer the bootstrap has no width: 95 % then exclude 3 wrong ones in all (the rule of three).
    enough = float(ablated["n_examples"]) * _MARGIN >= 3
    kept = float(ablated["exact_answer_low"]) >= least  # never of NaN
    return "not needed there" if len(table) > 2 and enough and kept else "not shown"


def _scores(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The ablated model's score beside the controls'; the loss, of a task without exact match."""
    real = math.isnan(float(table["intact"]["exact_answer"]))
    column, what = ("loss_answer", "the loss") if real else ("exact_answer", "exact match")
    controls = [name for name in table if name not in ("intact", "ablated")]
    beside = ", ".join(f"{ABLATION[name].name} {table[name][column]:.3f}" for name in controls)
    return f"{what} is {table['ablated'][column]:.3f} ({beside})"
