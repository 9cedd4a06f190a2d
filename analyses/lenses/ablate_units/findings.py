"""Which heads or neurons the answer needs, as a sentence."""

from __future__ import annotations

import math
from typing import Any, Final

import pandas as pd

from qfl_interp.analyses.lenses.ablate_units.figure import UNITS
from qfl_interp.report.page import Finding
from qfl_interp.tables import groups, records, select

_SIGNIFICANT: Final = 0.05
# A unit is needed where it costs more than this fraction of the answers, beside being told from none.
_ANSWERS: Final = 0.01
_REPLACED: Final = {"mean": "its mean", "zero": "zero", "resample": "its value in another example"}


def findings(rows: pd.DataFrame) -> list[Finding]:
    """One finding a kind of unit and method, of the last step; other units of the step are the control.

    Args:
        rows: Table "ablate_units".
    """
    found = []
    for name, own in groups(rows, "name"):
        for method, part in groups(own, "method"):
            last = select(part, step=part["step"].max()).dropna(subset=["loss_increase"])
            units = records(last.sort_values("loss_increase", ascending=False, kind="stable"))
            if units:
                kind = UNITS.get(str(name), str(name))
                found.append(Finding(f"{kind}, one at a time", *_told(units, str(name), str(method))))
    return found


def _told(units: list[dict[str, Any]], name: str, method: str) -> tuple[str, str]:
    """Verdict and sentence, of units from the largest rise of the loss down."""
    needed, most = [unit for unit in units if _needed(unit)], units[0]
    real = math.isnan(float(most["exact_answer"]))
    costs = "at least double the error" if real else "cost more than one answer in a hundred"
    if not needed:
        return "none shown to be needed", (
            f"none is shown to {costs} when {_REPLACED.get(method, method)} takes its place; "
            f"the most costly, {_named(most, name)}, {_cost(most)}"
        )
    most = needed[0]
    others = ", ".join(_named(unit, name) for unit in needed[1:6])
    more = len(needed) - 6
    others += f" and {more} more" if more > 0 else ""
    return "needed", (
        f"{_named(most, name)}, replaced by {_REPLACED.get(method, method)}, {_cost(most)}. "
        + (f"Of the {len(units) - 1} others {len(needed) - 1} " if others else f"None of the {len(units) - 1} others ")
        + (f"{'are' if len(needed) > 2 else 'is'} shown to {costs} ({others})" if others else f"is shown to {costs}")
    )


def _needed(unit: dict[str, Any]) -> bool:
    """Whether the answer needs it: its rise of the loss is told from none, and counts."""
    told_apart = float(unit["p_value_holm"]) < _SIGNIFICANT and float(unit["loss_increase_low"]) > 0
    lost = float(unit["intact_exact_answer"]) - float(unit["exact_answer"])
    # A real-valued task has no exact match: there the error at least doubles.
    counts = float(unit["loss_increase"]) > float(unit["intact_loss_answer"]) if math.isnan(lost) else lost > _ANSWERS
    return told_apart and counts


def _named(unit: dict[str, Any], name: str) -> str:
    """A head as L1H2, a neuron as L1N20."""
    return f"L{unit['layer']}{'H' if name == 'z' else 'N'}{unit['unit']}"


def _cost(unit: dict[str, Any]) -> str:
    """What the answer loses without it."""
    rise, low, high = (float(unit[f"loss_increase{end}"]) for end in ("", "_low", "_high"))
    text = f"raises the answer's loss by {rise:.2g} ({low:.2g} to {high:.2g})"
    intact, exact = float(unit["intact_exact_answer"]), float(unit["exact_answer"])
    if math.isnan(exact):
        return text
    return f"{text} nats a token and takes exact match from {intact:.3f} to {exact:.3f}".replace("-", "−")
