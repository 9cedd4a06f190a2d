"""Panels stacked on one compute axis: what a lens hands in to appear in the timeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.theme import (
    BAND,
    FONT_SIZE,
    GREY,
    PAPER_WIDTH,
    PURPLE,
    format_power,
    log_flops_axis,
    log_ticks,
    new_figure,
)
from qfl_interp.tables import column

_MARGIN: Final = {"l": 76, "r": 18, "t": 48, "b": 54}
_TITLE_HEIGHT: Final = 20
_NOTE_HEIGHT: Final = 17
_LEGEND_HEIGHT: Final = 22
_PANEL_GAP: Final = 14
# Of a legend's entry: the line before the name, with what stands around it, and a letter of the name.
_ENTRY_WIDTH: Final = 40
_LETTER_WIDTH: Final = 5.6


@dataclass(frozen=True)
class Legend:
    """A legend row above a panel.

    Args:
        name: Panels whose legends have the same name share one; it stands above the first of them.
        entries: Traces without data that stand for a whole group (`legendgroup`), drawn in the legend only.
    """

    name: str
    entries: tuple[go.Scatter, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One panel of a timeline: curves over compute.

    Args:
        title: What the panel shows; bold, above it.
        traces: Curves whose x is nominal training FLOPs, above 0.
        y_title: Quantity and unit.
        y_range: Lowest and highest value to show, in the data's unit.
        subtitle: Continues the title in a lighter weight.
        note: A second line under the title, such as the verdicts. Plotly's HTML subset.
        log_y: Whether y is logarithmic.
        height: In pixels, of the plot area.
        legend: The legend its traces are listed in.
        annotations: Texts in the panel's own coordinates: plotly's annotation fields, without the references.
    """

    title: str
    traces: tuple[go.Scatter, ...]
    y_title: str
    y_range: tuple[float, float]
    subtitle: str = ""
    note: str = ""
    log_y: bool = False
    height: int = 170
    legend: Legend | None = None
    annotations: tuple[dict[str, Any], ...] = field(default=())


@dataclass(frozen=True)
class Transition:
    """The interval in which the loss falls.

    Args:
        start: Nominal FLOPs where the loss leaves its plateau.
        end: Nominal FLOPs where it has fallen.
        label: Written once, above the band.
    """

    start: float
    end: float
    label: str


def stack_panels(panels: Sequence[Panel], transition: Transition | None, *, filename: str, note: str = "") -> go.Figure:
    """Panels below each other on one logarithmic compute axis, with the transition shaded across all of them.

    Args:
        panels: From top to bottom.
        transition: Shaded; None where the loss has none.
        filename: Name of a downloaded image, without its ending.
        note: Written where the transition's label would stand if there is no transition.

    Raises:
        ValueError: There is no panel, or no point with more than 0 FLOPs.
    """
    if not panels:
        raise ValueError("a timeline needs at least one panel, got none.")
    low, high = _flops_range(panels)
    heads = [_head_height(panel, panels[:index]) for index, panel in enumerate(panels)]
    inner = sum(panel.height for panel in panels) + sum(heads) + _PANEL_GAP * (len(panels) - 1)
    figure = new_figure(filename, inner + _MARGIN["t"] + _MARGIN["b"])
    axis = log_flops_axis(low, high)
    spike = {
        "showspikes": True,
        "spikemode": "across",
        "spikethickness": 1,
        "spikedash": "dot",
        "spikesnap": "cursor",
        "spikecolor": GREY,
    }
    figure.update_layout(
        margin=_MARGIN,
        hovermode="x unified",
        hoverdistance=40,
        xaxis={**axis, **spike, "anchor": _axis_id(len(panels) - 1)},
    )
    top = float(inner)
    for index, (panel, head) in enumerate(zip(panels, heads, strict=True)):
        bottom = top - head - panel.height
        _add_panel(figure, panel, _axis_id(index)[1:], (bottom / inner, (top - head) / inner), head)
        top = bottom - _PANEL_GAP
    _add_traces(figure, panels)
    _add_transition(figure, transition, note, axis["range"])
    return figure


def over_compute(table: pd.DataFrame) -> pd.DataFrame:
    """Rows a log axis can show, in the order of compute.

    Raises:
        ValueError: The compute of a row is not known.
    """
    unknown = np.isnan(column(table, "flops"))
    if unknown.any():
        raise ValueError(
            f"a compute axis needs the FLOPs of every step, got NaN in {int(unknown.sum())} of {len(table)} rows. "
            "Open a suite of checkpoints with tokens_per_step, or draw the rows over `step`."
        )
    order = np.argsort(column(table, "flops"), kind="stable")
    ordered = table.iloc[order]
    return ordered.iloc[int(np.sum(column(ordered, "flops") <= 0)) :]


def _flops_range(panels: Sequence[Panel]) -> tuple[float, float]:
    """Lowest and highest compute of any point that a log axis can show."""
    columns: list[Any] = [trace["x"] for panel in panels for trace in panel.traces]
    flops = [float(x) for column in columns for x in column if x is not None and x > 0]
    if not flops:
        raise ValueError(
            "a timeline needs points with more than 0 FLOPs, got none: only step 0 was logged or probed. "
            "Train for at least one step and keep its checkpoint."
        )
    return min(flops), max(flops) if max(flops) > min(flops) else 10 * min(flops)


def _opens(panels: Sequence[Panel], index: int) -> bool:
    """Whether this panel is the first of those that share its legend."""
    legend = panels[index].legend
    return legend is not None and all(p.legend is None or p.legend.name != legend.name for p in panels[:index])


