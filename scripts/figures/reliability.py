"""How faults ended: a bar a kind of file or piece of work, cut into the shares of each verdict."""

from __future__ import annotations

from typing import Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.theme import GREY, PURPLE, STEEL, VERMILLION, new_figure, plain
from qfl_interp.tables import column, records

# Verdicts from good to bad, what each means, and their colours.
VERDICTS: Final = {
    "same": ("the same numbers or bytes", STEEL),
    "named": ("an error that says what is wrong where", "#029E73"),
    "unnamed": ("an error that does not", "#DE8F05"),
    "traceback": ("any other exception", VERMILLION),
    "silent": ("other numbers, no error", PURPLE),
}
_BAR: Final = 19
_BETWEEN: Final = 1
_MARGIN: Final = {"l": 130, "r": 50, "t": 36, "b": 44}


def reliability(rows: pd.DataFrame) -> go.Figure:
    """Stacked bars of the shares of verdicts, a group a kind of fault.

    Args:
        rows: A row a bar: `what`, `kind` (bars of one kind are next to each other), `cases` and a count a verdict.
    """
    places, titles, at = [], [], 0.0
    for before, row in zip([None, *records(rows)], records(rows), strict=False):
        if before is None or before["kind"] != row["kind"]:
            at += _BETWEEN
            titles.append({"text": f"<b>{plain(row['kind'])}</b>", "y": at - 0.1, "x": 0.0})
            at += 0.9
        places.append(at)
        at += 1
    figure = new_figure("reliability", round(at * _BAR), _MARGIN)
    for name, (said, color) in VERDICTS.items():
        share = column(rows, name) / column(rows, "cases")
        figure.add_trace(
            go.Bar(
                x=share,
                y=places,
                orientation="h",
                name=name,
                width=0.78,
                marker={"color": color},
                customdata=column(rows, name),
                hovertemplate=f"%{{customdata}}: {said}<extra></extra>",
            )
        )
    counts = [
        {"text": f"{row['cases']:,}", "xref": "paper", "x": 1.01, "y": place, "font": {"color": GREY}}
        for place, row in zip(places, records(rows), strict=True)
    ]
    for text in [*titles, *counts]:
        figure.add_annotation({"xref": "x", "yref": "y", "xanchor": "left", "yanchor": "middle"} | text)
    figure.update_layout(
        barmode="stack", legend={"orientation": "h", "y": 1, "yanchor": "bottom", "traceorder": "normal"}
    )
    figure.update_xaxes(range=[0, 1], tickformat=".0%", title="share of cases (their number on the right)")
    names = [plain(what) for what in rows["what"]]
    figure.update_yaxes(range=[at, 0.2], tickvals=places, ticktext=names, showgrid=False, ticks="")
    return figure
