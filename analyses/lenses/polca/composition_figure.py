"""What the tokens of each cluster of a POLCA direction have in common: shares of labels, beside those of all tokens."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.lenses.polca.clusters import Cluster, cut, drawn_clusters, telling
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.theme import FONT_SIZE, PAPER_WIDTH, format_p, new_figure, visible, words
from qfl_interp.tables import column, distinct, groups, records, select

_ALPHA: Final = 0.05
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
    across, blocks = min(len(found), _COLUMNS), math.ceil(len(found) / _COLUMNS)
    width, inner = (PAPER_WIDTH - side - _RIGHT - _GAP * (across - 1)) / across, _ROW * len(places)
    block = _HEAD + inner + _FOOT
    figure = new_figure("polca_composition", _TOP + blocks * block)
    widest = float(np.nanmax(rows[["share", "share_all"]].to_numpy(dtype=float)))
    for number, one in enumerate(found):
        down, place = divmod(number, _COLUMNS)
        left, top = side + place * (width + _GAP), down * block + _HEAD
        x_domain = (left / PAPER_WIDTH, (left + width) / PAPER_WIDTH)
        y_domain = (1 - (top + inner) / (blocks * block), 1 - top / (blocks * block))
        suffix = "" if number == 0 else str(number + 1)
        figure.update_layout(_axes(suffix, (x_domain, y_domain), places, widest, first=place == 0))
        _add_bars(figure, suffix, one, select(rows, cluster=one.row["cluster"]), places)
        figure.add_annotation(**_heading(one, suffix, width))
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": _TOP, "b": 0},
        barmode="overlay",
        showlegend=False,
    )
    text = f"<b>Direction {chosen}</b>  grey: all tokens; bold: over-represented (p < 0.05, Holm), how many times"
    figure.add_annotation(text=text, xref="paper", yref="paper", x=0.01, y=1, xanchor="left", yanchor="bottom")
    return figure


def _places(rows: pd.DataFrame) -> _Rows:
    """The rows of the panels: below each label's heading its values, in the table's order."""
    keys: list[tuple[str, str]] = []
    for label, part in groups(rows, "label"):
        off = {value: _farthest(of_value) for value, of_value in groups(part, "value")}
        shown = sorted(off, key=lambda value: -off[value])[:_MOST_VALUES]
        keys += [(label, ""), *((label, value) for value in distinct(part, "value") if value in shown)]
    return {key: number for number, key in enumerate(keys)}


def _farthest(rows: pd.DataFrame) -> float:
    """How far a value's share in any cluster is from that among all tokens."""
    return float(np.nan_to_num(np.abs(column(rows, "share") - column(rows, "share_all"))).max())


def _axes(
    suffix: str, domains: tuple[tuple[float, float], tuple[float, float]], places: _Rows, widest: float, *, first: bool
) -> dict[str, Any]:
    """Both axes of a cluster's panel; the leftmost one has the labels."""
    texts = [visible(cut(value, _LONGEST_TEXT)) if value else f"<b>{words(label)}</b>" for label, value in places]
    x_axis = {
        "domain": domains[0],
        "anchor": f"y{suffix}",
        "range": [0, widest / _LONGEST],
        "tickvals": [tick for tick in (0, 0.25, 0.5, 0.75, 1) if tick <= 1.2 * widest],
        "tickformat": ".0%",
        "tickfont": {"size": FONT_SIZE - 2},
        "title": {"text": "share of tokens", "standoff": 6},
        "fixedrange": True,
    }
    y_axis = {
        "domain": domains[1],
        "anchor": f"x{suffix}",
        "range": [len(places) - 0.5, -0.5],
        "tickvals": list(places.values()),
        "ticktext": texts if first else [""] * len(texts),
        "ticks": "",
        "showgrid": False,
        "fixedrange": True,
    }
    return {f"xaxis{suffix}": x_axis, f"yaxis{suffix}": y_axis}


def _add_bars(figure: go.Figure, suffix: str, one: Cluster, rows: pd.DataFrame, places: _Rows) -> None:
    """The bars of one cluster and their numbers."""
    drawn = [row for row in records(rows) if (row["label"], row["value"]) in places]
    y = [places[row["label"], row["value"]] for row in drawn]
    shares, of_all = ([row[name] for row in drawn] for name in ("share", "share_all"))
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    bar: dict[str, Any] = {"y": y, "orientation": "h", **axes}
    figure.add_bar(
        **bar, x=of_all, width=0.84, marker=_ALL_LOOK, name="all tokens", hoverinfo="skip",
    )  # fmt: skip
    figure.add_bar(
        **bar,
        x=shares,
        width=0.46,
        marker={"color": one.color, "line": {"width": 0}},
        name=one.name,
        hovertext=[_hover(row) for row in drawn],
        hovertemplate=f"%{{hovertext}}<extra>{one.name}</extra>",
    )
    figure.add_scatter(
        x=[np.nanmax([row["share"], row["share_all"]]) for row in drawn],
        y=y,
        text=[f"\u2009{_number(row)}" for row in drawn],
        mode="text",
        textposition="middle right",
        textfont={"size": FONT_SIZE - 2},
        name=f"{one.name}, shares",
        hoverinfo="skip",
        **axes,
    )


def _heading(one: Cluster, suffix: str, width: float) -> dict[str, Any]:
    """A cluster's name, size and verdict above its panel, as an annotation."""
    size = f"{int(one.row['n_tokens']):,} tokens" + (f", {one.verdict}" if one.verdict else "")
    name = one.short(round(width / _LETTER_WIDTH))
    place = {"xref": f"x{suffix} domain", "yref": f"y{suffix} domain", "x": 0, "y": 1, "xanchor": "left"}
    text = f'<b><span style="color:{one.color}">{name}</span></b><br>{size}'
    return {"text": text, "align": "left", "yanchor": "bottom", **place}


def _number(row: dict[str, Any]) -> str:
    """A share in percent; bold and with its lift where it is over-represented."""
    share = f"{row['share']:.0%}"
    return f"<b>{share} (×{row['lift']:.2g})</b>" if row["p_value_holm"] < _ALPHA else share


def _hover(row: dict[str, Any]) -> str:
    """All that is known of a value in a cluster."""
    p_value = format_p(row["p_value_holm"])
    tested = f", {p_value} (Holm)" if p_value else ""
    return (
        f"<b>{words(row['label'])}: {visible(row['value'])}</b><br>{row['share']:.1%} of the cluster, "
        f"{row['share_all']:.1%} of all tokens<br>{row['lift']:.2f} times as common{tested}"
    )
