"""What the tokens of each cluster of a POLCA direction have in common: shares of labels, beside those of all tokens."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.analyses.lenses.polca.clusters import Cluster, cut, drawn_clusters, telling
from qfl_interp.plots.grid import Cell, Grid
from qfl_interp.plots.lines import finite
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.text import line_height, n_lines, wrapped
from qfl_interp.plots.theme import FONT_SIZE, format_p, is_narrow, new_figure, page_width, text_at, visible, words
from qfl_interp.polca.naming import SIGNIFICANT
from qfl_interp.tables import column, distinct, groups, records, select

_COLUMNS: Final = 3
_MOST_VALUES: Final = 6
_LETTER_WIDTH: Final = 6.3
# In pixels: a value's row, the labels on the left, what stands above and below a panel, the legend, the gaps.
_ROW: Final = 19
_SIDE: Final = (56, 190)
_HEAD, _FOOT, _TOP, _RIGHT, _GAP = 46, 46, 24, 10, 16
# Letters of a value's text: what fits on the left.
_LONGEST_TEXT: Final = 28
# The longest bar takes this share of a panel; the rest is for the number behind it.
_LONGEST: Final = 0.6
_ALL_LOOK: Final = {"color": "rgba(138, 143, 152, 0.38)", "line": {"width": 0}}

# The height of every value's row, from 0 at the top downwards, by (label, value); a label's heading has value "".
_Rows = dict[tuple[str, str], int]


def composition_figure(composition: pd.DataFrame, clusters: pd.DataFrame, direction: int | None = None) -> go.Figure:
    """The share of each label's values in each cluster of a direction (coloured), and among all tokens (grey).

    Numbers are the cluster's shares; bold ones are over-represented (p < 0.05 after Holm's correction) and say how
    many times. Of a label with more than six values those whose shares differ most from all tokens' are drawn.

    Args:
        composition: Table "polca_composition": direction, cluster, label, value, share, share_all, lift, p_value_holm.
        clusters: Table "polca_clusters".
        direction: Which one; None for the first of `telling`.

    Raises:
        ValueError: A table has no row or several of one key, or the direction has none.
    """
    require_rows(clusters, "polca", (), ("direction", "cluster"))
    chosen = telling(clusters)[0] if direction is None else direction
    found = drawn_clusters(clusters, chosen)
    rows = select(composition, direction=chosen).astype({"label": str, "value": str})
    require_rows(rows, "polca", (), ("cluster", "label", "value"))
    places = _places(rows)
    side = min(max(_LETTER_WIDTH * max(len(text) for key in places for text in key) + 12, _SIDE[0]), _SIDE[1])
    width, columns = page_width(), 1 if is_narrow() else _COLUMNS
    span = (side / width, 1 - _RIGHT / width)
    grid = Grid([_ROW * len(places)], len(found), columns, span=span, gap=_GAP / width, head=_HEAD, foot=_FOOT)
    bold = f"over-represented (p < {SIGNIFICANT}, Holm), how many times"
    title = wrapped(f"<b>Direction {chosen}</b>  grey: all tokens; bold: {bold}", width - 12)
    top = _TOP + round(line_height() * (n_lines(title) - 1))
    figure = new_figure("polca_composition", grid.height, {"l": 0, "r": 0, "t": top, "b": _FOOT})
    figure.update_layout(barmode="overlay", showlegend=False)
    widest = float(finite(rows[["share", "share_all"]]).max())
    for number, one in enumerate(found):
        cell = grid.cell(number)
        figure.update_layout(_axes(cell, places, widest, first=grid.is_first(number)))
        figure.add_traces(_bars(cell, one, select(rows, cluster=one.row["cluster"]), places))
        size = f"{int(one.row['n_tokens']):,} tokens" + (f", {one.verdict}" if one.verdict else "")
        name = one.short(round((cell.x_domain[1] - cell.x_domain[0]) * width / _LETTER_WIDTH))
        text = f'<b><span style="color:{one.color}">{name}</span></b><br>{size}'
        figure.add_annotation(cell.title(text, 0) | {"align": "left"})
    figure.add_annotation(text_at(title, 0.01, align="left"))
    return figure


def _places(rows: pd.DataFrame) -> _Rows:
    """The rows of the panels: below each label's heading its values, in the table's order."""
    keys: list[tuple[str, str]] = []
    # How far a value's share in a cluster is from that among all tokens.
    far = rows.assign(off=np.nan_to_num(np.abs(column(rows, "share") - column(rows, "share_all"))))
    for label, part in groups(far, "label"):
        off = {value: float(column(of_value, "off").max()) for value, of_value in groups(part, "value")}
        shown = sorted(off, key=lambda value: -off[value])[:_MOST_VALUES]
        keys += [(label, ""), *((label, value) for value in distinct(part, "value") if value in shown)]
    return {key: number for number, key in enumerate(keys)}


def _axes(cell: Cell, places: _Rows, widest: float, *, first: bool) -> dict[str, Any]:
    """Both axes of a cluster's panel; the leftmost one has the labels."""
    texts = [visible(cut(value, _LONGEST_TEXT)) if value else f"<b>{words(label)}</b>" for label, value in places]
    x_axis = {
        "range": [0, widest / _LONGEST],
        "tickvals": [tick for tick in (0, 0.25, 0.5, 0.75, 1) if tick <= 1.2 * widest],
        "tickformat": ".0%",
        "tickfont": {"size": FONT_SIZE - 2},
        "title": {"text": "share of tokens", "standoff": 6},
    }
    y_axis = {
        "range": [len(places) - 0.5, -0.5],
        "tickvals": list(places.values()),
        "ticktext": texts if first else [""] * len(texts),
        "ticks": "",
        "showgrid": False,
    }
    return cell.layout(x_axis | {"fixedrange": True}, y_axis | {"fixedrange": True})


