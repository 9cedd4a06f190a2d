"""What the patches of a checkpoint say, as sentences: where what decides the answer stands, and which head moves it."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import pandas as pd

from qfl_interp.analyses.lenses.patch.pairs import HEADS
from qfl_interp.report.page import Finding
from qfl_interp.tables import groups, records, select

_VALUE: Final = "logit_diff_normalised"
# A place holds what decides the answer where its patch restores more than this.
_HALF: Final = 0.5
# A head that stands out restores more than this.
_QUARTER: Final = 0.25


class _Held(NamedTuple):
    """The position whose patch restores most before a block, and the control: the best of the other positions."""

    layer: int
    position: int
    value: float
    low: float
    high: float
    other: float
    other_high: float

    @property
    def alone(self) -> bool:
        """Whether this one place restores most of the answer, and more than any other."""
        return self.low > _HALF and self.low > self.other_high

    def __str__(self) -> str:
        return (
            f"before block {self.layer} the clean activation at position {self.position} alone restores "
            f"{_interval(self)} of the answer, any other at most {self.other:.2f}"
        )


def findings(rows: pd.DataFrame) -> list[Finding]:
    """Two findings a feature and label: the way through the residual stream, and the head that matters most.

    Of the last step. A claim is made where intervals bear it: a position holds the answer where the patch's 95 %
    interval lies above half of what there is to restore and above that of any other position of the layer; a head
    stands out where its interval lies above a quarter and above every other head's. Otherwise the numbers are told
    without the claim.

    Args:
        rows: Table "patch"; rows of the components "resid_pre" and "heads" are read.
    """
    found = []
    for feature, own in groups(rows, "feature"):
        for label, part in groups(own, "label"):
            last = select(part, step=part["step"].max()).dropna(subset=[_VALUE])
            name = f"{feature} {label}"
            stream = [_held(of) for _, of in groups(select(last, component="resid_pre"), "layer") if len(of) > 1]
            if stream:
                found.append(Finding(f"{name}, patched", *_way(stream)))
            heads = records(select(last, component=HEADS).sort_values(_VALUE, ascending=False, kind="stable"))
            if len(heads) > 1:
                found.append(Finding(f"{name}, heads patched", *_head(heads[0], heads[1])))
    return found


def _held(rows: pd.DataFrame) -> _Held:
    """Of one layer."""
    best, *others = records(rows.sort_values(_VALUE, ascending=False, kind="stable"))
    ends = (float(best[f"logit_diff_{end}"]) for end in ("low", "high"))
    other = max(float(row["logit_diff_high"]) for row in others)
    return _Held(int(best["layer"]), int(best["position"]), float(best[_VALUE]), *ends, float(others[0][_VALUE]), other)


def _way(stream: list[_Held]) -> tuple[str, str]:
    """Verdict and sentence on the residual stream, layer by layer."""
    held = [one for one in stream if one.alone]
    if not held:
        best = max(stream, key=lambda one: one.value)
        return "spread", f"no position of the residual stream alone restores most of the answer: {best}"
    first, last = held[0], held[-1]
    if len({one.position for one in held}) == 1:
        return "stays", f"{first}; {last}"
    there = next(one for one in held if one.position != first.position)
    leaving = max((one for one in held if one.layer < there.layer), key=lambda one: one.layer)
    final = there.layer - 1
    where = f"block {final}" if final == leaving.layer else f"blocks {leaving.layer} to {final}"
    return "moves", f"{leaving}; {there}. So it moves in {where}"


def _head(best: dict[str, Any], second: dict[str, Any]) -> tuple[str, str]:
    """Verdict and sentence on single heads."""
    one, other = (f"L{row['layer']}H{row['head']}" for row in (best, second))
    value = _interval(_Ends(best[_VALUE], best["logit_diff_low"], best["logit_diff_high"]))
    text = f"the clean output of head {one} alone, at every position, restores {value} of the answer"
    if float(best["logit_diff_low"]) > max(_QUARTER, float(second["logit_diff_high"])):
        return "one head", f"{text}, of any other head at most {second[_VALUE]:.2f} ({other})"
    return "no one head", f"{text}, that of {other} {second[_VALUE]:.2f}"


class _Ends(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


def _interval(one: _Held | _Ends) -> str:
    """A value with its 95 % interval, where there is one."""
    if math.isnan(one.low):
        return f"{one.value:.2f}"
    return f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})".replace("-", "−")
