"""What a finished figure gets: the line that says whose it is; and for paper, no controls."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import plotly.graph_objects as go

from qfl_interp.plots.text import line_height, n_lines, wrapped
from qfl_interp.plots.theme import FONT_SIZE, PAPER_WIDTH, grow, is_narrow, page_width, text_at

FigureT = TypeVar("FigureT", bound=go.Figure)

_SIZE: Final = FONT_SIZE - 1
_PAD: Final = 6
# Plotly's toolbar stands at the top right, and is so wide and high at most.
_TOOLBAR: Final = (200, 30)
# Of what is drawn above a slider's pad, paper keeps all but this.
_SLIDER_PAD: Final = 12
# Of a figure that says nothing: plotly's.
_MARGIN: Final = {"l": 80, "r": 80, "t": 100, "b": 80}


def name_figure(figure: FigureT, text: str) -> FigureT:
    """The figure with a line above all else that says whose it is; beside the line there is room for the toolbar.

    Args:
        figure: In the house style (`new_figure`); it is changed.
        text: Task, length, seed and run; plotly's HTML subset.
    """
    layout: Any = figure.layout
    margin = _MARGIN | {name: value for name, value in layout.margin.to_plotly_json().items() if value is not None}
    room = page_width() - 2 * _PAD if is_narrow() else PAPER_WIDTH - _TOOLBAR[0] - _PAD
    lines = wrapped(text, room, _SIZE)
    strip = max(round(line_height(_SIZE) * n_lines(lines)) + _PAD, 0 if is_narrow() else _TOOLBAR[1])
    place = {"yanchor": "top", "xshift": _PAD - margin["l"], "yshift": margin["t"] + strip - _PAD, "align": "left"}
    line = text_at(lines, name="run", font={"size": _SIZE}, **place)
    figure.update_layout(margin=margin)
    grow(figure, above=strip)
    figure.add_annotation(line)
    for frame in figure.frames:
        # A frame with texts has all of them.
        if frame.layout.annotations:
            frame.layout.annotations = (*frame.layout.annotations, line)
    return figure


def printed(figure: go.Figure) -> go.Figure:
    """A copy of the figure for paper: without its slider and buttons, which need a screen."""
    layout = figure.layout.to_plotly_json()
    sliders = layout.pop("sliders", [])
    layout.pop("updatemenus", None)
    copy = go.Figure(figure.data, layout)
    if sliders:
        # A slider stands `pad.t` below the plot area.
        grow(copy, sliders[0]["pad"]["t"] - _SLIDER_PAD - layout["margin"]["b"])
    return copy
