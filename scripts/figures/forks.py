"""Validation loss over compute of parents and their forks, a panel a seed."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qfl_interp.plots.theme import PURPLE, STEEL, VERMILLION

_LOOKS = {
    "parent": ("#222222", "nothing taken out"), "random": (STEEL, "as many random directions"),
    "first_operand": (PURPLE, "first operand"), "carry": (VERMILLION, "carry"),
}  # fmt: skip


def forks_figure(curves: pd.DataFrame) -> go.Figure:
    """`curves` has columns seed, condition, flops and val_loss."""
    seeds = sorted(curves["seed"].unique())
    titles = [f"seed {seed}" for seed in seeds]
    figure = make_subplots(rows=1, cols=len(seeds), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    for place, seed in enumerate(seeds, 1):
        for name, (color, text) in _LOOKS.items():
            rows = curves[(curves["seed"] == seed) & (curves["condition"] == name) & (curves["flops"] > 0)]
            line = go.Scatter(
                x=rows["flops"], y=rows["val_loss"], name=text, legendgroup=name, showlegend=place == 1,
                mode="lines", line={"color": color, "width": 2},
            )  # fmt: skip
            figure.add_trace(line, row=1, col=place)
        figure.update_xaxes(type="log", title="training FLOPs", row=1, col=place)
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_xaxes(exponentformat="power", dtick=1)
    figure.update_yaxes(title="validation loss (nats)", row=1, col=1)
    figure.update_layout(
        template="plotly_white", height=360, margin={"l": 60, "r": 15, "t": 70, "b": 50},
        title={"text": "16-bit addition, trained with a feature's directions taken out at every block", "y": 0.97},
        legend={"orientation": "h", "y": -0.22},
    )  # fmt: skip
    return figure
