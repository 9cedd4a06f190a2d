"""Axes: how far training was, other logarithmic ones with readable ticks, and things side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from qfl_interp.plots.text import line_height, n_lines, text_width, wrapped
from qfl_interp.plots.theme import FONT_SIZE, format_power
from qfl_interp.tables import column


class TrainingAxis(NamedTuple):
    """What says how far training was.

    Attributes:
        column: Of tables, and what the names of columns with a place on this axis end in (`onset_flops`).
        title: Of the axis.
        unit: Behind a number.
        words: What one goes along; "decades of compute".
    """

    column: str
    title: str
    unit: str
    words: str

    def text(self, value: float) -> str:
        """A place on this axis as a person reads it."""
        return f"{value:,.0f} {self.unit}" if self.column == "step" else f"{format_power(value)} {self.unit}"

    def stretch(self, start: float, end: float) -> str:
        """From one place to another."""
        return f"{self.text(start).removesuffix(f' {self.unit}')} – {self.text(end)}"


FLOPS: Final = TrainingAxis("flops", "training compute (FLOPs, nominal)", "FLOPs", "compute")
TOKENS: Final = TrainingAxis("tokens", "training tokens", "tokens", "tokens")
STEPS: Final = TrainingAxis("step", "training step", "steps", "steps")
# The first of these that is known is what figures are drawn over and leads are measured along.
TRAINING_AXES: Final = (FLOPS, TOKENS, STEPS)


def training_axis(table: pd.DataFrame) -> TrainingAxis:
    """What a table is drawn over: FLOPs where every row's are known, else tokens, else steps.

    Raises:
        ValueError: The table has none of these columns without a gap.
    """
    for axis in TRAINING_AXES:
        if axis.column in table and not np.isnan(column(table, axis.column)).any():
            return axis
    names = [axis.column for axis in TRAINING_AXES]
    raise ValueError(f"a table needs one of the columns {names} without NaN, got {list(table)}.")


def axis_of_columns(table: pd.DataFrame, stem: str) -> TrainingAxis:
    """The axis that a column `stem`_flops, `stem`_tokens or `stem`_step is on; FLOPs where there is none."""
    return next((axis for axis in TRAINING_AXES if f"{stem}_{axis.column}" in table), FLOPS)


def log_training_axis(low: float, high: float, title: str = FLOPS.title) -> dict[str, Any]:
    """A logarithmic axis of FLOPs, tokens or steps from `low` to `high`, with some room, ticks at powers of ten."""
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
        "tickfont": {"size": FONT_SIZE - 3},
    }


def axis_layout(over: TrainingAxis, low: float, high: float) -> dict[str, Any]:
    """The axis of a figure from `low` to `high`; steps are written out."""
    numbers = {"tickformat": ",", "hoverformat": ",.0f", "tickfont": {"size": FONT_SIZE - 2}}
    plain = numbers if over is STEPS else {}
    return log_training_axis(low, high, title=over.title) | plain


def budget_axis(low: float, high: float, title: str = "") -> dict[str, Any]:
    """Such an axis of a small panel, whose ticks stand at every power of ten, or at every other one."""
    return log_training_axis(low, high, title) | {"dtick": 1 if math.log10(high / low) < 5 else 2}


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


def names_below(names: Sequence[str], width: float) -> tuple[dict[str, Any], int]:
    """An axis of things side by side with names of any length below, and the pixels these take beyond one line.

    Names stand in lines that fit, or all upright where one does not.

    Args:
        names: From left to right.
        width: Pixels of the axis.
    """
    # Blanks between two names.
    size, room = FONT_SIZE - 1, width / len(names) - 6
    texts = [wrapped(name, room, size) for name in names]
    upright = any(text_width(text, size) > room for text in texts)
    axis = names_axis(names if upright else texts) | {"tickangle": -90 if upright else 0}
    taken = max(text_width(name, size) for name in names) if upright else line_height(size) * max(map(n_lines, texts))
    return axis, max(round(taken - line_height(size)), 0)


def labels_with_room(widths: Sequence[float], spacing: float, last: Sequence[bool]) -> list[bool]:
    """Which labels to write so that none covers another: in order, as far as they are free.

    Args:
        widths: Pixels of each along the axis.
        spacing: Pixels from the middle of one label to that of the next.
        last: Those that matter less: written where the others leave room.
    """
    middles = spacing * np.arange(len(widths))
    halves = np.asarray(widths, dtype=float) / 2
    shown = np.zeros(len(widths), dtype=bool)
    for number in sorted(range(len(widths)), key=lambda number: (last[number], number)):
        shown[number] = not (shown & (abs(middles - middles[number]) < halves + halves[number])).any()
    return shown.tolist()
