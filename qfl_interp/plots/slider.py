"""A slider over training steps: what a figure with one picture a checkpoint needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.theme import FONT_SIZE, format_power, grow, text_at
from qfl_interp.tables import distinct, select

# Pixels below the plot area: what the slider itself takes, and what an axis title with its numbers takes above it.
SLIDER_HEIGHT: Final = 48
AXIS_HEIGHT: Final = 56


def shown_steps(rows: pd.DataFrame, step: int | None, table: str) -> tuple[list[int], int]:
    """All steps of the rows, in order, and the one that is shown first: `step`, or the last.

    Args:
        rows: What the figure shows.
        step: The step asked for; None for the last.
        table: The table's name, for the error.

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
    return steps, first


def step_title(rows: pd.DataFrame, name: str) -> str:
    """What the figure is of, in bold, with step and compute of the rows' first one."""
    step, flops = int(rows["step"].iloc[0]), float(rows["flops"].iloc[0])
    compute = f"{format_power(flops)} FLOPs" if step else "initial model"
    return f"<b>{name}</b>  step {step:,} · {compute}"


def heading(title: str, above: int) -> dict[str, Any]:
    """A title `above` pixels over the plot area, as an annotation, which a frame can replace."""
    return text_at(title, font={"size": FONT_SIZE + 1}, yshift=above)


def bottom_margin(steps: Sequence[int], axis_height: int = AXIS_HEIGHT) -> int:
    """Pixels below the plot area, with a slider where there are several steps."""
    return axis_height + (SLIDER_HEIGHT if len(steps) > 1 else 0)


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
) -> None:
    """Draw one step of a table, under a heading with step and compute; where there are several, with a slider.

    Only what differs between steps becomes part of a frame.

    Args:
        figure: With its axes, its margin, the texts and traces that stay. It grows by the height of the slider.
        rows: At any number of steps.
        draw: The traces of one step's rows; as many at every step, and of the same kinds.
        table: The table's name, for errors.
        title: What the figure is of, or how the whole heading is made from one step's rows.
        above: Pixels from the plot area to the heading.
        step: The step shown first; None for the last.
        layout: Further changes of the layout that a step's rows bring.

    Raises:
        ValueError: The rows do not have the step.
    """
    steps, first = shown_steps(rows, step, table)
    parts = {at: select(rows, step=at) for at in steps}
    texts = list(figure.layout["annotations"])
    layouts = {}
    for at, part in parts.items():
        text = step_title(part, title) if isinstance(title, str) else title(part)
        layouts[at] = {**(layout(part) if layout else {}), "annotations": [heading(text, above), *texts]}
    drawn = {at: [trace.to_plotly_json() for trace in draw(part)] for at, part in parts.items()}
    moving = [_differing(list(traces)) for traces in zip(*drawn.values(), strict=True)]
    numbers = [number for number, names in enumerate(moving) if names]
    already = len(figure.data)
    figure.add_traces(drawn[first])
    figure.update_layout(layout(parts[first]) if layout else {})
    # A list would be merged into the one there is.
    figure.update_layout(annotations=layouts[first]["annotations"], overwrite=True)
    if len(steps) == 1:
        return
    figure.frames = [
        go.Frame(
            name=str(at),
            data=[{name: drawn[at][number].get(name) for name in ("type", *moving[number])} for number in numbers],
            traces=[already + number for number in numbers],
            layout=layouts[at],
        )
        for at in steps
    ]
    margin: Any = figure.layout["margin"]
    _add_slider(figure, steps, first, margin["b"])
    grow(figure, SLIDER_HEIGHT)


def _differing(traces: Sequence[dict[str, Any]]) -> list[str]:
    """The fields of a trace that are not the same at every step."""
    names = dict.fromkeys(name for trace in traces for name in trace)
    return [name for name in names if not all(_same(trace.get(name), traces[0].get(name)) for trace in traces[1:])]


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a field are equal, entry by entry."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return np.array_equal(np.asarray(one, dtype=object), np.asarray(other, dtype=object))


def add_steps(
    figure: go.Figure,
    contents: Mapping[int, Sequence[Any]],
    moving: Sequence[int],
    titles: Mapping[int, str],
    first: int,
    *,
    above: int,
    annotations: Sequence[dict[str, Any]] = (),
    layouts: Mapping[int, dict[str, Any]] | None = None,
    axis_height: int = AXIS_HEIGHT,
) -> None:
    """Frames, title and slider for a figure whose traces show step `first`.

    Args:
        figure: Has its traces already.
        contents: For each step, what becomes of the traces `moving`; fields left out stay as they are.
        moving: Numbers of the traces that change.
        titles: The heading at each step.
        first: The step the figure's traces show.
        above: Pixels from the plot area to the heading.
        annotations: Texts that stay at every step.
        layouts: Further changes of the layout at each step.
        axis_height: Pixels that the lowest axis takes; the slider stands below.
    """
    steps = list(contents)
    figure.update_layout(annotations=[heading(titles[first], above), *annotations])
    figure.frames = [
        go.Frame(
            name=str(at),
            data=list(contents[at]),
            traces=list(moving),
            layout={
                "annotations": [heading(titles[at], above), *annotations],
                **(layouts[at] if layouts is not None else {}),
            },
        )
        for at in steps
    ]
    if len(steps) > 1:
        _add_slider(figure, steps, first, axis_height)


def _add_slider(figure: go.Figure, steps: list[int], first: int, axis_height: int) -> None:
    """A slider over the steps, and a button that plays them."""
    at_once: dict[str, Any] = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": True},
        "transition": {"duration": 0},
    }
    play: dict[str, Any] = at_once | {"frame": {"duration": 160, "redraw": True}, "fromcurrent": False}
    slider_steps = [{"label": f"{step:,}", "method": "animate", "args": [[str(step)], at_once]} for step in steps]
    slider = {
        "active": steps.index(first),
        "steps": slider_steps,
        "x": 0.13,
        "len": 0.87,
        "xanchor": "left",
        "y": 0,
        "yanchor": "top",
        # A page that exports the figure without its slider keeps this much below the plot area (page.js).
        "pad": {"t": axis_height, "b": 0},
        "currentvalue": {"visible": False},
        "font": {"size": FONT_SIZE - 2},
        "ticklen": 4,
        "minorticklen": 2,
    }
    buttons = {
        "type": "buttons",
        "showactive": False,
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 0,
        "yanchor": "top",
        "pad": {"t": axis_height - 6, "r": 0},
        "buttons": [
            {"label": "▶", "method": "animate", "args": [None, play]},
            {"label": "■", "method": "animate", "args": [[None], at_once]},
        ],
    }
    figure.update_layout(sliders=[slider], updatemenus=[*figure.layout["updatemenus"], buttons])
