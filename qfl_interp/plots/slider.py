"""A slider over training steps: what a figure with one picture a checkpoint needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import STEPS, training_axis
from qfl_interp.plots.text import line_height, n_lines, room, wrapped
from qfl_interp.plots.theme import FONT_SIZE, grow, text_at
from qfl_interp.tables import distinct, select

# Pixels below the plot area: what the slider itself takes, and what an axis title with its numbers takes above it.
SLIDER_HEIGHT: Final = 48
AXIS_HEIGHT: Final = 56


def step_title(rows: pd.DataFrame, name: str) -> str:
    """What the figure is of, in bold, with step and compute of the rows' first one."""
    step, axis = int(rows["step"].iloc[0]), training_axis(rows)
    compute = "" if axis is STEPS else f" · {axis.text(float(rows[axis.column].iloc[0]))}"
    return f"<b>{name}</b>  step {step:,}{compute if step else ' · initial model'}"


def heading(title: str, above: int) -> dict[str, Any]:
    """A title `above` pixels over the plot area, as an annotation, which a frame can replace; in lines that fit."""
    return text_at(wrapped(title, room()), font={"size": FONT_SIZE}, yshift=above, align="left")


def heading_height(title: str) -> int:
    """Pixels that a heading takes beyond its first line."""
    return round(line_height() * (n_lines(wrapped(title, room())) - 1))


def over_steps(
    figure: go.Figure,
    rows: pd.DataFrame,
    draw: Callable[[pd.DataFrame], Sequence[Any]],
    *,
    table: str,
    title: str | Callable[[pd.DataFrame], str],
    above: int,
    step: int | None = None,
    layout: Callable[[pd.DataFrame], dict[str, Any]] | None = None,
    slider: bool = True,
) -> go.Figure:
    """The figure with one step of a table, under a heading with step and compute; of several steps, with a slider.

    Only what differs between steps becomes part of a frame.

    Args:
        figure: With its axes, its margin, the texts and traces that stay. It grows by the height of the slider.
        rows: At any number of steps.
        draw: The traces of one step's rows, or their fields; as many at every step, and of the same kinds.
        table: The table's name, for errors.
        title: What the figure is of, or how the whole heading is made from one step's rows.
        above: Pixels from the plot area to the heading.
        step: The step shown first; None for the last.
        layout: Further changes of the layout that a step's rows bring.
        slider: Whether the other steps are drawn too; without it they only have their part in scales and ranges.

    Raises:
        ValueError: The rows do not have the step.
    """
    steps = sorted(int(at) for at in distinct(rows, "step"))
    first = steps[-1] if step is None else step
    if first not in steps:
        raise ValueError(
            f"the step shown first must be in the {table} table, got {first}, which is not among {steps}. "
            "Choose one of them, or run the analysis at this step."
        )
    texts = list(figure.layout["annotations"])
    drawn: dict[int, list[dict[str, Any]]] = {}
    layouts: dict[int, dict[str, Any]] = {}
    more = 0
    if not slider:
        steps = [first]
    for at in steps:
        part = select(rows, step=at)
        text = step_title(part, title) if isinstance(title, str) else title(part)
        more = max(more, heading_height(text))
        layouts[at] = {**(layout(part) if layout else {}), "annotations": [heading(text, above), *texts]}
        drawn[at] = [trace if isinstance(trace, dict) else trace.to_plotly_json() for trace in draw(part)]
    grow(figure, above=more)
    moving = [_differing(traces) for traces in zip(*drawn.values(), strict=True)]
    numbers = [number for number, names in enumerate(moving) if names]
    traces: Any = figure.data
    already = len(traces)
    figure.add_traces(drawn[first])
    # Texts would be merged into those that are there.
    figure.layout["annotations"] = ()
    figure.update_layout(layouts[first])
    if len(steps) == 1:
        return figure
    # As dictionaries: plotly checks and copies each frame once when it takes them, and a `go.Frame` twice.
    figure.frames = [
        {
            "name": str(at),
            "data": [{name: drawn[at][number].get(name) for name in ("type", *moving[number])} for number in numbers],
            "traces": [already + number for number in numbers],
            "layout": layouts[at],
        }
        for at in steps
    ]
    _add_slider(figure, steps, first)
    return figure


def _differing(traces: Sequence[dict[str, Any]]) -> list[str]:
    """The fields of a trace that are not the same at every step."""
    names = dict.fromkeys(name for trace in traces for name in trace)
    return [name for name in names if not all(_same(trace.get(name), traces[0].get(name)) for trace in traces[1:])]


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a field are equal, entry by entry."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return np.array_equal(np.asarray(one, dtype=object), np.asarray(other, dtype=object))


def _add_slider(figure: go.Figure, steps: list[int], first: int) -> None:
    """A slider over the steps below the lowest axis, and buttons that play them and stop."""
    margin: Any = figure.layout["margin"]
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    play = {**now, "frame": {"duration": 160, "redraw": True}, "fromcurrent": False}
    place = {"xanchor": "left", "y": 0, "yanchor": "top"}
    slider = {
        **place,
        "active": steps.index(first),
        "steps": [{"label": f"{step:,}", "method": "animate", "args": [[str(step)], now]} for step in steps],
        "x": 0.13,
        "len": 0.87,
        # A page that exports the figure without its slider keeps this much below the plot area (page.js).
        "pad": {"t": margin["b"], "b": 0},
        "currentvalue": {"visible": False},
        "font": {"size": FONT_SIZE - 2},
        "ticklen": 4,
        "minorticklen": 2,
    }
    buttons = {
        **place,
        "type": "buttons",
        "showactive": False,
        "direction": "right",
        "x": 0,
        "pad": {"t": margin["b"] - 6, "r": 0},
        "buttons": [
            {"label": "▶", "method": "animate", "args": [None, play]},
            {"label": "■", "method": "animate", "args": [[None], now]},
        ],
    }
    figure.update_layout(sliders=[slider], updatemenus=[*figure.layout["updatemenus"], buttons])
    grow(figure, SLIDER_HEIGHT)
