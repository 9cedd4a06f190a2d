"""Panels stacked on one axis of training: what a lens hands in to appear in the timeline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import FLOPS, TRAINING_AXES, TrainingAxis, axis_layout, log_axis
from qfl_interp.plots.lines import STEP, curve, over_training, value_range
from qfl_interp.plots.theme import (
    BAND,
    FONT_SIZE,
    GREY,
    PAPER_WIDTH,
    PURPLE,
    VERMILLION,
    legend_row,
    new_figure,
    ordered_colors,
    stretch,
    text_at,
)
from qfl_interp.tables import groups

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
    """One panel of a timeline: curves over training.

    Args:
        title: What the panel shows; bold, above it.
        traces: Curves whose x is how far training was, above 0: as `curve` draws them, or over nominal FLOPs.
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

    @property
    def axis(self) -> TrainingAxis | None:
        """What its curves are drawn over; None where none says so.

        Raises:
            ValueError: Over several quantities.
        """
        return _one_axis([self])


@dataclass(frozen=True)
class Shade:
    """A stretch of training that is shaded, as the one in which the loss falls.

    Args:
        start: Where it begins, on the axis of the panels.
        end: Where it ends.
        label: Written once, above the band.
    """

    start: float
    end: float
    label: str


def stack_panels(panels: Sequence[Panel], shade: Shade | None, *, filename: str, note: str = "") -> go.Figure:
    """Panels below each other on one logarithmic axis of training, with a stretch shaded across all of them.

    Args:
        panels: From top to bottom.
        shade: Across all panels; None for none.
        filename: Name of a downloaded image, without its ending.
        note: Written where the label of the shade would stand if there is none.

    Raises:
        ValueError: There is no panel, no point after step 0, or panels are over different quantities.
    """
    if not panels:
        raise ValueError("a timeline needs at least one panel, got none.")
    over = _one_axis(panels) or FLOPS
    axis = axis_layout(over, *_range(panels, over))
    # Panels that share a legend are listed in it once, above the first of them.
    first = {panel.legend.name: index for index, panel in reversed(list(enumerate(panels))) if panel.legend}
    names = dict(zip(sorted(first, key=lambda name: first[name]), _numbered("legend"), strict=False))
    opens = [panel.legend is not None and first[panel.legend.name] == index for index, panel in enumerate(panels)]
    # Pixels above each plot area for title, note and, where the panel opens it, the legend.
    heads = [
        _TITLE_HEIGHT + _NOTE_HEIGHT * bool(panel.note) + _LEGEND_HEIGHT * (_legend_lines(panel) if on else 0)
        for panel, on in zip(panels, opens, strict=True)
    ]
    inner = sum(panel.height for panel in panels) + sum(heads) + _PANEL_GAP * (len(panels) - 1)
    figure = new_figure(filename, inner, _MARGIN)
    top = float(inner)
    for panel, head, on, y in zip(panels, heads, opens, _numbered("y"), strict=False):
        bottom = top - head - panel.height
        domain = (bottom / inner, (top - head) / inner)
        top = bottom - _PANEL_GAP
        # The y axis does not zoom: dragging selects a stretch of training everywhere.
        y_axis = {"domain": domain, "title": {"text": panel.y_title}, "fixedrange": True, "anchor": "x"}
        y_axis |= log_axis(*panel.y_range) if panel.log_y else {"range": list(panel.y_range), "nticks": 5}
        figure.update_layout({f"yaxis{y[1:]}": y_axis, "xaxis": {"anchor": y}})
        _add_texts(figure, panel, y, domain[1], head)
        added: dict[str, Any] = {"xaxis": "x", "yaxis": y} | ({} if on else {"showlegend": False})
        if panel.legend:
            added["legend"] = names[panel.legend.name]
        entries = panel.legend.entries if panel.legend and on else ()
        figure.add_traces([go.Scatter({**trace.to_plotly_json(), **added}) for trace in (*panel.traces, *entries)])
        if on:
            figure.update_layout({added["legend"]: legend_row(0, domain[1])})
    spike = {"spikemode": "across", "spikethickness": 1, "spikedash": "dot", "spikesnap": "cursor", "spikecolor": GREY}
    figure.update_layout(hovermode="x unified", hoverdistance=40, xaxis={**axis, "showspikes": True, **spike})
    _add_shade(figure, shade, note, axis["range"], over)
    return figure


def mark_step(figure: go.Figure, step: int, where: Mapping[str, float]) -> go.Figure:
    """A figure of stacked panels with a vertical line across all of them at a step.

    Args:
        figure: As `stack_panels` makes it; it is changed.
        step: Which one.
        where: How far training was there, by column: `flops`, `tokens`, `step`. A logarithmic axis does not have 0,
            which the figure says.
    """
    traces: Any = figure.data
    metas = [trace["meta"] for trace in traces]
    x = float(where[next((meta["over"] for meta in metas if isinstance(meta, dict)), FLOPS.column)])
    look: dict[str, Any] = {"yanchor": "bottom", "showarrow": False, "yshift": 24, "name": "step"}
    font = {"size": FONT_SIZE - 1, "color": VERMILLION}
    layout: Any = figure.layout
    low, high = layout["xaxis"]["range"]
    if not x > 0:
        figure.add_annotation(text_at(f"◂ <b>step {step:,}</b>, before the axis begins", **look, font=font))
        return figure
    at = math.log10(x)
    figure.update_layout(xaxis={"range": [min(low, at - 0.02 * (high - low)), max(high, at + 0.02 * (high - low))]})
    line = {"width": 1.6, "dash": "dash", "color": VERMILLION}
    figure.add_shape(stretch(x, x, line=line, xref="x", yref="paper", name="step"))
    anchor = "left" if at < low + 0.15 * (high - low) else "right" if at > high - 0.15 * (high - low) else "center"
    figure.add_annotation(text_at(f"<b>step {step:,}</b>", at, **look, xref="x", xanchor=anchor, font=font))
    return figure


