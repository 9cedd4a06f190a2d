"""Validation loss over compute of parents and their forks, a panel a seed."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from figures.small_multiples import small_multiples

from qfl_interp.tables import column

_HEIGHT = 240
# What was taken out as the legend says it; the first is drawn in front.
_NAMES = {
    "carry": "carry taken out",
    "parent": "nothing",
    "random": "as many random directions",
    "first_operand": "first operand",
}


def forks_figure(curves: pd.DataFrame) -> go.Figure:
    """`curves` has columns seed, condition, flops and val_loss."""
    order = {name: place for place, name in enumerate(_NAMES)}
    drawn = pd.DataFrame(curves.loc[curves["flops"] > 0])
    drawn = drawn.sort_values(["seed", "condition", "flops"], key=lambda values: values.replace(order), kind="stable")
    names = drawn["condition"].map(_NAMES)
    rows = {"row": "validation loss (nats)", "column": "seed " + drawn["seed"].astype(str), "group": names,
            "curve": names, "x": column(drawn, "flops"), "y": column(drawn, "val_loss")}  # fmt: skip
    how = {"x": "training FLOPs", "filename": "forks", "height": _HEIGHT}
    figure = small_multiples(pd.DataFrame(rows), bands={}, marks={}, **how)
    # Seeds are compared: one scale for all; lines alone, since curves lie on each other.
    return figure.update_yaxes(matches="y").update_traces(mode="lines")