def _head_height(panel: Panel, above: Sequence[Panel]) -> int:
    """Pixels above the plot area for title, note and legend."""
    legend = _LEGEND_HEIGHT * _legend_lines(panel) if _opens([*above, panel], len(above)) else 0
    return _TITLE_HEIGHT + (_NOTE_HEIGHT if panel.note else 0) + legend


def _legend_lines(panel: Panel) -> int:
    """Lines that a panel's legend takes at paper width; plotly makes entries equally wide if one does not do."""
    traces = (*panel.traces, *(panel.legend.entries if panel.legend else ()))
    widths = [_ENTRY_WIDTH + _LETTER_WIDTH * len(str(t["name"])) for t in traces if t["showlegend"] is not False]
    room = PAPER_WIDTH - _MARGIN["l"] - _MARGIN["r"]
    if sum(widths) <= room:
        return 1
    return math.ceil(len(widths) / max(int(room // max(widths)), 1))


def _y_axis(panel: Panel, domain: tuple[float, float]) -> dict[str, Any]:
    """Layout of a panel's y axis, which does not zoom: dragging selects a stretch of compute everywhere."""
    low, high = panel.y_range
    axis: dict[str, Any] = {
        "domain": domain,
        "title": {"text": panel.y_title},
        "fixedrange": True,
        "anchor": "x",
    }
    if not panel.log_y:
        return axis | {"range": [low, high], "nticks": 5}
    ticks, texts = log_ticks(low, high)
    return axis | {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": texts,
    }


def _add_panel(figure: go.Figure, panel: Panel, suffix: str, domain: tuple[float, float], head: int) -> None:
    """Axis, head and texts of one panel, whose plot area fills `domain` under a head of `head` pixels."""
    figure.update_layout({f"yaxis{suffix}": _y_axis(panel, domain)})
    place = {"xref": "paper", "yref": "paper", "x": 0, "y": domain[1], "xanchor": "left", "yanchor": "top"}
    title = f"<b>{panel.title}</b>" + (f"  {panel.subtitle}" if panel.subtitle else "")
    figure.add_annotation(**place, text=title, yshift=head, align="left")
    if panel.note:
        font = {"size": FONT_SIZE - 1}
        figure.add_annotation(**place, text=panel.note, font=font, yshift=head - _TITLE_HEIGHT, align="left")
    for text in panel.annotations:
        figure.add_annotation(**text, xref="x", yref=f"y{suffix}")


def _add_traces(figure: go.Figure, panels: Sequence[Panel]) -> None:
    """All curves; panels that share a legend are listed in it once, above the first of them."""
    legends = list(dict.fromkeys(panel.legend.name for panel in panels if panel.legend))
    for index, panel in enumerate(panels):
        opens = _opens(panels, index)
        entries = panel.legend.entries if panel.legend and opens else ()
        for trace in (*panel.traces, *entries):
            added: dict[str, Any] = {"xaxis": "x", "yaxis": _axis_id(index)}
            if panel.legend:
                added["legend"] = f"legend{legends.index(panel.legend.name) + 1}".removesuffix("1")
            if not opens:
                added["showlegend"] = False
            figure.add_trace(go.Scatter({**trace.to_plotly_json(), **added}))
        if panel.legend and opens:
            place = {
                "x": 0,
                "xanchor": "left",
                "y": figure.layout[f"yaxis{_axis_id(index)[1:]}"]["domain"][1],
            }
            look: dict[str, Any] = {
                "yanchor": "bottom",
                "orientation": "h",
                "groupclick": "togglegroup",
                "tracegroupgap": 0,
            }
            look |= {"font": {"size": FONT_SIZE - 1}, "bgcolor": "rgba(0,0,0,0)"}
            figure.update_layout({f"legend{legends.index(panel.legend.name) + 1}".removesuffix("1"): {**place, **look}})


def _axis_id(index: int) -> str:
    """Plotly's name of the y axis of panel `index`: y, y2, y3, ..."""
    return f"y{index + 1}" if index else "y"


def _add_transition(figure: go.Figure, transition: Transition | None, note: str, log_range: list[float]) -> None:
    """The band across all panels, with its label above them; or the note that there is none."""
    label = {"yref": "paper", "y": 1, "yshift": 6, "yanchor": "bottom", "font": {"size": FONT_SIZE - 1}}
    if transition is None:
        if note:
            figure.add_annotation(**label, xref="paper", x=0, xanchor="left", text=f"<i>{note}</i>")
        return
    figure.add_shape(
        type="rect",
        name="transition",
        xref="x",
        yref="paper",
        x0=transition.start,
        x1=transition.end,
        y0=0,
        y1=1,
        fillcolor=BAND,
        line={"width": 0},
        layer="below",
    )
    centre = math.sqrt(transition.start * transition.end)
    place = (math.log10(centre) - log_range[0]) / (log_range[1] - log_range[0])
    # Keep the label inside the figure: near an edge it hangs to the other side.
    anchor, at = (
        ("left", transition.start) if place < 0.3 else ("right", transition.end) if place > 0.7 else ("center", centre)
    )
    text = f"<b>{transition.label}</b> {format_power(transition.start)} – {format_power(transition.end)} FLOPs"
    label["font"] = {"size": FONT_SIZE - 1, "color": PURPLE}
    # Annotations on a log axis are placed by their logarithm, shapes by their value.
    figure.add_annotation(**label, xref="x", x=math.log10(at), xanchor=anchor, text=text)