def line_panel(
    rows: pd.DataFrame,
    name: str,
    *,
    by: str,
    title: str,
    y_title: str,
    names: Mapping[Any, str] | None = None,
    subtitle: str = "",
    number: str = ".4g",
    height: int = 120,
) -> Panel:
    """One curve over training for each value of a column: what most lenses show.

    Args:
        rows: A table with columns `flops`, `step`, `by` and `name`; rows of step 0 are left out.
        name: The column that is drawn.
        by: The column whose values are the curves, dark to light in their order.
        title: Of the panel.
        y_title: Quantity and unit.
        names: What the legend calls each value; by default the column and the value.
        subtitle: Continues the title.
        number: Format of a value in the hover text.
        height: In pixels, of the plot area.
    """
    parts = sorted(groups(over_training(rows), by), key=lambda part: part[0])
    traces = []
    for (value, part), color in zip(parts, ordered_colors(len(parts)), strict=True):
        text = names[value] if names else f"{by} {value}"
        hover = f"%{{y:{number}}} · {STEP}"
        traces.append(curve(part, name, text, color, size=4, hover=hover, legendgroup=f"{title}: {text}"))
    return Panel(
        title=title,
        subtitle=subtitle,
        traces=tuple(traces),
        y_title=y_title,
        y_range=value_range(*traces, below=0.04),
        height=height,
        legend=Legend(title),
    )


def _one_axis(panels: Sequence[Panel]) -> TrainingAxis | None:
    """What the curves of all panels are drawn over; None where none says so. `ValueError` where they differ."""
    metas: list[tuple[str, Any]] = [(panel.title, trace["meta"]) for panel in panels for trace in panel.traces]
    found = {meta["over"]: title for title, meta in metas if isinstance(meta, dict)}
    if len(found) > 1:
        said = ", ".join(f"{title!r} over {name}" for name, title in found.items())
        raise ValueError(f"panels on one axis must be over one quantity, got {said}. Draw them apart.")
    return next((axis for axis in TRAINING_AXES if axis.column in found), None)


def _range(panels: Sequence[Panel], over: TrainingAxis) -> tuple[float, float]:
    """Lowest and highest place of any point that a log axis can show."""
    columns: list[Any] = [trace["x"] for panel in panels for trace in panel.traces]
    values = [float(x) for column in columns for x in column if x is not None and x > 0]
    if not values:
        raise ValueError(
            f"a timeline needs points with more than 0 {over.unit}, got none: only step 0 was logged or probed. "
            "Train for at least one step and keep its checkpoint."
        )
    return min(values), max(values) if max(values) > min(values) else 10 * min(values)


def _numbered(name: str) -> Iterator[str]:
    """Plotly's names of one kind: y, y2, y3, ..."""
    return (name if number == 1 else f"{name}{number}" for number in itertools.count(1))


def _legend_lines(panel: Panel) -> int:
    """Lines that a panel's legend takes at paper width; plotly makes entries equally wide if one does not do."""
    traces = (*panel.traces, *(panel.legend.entries if panel.legend else ()))
    widths = [_ENTRY_WIDTH + _LETTER_WIDTH * len(str(t["name"])) for t in traces if t["showlegend"] is not False]
    room = PAPER_WIDTH - _MARGIN["l"] - _MARGIN["r"]
    if sum(widths) <= room:
        return 1
    return math.ceil(len(widths) / max(int(room // max(widths)), 1))


def _add_texts(figure: go.Figure, panel: Panel, y: str, top: float, head: int) -> None:
    """Title, note and texts of one panel, whose plot area ends at `top` under a head of `head` pixels."""
    title = f"<b>{panel.title}</b>" + (f"  {panel.subtitle}" if panel.subtitle else "")
    look: dict[str, Any] = {"yanchor": "top", "align": "left"}
    figure.add_annotation(text_at(title, 0, top, yshift=head, **look))
    if panel.note:
        look |= {"font": {"size": FONT_SIZE - 1}, "yshift": head - _TITLE_HEIGHT}
        figure.add_annotation(text_at(panel.note, 0, top, **look))
    for text in panel.annotations:
        figure.add_annotation(**text, xref="x", yref=y)


def _add_shade(figure: go.Figure, shade: Shade | None, text: str, log_range: list[float], over: TrainingAxis) -> None:
    """The band across all panels, with its label above them; or the text that there is none."""
    font = {"size": FONT_SIZE - 1}
    if shade is None:
        if text:
            figure.add_annotation(text_at(f"<i>{text}</i>", yshift=6, font=font))
        return
    figure.add_shape(
        stretch(shade.start, shade.end, fillcolor=BAND, line={"width": 0}, xref="x", yref="paper", name="transition")
    )
    centre = math.sqrt(shade.start * shade.end)
    place = (math.log10(centre) - log_range[0]) / (log_range[1] - log_range[0])
    # Keep the label inside the figure: near an edge it hangs to the other side.
    anchor, at = ("left", shade.start) if place < 0.3 else ("right", shade.end) if place > 0.7 else ("center", centre)
    label = f"<b>{shade.label}</b> {over.stretch(shade.start, shade.end)}"
    # Annotations on a log axis are placed by their logarithm, shapes by their value.
    look = {"xref": "x", "xanchor": anchor, "yshift": 6, "font": font | {"color": PURPLE}}
    figure.add_annotation(text_at(label, math.log10(at), **look))
