"""Axes: compute and other logarithmic ones with readable ticks, and things side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qfl_interp.plots.theme import FONT_SIZE


def log_flops_axis(low: float, high: float, title: str = "training compute (FLOPs, nominal)") -> dict[str, Any]:
    """A logarithmic compute axis from `low` to `high` FLOPs, with a little room, ticks at powers of ten."""
    start, stop = math.log10(low), math.log10(high)
    room = max(0.015 * (stop - start), 0.02)
    return {
        "type": "log",
        "title": {"text": title},
        "range": [start - room, stop + room],
        "exponentformat": "power",
        "hoverformat": ".2e",
        "dtick": 1 if stop - start > 1.2 else "D2",
        "minor": {"dtick": "D1", "ticks": "outside", "ticklen": 2},
        # plotly.js draws 10ⁿ a quarter larger than asked.
        "tickfont": {"size": FONT_SIZE - 2},
    }


def budget_axis(low: float, high: float, title: str = "") -> dict[str, Any]:
    """A compute axis of a small panel, whose ticks stand at every power of ten, or at every other one."""
    return log_flops_axis(low, high, title) | {"dtick": 1 if math.log10(high / low) < 5 else 2}


def log_axis(low: float, high: float, *, few_beyond: float = math.inf) -> dict[str, Any]:
    """A logarithmic axis of values from `low` to `high`, as fields of a y axis.

    Args:
        low: Lowest value, above 0.
        high: Highest value.
        few_beyond: Decades from which on a small panel has few ticks, powers of ten.
    """
    decades = math.log10(high / low)
    axis: dict[str, Any] = {"type": "log", "range": [math.log10(low), math.log10(high)]}
    if decades > few_beyond:
        # plotly.js draws 10ⁿ a quarter larger than asked.
        power = {"exponentformat": "power", "tickfont": {"size": FONT_SIZE - 4}}
        return axis | power | {"dtick": math.ceil(0.75 * decades / few_beyond - 1e-9)}
    ticks, texts = log_ticks(low, high)
    return axis | {"tickvals": ticks, "ticktext": texts}


def log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round values inside [low, high] for the ticks of a log axis, and their texts."""
    decades = math.log10(high / low)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if decades >= 0.9:
        stride = math.ceil(decades / 5)
        factors = (1,) if decades > 2.8 else (1, 2, 5) if decades < 1.5 else (1, 3)
        values = [factor * 10.0**exponent for exponent in exponents if exponent % stride == 0 for factor in factors]
    else:
        rough = (high - low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        spacing = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
        values = [spacing * k for k in range(math.ceil(low / spacing), math.floor(high / spacing) + 1)]
    values = [float(f"{value:.3g}") for value in values if low <= value <= high]
    return values, [f"{value:g}" for value in values]


def names_axis(names: Sequence[str]) -> dict[str, Any]:
    """An axis of things side by side at 0, 1, ..., with their names."""
    places = {"range": [-0.5, len(names) - 0.5], "tickvals": list(range(len(names)))}
    return {**places, "ticktext": list(names), "showgrid": False}
