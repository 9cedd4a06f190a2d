"""The verdicts of emergence as sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from qfl_interp.plots.axes import FLOPS, axis_of_columns
from qfl_interp.report.page import Finding
from qfl_interp.tables import groups, records

UNDECIDED: Final = "undecided"
_BEFORE: Final = "before the loss moved"
_AFTER: Final = "after the loss began to fall"


def findings(emergence: pd.DataFrame) -> list[Finding]:
    """One finding a feature, in the table's order.

    A row over all labels decides where there is one; otherwise the thirds are told one by one.

    Args:
        emergence: Table "emergence". May be empty.
    """
    along = axis_of_columns(emergence, "onset").words
    return [_finding(str(feature), records(part), along) for feature, part in groups(emergence, "feature")]


def _finding(feature: str, rows: list[dict[str, Any]], along: str) -> Finding:
    whole = [row for row in rows if row["third"] == "all"]
    rows = whole or rows
    verdicts = {str(row["verdict"]) for row in rows}
    verdict = verdicts.pop() if len(verdicts) == 1 else "mixed"
    if verdict == "no transition":
        reason = str(rows[0]["transition_reason"])
        return Finding(
            feature, verdict, "the loss has no transition to compare with" + (f": {reason}" if reason else "")
        )
    if verdict == "not learned":
        return Finding(feature, verdict, "its probes never stayed below half of the untrained model's loss")
    if whole:
        return Finding(feature, verdict if whole[0]["certain"] else UNDECIDED, timing(whole[0], along))
    parts = [f"{row['third']}: {row['verdict']}, {timing(row, along)}".rstrip(", ") for row in rows]
    if verdict == "mixed":
        return Finding(feature, verdict, "; ".join(parts))
    leads = sorted(abs(float(row["lead_log10"])) for row in rows)
    parts = [f"{row['third']} {abs(float(row['lead_log10'])):.2f} ({_interval(row)})" for row in rows]
    span = f"{leads[0]:.2f} to {leads[-1]:.2f}" if len(leads) > 1 else f"{leads[0]:.2f}"
    side = _BEFORE if verdict == "quiet" else _AFTER
    verdict = verdict if all(row["certain"] for row in rows) else UNDECIDED
    return Finding(feature, verdict, f"learned {span} decades of {along} {side}: {', '.join(parts)}")


def timing(row: Mapping[str, Any], along: str = FLOPS.words) -> str:
    """When a feature was learned relative to the loss; "" where one of the two times is missing.

    Args:
        row: Of table "emergence".
        along: Of what the lead's decades are (`TrainingAxis.words`).
    """
    lead = float(row["lead_log10"])
    if not math.isfinite(lead):
        return ""
    return f"learned {abs(lead):.2f} decades of {along} {_BEFORE if lead > 0 else _AFTER} ({_interval(row)})"


def _interval(row: Mapping[str, Any]) -> str:
    """The range of the distance, in the direction of the lead itself."""
    low, high = float(row["lead_low"]), float(row["lead_high"])
    doubt = "" if row["certain"] else ", uncertain"
    if math.isnan(low) or math.isnan(high):
        return f"no interval{doubt}"
    if float(row["lead_log10"]) <= 0:
        low, high = -high, -low
    span = f"at least {low:.2f}" if math.isinf(high) else f"{low:.2f} to {high:.2f}"
    return f"range {span}{doubt}".replace("-", "−")