def _bars(cell: Cell, one: Cluster, rows: pd.DataFrame, places: _Rows) -> list[Any]:
    """The bars of one cluster over those of all tokens, and their numbers."""
    drawn = [row for row in records(rows) if (row["label"], row["value"]) in places]
    shared = {"y": [places[row["label"], row["value"]] for row in drawn], **cell.axes}
    shares, of_all = ([row[name] for row in drawn] for name in ("share", "share_all"))
    everything = {"x": of_all, "width": 0.84, "marker": _ALL_LOOK, "name": "all tokens", "hoverinfo": "skip"}
    look = {"width": 0.46, "marker": {"color": one.color, "line": {"width": 0}}}
    said = {"hovertext": [_hover(row) for row in drawn], "hovertemplate": f"%{{hovertext}}<extra>{one.name}</extra>"}
    # Bold and with its lift where it is over-represented.
    texts = [
        f"<b>{row['share']:.0%} (×{row['lift']:.2g})</b>"
        if row["p_value_holm"] < SIGNIFICANT
        else f"{row['share']:.0%}"
        for row in drawn
    ]
    numbers = {
        "x": [np.nanmax(pair) for pair in zip(shares, of_all, strict=True)],
        "text": [f"\u2009{text}" for text in texts],
        "mode": "text",
        "textposition": "middle right",
        "textfont": {"size": FONT_SIZE - 2},
        "name": f"{one.name}, shares",
        "hoverinfo": "skip",
    }
    return [
        go.Bar(shared | everything | {"orientation": "h"}),
        go.Bar(shared | {"x": shares, "name": one.name, "orientation": "h"} | look | said),
        go.Scatter(shared | numbers),
    ]


def _hover(row: dict[str, Any]) -> str:
    """All that is known of a value in a cluster."""
    p_value = format_p(row["p_value_holm"])
    tested = f", {p_value} (Holm)" if p_value else ""
    return (
        f"<b>{words(row['label'])}: {visible(row['value'])}</b><br>{row['share']:.1%} of the cluster, "
        f"{row['share_all']:.1%} of all tokens<br>{row['lift']:.2f} times as common{tested}"
    )
