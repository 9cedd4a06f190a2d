"""How well a feature can be told from projected losses over compute, beside what shuffled labels reach."""

from __future__ import annotations

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, over_compute
from qfl_interp.plots.theme import GREY, PURPLE, STEEL, VERMILLION
from qfl_interp.tables import column, distinct, select

# Colours in the order of the curves.
_COLORS: Final = (VERMILLION, PURPLE, STEEL, GREY)


def recovery_panel(rows: pd.DataFrame, feature: str) -> Panel:
    """Correlation with a feature over compute, one line a way to tell it; dotted, what is reached by chance.

    Args:
        rows: way, step, flops, score, chance; one row a way (at most four) and step.
        feature: What is told.

    Raises:
        ValueError: There is no row, several of one way and step, none above 0 FLOPs, or more than four ways.
    """
    require_rows(rows, "recovery", (), ("way", "step"))
    ways = distinct(rows, "way")
    if len(ways) > len(_COLORS):
        raise ValueError(f"a panel shows at most {len(_COLORS)} ways, got {ways}.")
    traces = []
    for way, color in zip(ways, _COLORS, strict=False):
        drawn = over_compute(select(rows, way=way))
        shared = {"x": column(drawn, "flops"), "mode": "lines", "legendgroup": f"recovery: {way}"}
        text = f"%{{y:.2f}}<extra>{way}</extra>"
        traces += [
            go.Scatter(
                y=column(drawn, "score"), name=way, line={"color": color, "width": 2.0}, hovertemplate=text, **shared
            ),
            go.Scatter(
                y=column(drawn, "chance"),
                line={"color": color, "width": 1.0, "dash": "dot"},
                showlegend=False,
                hoverinfo="skip",
                **shared,
            ),
        ]
    return Panel(
        title=f"Unsupervised: does POLCA tell {feature}?",
        note="best correlation at each place, mean over the places; dotted: what 95 % of shuffled labels stay below",
        traces=tuple(traces),
        y_title="correlation",
        y_range=(-0.04, 1.04),
        legend=Legend("recovery"),
    )
