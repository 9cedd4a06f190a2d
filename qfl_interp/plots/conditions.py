"""How the conditions of an intervention look, and their curves over training with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.lines import STEP, curve, over_training
from qfl_interp.plots.theme import GREY, PURPLE, STEEL, VERMILLION, SeriesStyle
from qfl_interp.tables import distinct, select

# In the order they stand side by side. Controls are hatched, dashed and have their own symbols.
ABLATION: Final = {
    "intact": SeriesStyle("intact", STEEL, "circle"),
    "ablated": SeriesStyle("feature removed", VERMILLION, "diamond"),
    "random": SeriesStyle("random directions", GREY, "square", "/", "dash"),
    "random_feature": SeriesStyle("another feature", "#029E73", "triangle-up", "x", "dashdot"),
    "same_norm": SeriesStyle("same size", PURPLE, "triangle-down", "\\", "dot"),
}
INTERCHANGE: Final = {
    "none": SeriesStyle("nothing swapped", STEEL, "circle"),
    "feature": SeriesStyle("probe's directions", VERMILLION, "diamond"),
    "mean_shift": SeriesStyle("class means' difference", PURPLE, "triangle-down"),
    "random": SeriesStyle("random directions", GREY, "square", dash="dash"),
    "whole": SeriesStyle("whole activation", "#029E73", "triangle-up", dash="dot"),
}


def present(rows: pd.DataFrame, known: Mapping[str, SeriesStyle]) -> list[str]:
    """The conditions that the rows have, in the order they are drawn.

    Raises:
        ValueError: The rows have a condition that is not known.
    """
    found = distinct(rows, "condition")
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ValueError(
            f"condition must be one of {list(known)}, got {unknown[0]!r} in column 'condition'. "
            "Leave its rows out, or give it a look in qfl_interp/plots/conditions.py."
        )
    return [name for name in known if name in found]


def curves(rows: pd.DataFrame, known: Mapping[str, SeriesStyle], name: str, group: str) -> tuple[go.Scatter, ...]:
    """One curve a condition over training, its intervals as whiskers; a single step is a point.

    Args:
        rows: One row a step and condition; rows of step 0 are left out.
        known: The looks.
        name: A column of fractions with its ends in `name`_low and `name`_high.
        group: What tells these curves from those of other lenses when a legend entry is clicked.
    """
    traces = []
    for condition in present(rows, known):
        style = known[condition]
        hover = f"%{{y:.1%}} (95 % %{{customdata[1]:.1%}} to %{{customdata[2]:.1%}}) · {STEP}"
        look: dict[str, Any] = {"width": 1.8, "dash": style.dash, "size": 5.5, "symbol": style.symbol}
        beside = ("step", f"{name}_low", f"{name}_high")
        look |= {"interval": (1, 0), "beside": beside, "legendgroup": f"{group}: {condition}"}
        drawn = over_training(select(rows, condition=condition))
        traces.append(curve(drawn, name, style.name, style.color, hover=hover, **look))
    return tuple(traces)
