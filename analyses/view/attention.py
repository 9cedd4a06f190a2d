"""Attention patterns of one example: every layer and head as small maps, or one head large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from qfl_interp.plots.grid import Grid
from qfl_interp.plots.maps import BARE, axis_title, color_axis
from qfl_interp.plots.slider import heading
from qfl_interp.plots.theme import DIVERGING, FONT_SIZE, PAPER_WIDTH, new_figure, short, visible

_LARGE: Final = 480
_MAPS: Final = "layer.head: the token of a row looks at those of the columns"
_MOST_COLUMNS: Final = 8
# Pixels between two small maps, and above each.
_GAP: Final = 12
_HEAD: Final = 24
# Letters of a token on an axis of the large map, and how many tokens it can name.
_LONGEST: Final = 8
_MOST_NAMED: Final = 64
_HOVER: Final = "“%{y}” looks at “%{x}”<br><b>%{z:.3f}</b><extra>%{fullData.name}</extra>"


def attention_figure(
    patterns: Float[np.ndarray, "layer head query key"],
    tokens: Sequence[str],
    title: str,
    layer: int | None = None,
    head: int | None = None,
    *,
    first: int = 0,
) -> go.Figure:
    """How much each place (rows, from the top) looks at each (columns).

    Colours go from 0 to 1, at every step; of patterns that are no shares, as those of linear attention, around 0 as far
    as they reach.

    Args:
        patterns: Of one example.
        tokens: What stands at each place.
        title: In bold above it; made safe before.
        layer: Only this one's heads; None for all, a row a layer.
        head: Only this one of the layer, large, with the tokens on both axes.
        first: The position of the first token.
    """
    layers = range(patterns.shape[0]) if layer is None else [layer]
    heads = range(patterns.shape[1]) if layer is None or head is None else [head]
    chosen = [(at, number) for at in layers for number in heads]
    shown = np.stack([patterns[one] for one in chosen])
    shares = bool(shown.min() >= -1e-6 and shown.max() <= 1 + 1e-4)
    end = 1.0 if shares else max(float(np.abs(shown).max()), 1e-9)
    large = len(chosen) == 1
    columns = min(len(heads), _MOST_COLUMNS)
    # Of a square map, as wide as there is room.
    side = _LARGE if large else max(min((PAPER_WIDTH - 40) // columns - _GAP, 190), 60)
    margin = {"l": 74, "r": 12, "t": 112, "b": 74} if large else {"l": 20, "r": 12, "t": 112, "b": 20}
    gap = _GAP / (PAPER_WIDTH - margin["l"] - margin["r"])
    grid = Grid([side], len(chosen), columns, gap=gap, foot=_HEAD)
    figure = new_figure("attention", grid.height, margin)
    what, low, scale = ("attention", 0.0, "Blues") if shares else ("score (no softmax)", -end, DIVERGING)
    figure.update_layout(
        coloraxis=color_axis(what, low, end, scale=scale, span=(0.55, 1.0), nticks=5, ypad=26),
        annotations=[heading(f"<b>{title}</b>" + ("" if large else f"<br>{_MAPS}"), 82 if large else 74)],
    )
    # Each place has a name of its own, so that a hover text needs no texts cell by cell.
    names = [f"{first + place}: {visible(token)}" for place, token in enumerate(tokens)]
    later = np.triu(np.ones((len(names), len(names)), dtype=bool), k=1)  # what is later is not seen
    for index, (at, number) in enumerate(chosen):
        cell = grid.cell(index)
        values = short(np.where(later, np.nan, shown[index]))
        look = {"coloraxis": "coloraxis", "hovertemplate": _HOVER, "hoverongaps": False, **cell.axes}
        figure.add_heatmap(x=names, y=names, z=values, name=f"layer {at}, head {number}", **look)
        figure.update_layout(cell.layout(*_axes(names, tokens, large=large)))
        figure.add_annotation(cell.title(f"layer {at}, head {number}" if large else f"<b>{at}.{number}</b>", 0))
    if large:
        figure.add_annotation(axis_title("token that is looked at", 0, 44))
    return figure


def _cut(token: str) -> str:
    """A token as an axis has room for it."""
    return token if len(token) <= _LONGEST else f"{token[: _LONGEST - 1]}…"


def _axes(names: Sequence[str], tokens: Sequence[str], *, large: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both axes of a map; the large one names the tokens."""
    shared = {**BARE, "type": "category"}
    if not large:
        bare = shared | {"showticklabels": False, "ticks": "", "title": {"text": ""}}
        return bare, bare | {"autorange": "reversed"}
    stride = math.ceil(len(names) / _MOST_NAMED)
    texts = [visible(_cut(token)) for token in tokens[::stride]]
    size = FONT_SIZE - 3 if len(texts) > 40 else FONT_SIZE
    look = shared | {
        "title": {"text": ""},
        "tickvals": list(names[::stride]),
        "ticktext": texts,
        "tickfont": {"size": size},
        "tickangle": 0,
    }
    lengths = sorted(min(len(token), _LONGEST) for token in tokens[::stride])
    upright = {} if lengths[len(lengths) // 2] <= 2 else {"tickangle": -60}
    return (
        look | upright,
        look | {"title": {"text": "token that looks"}, "autorange": "reversed"},
    )
