"""Panels stacked on one axis of training: what a lens hands in to appear in the timeline."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import FLOPS, TRAINING_AXES, TrainingAxis, axis_layout, log_axis
from qfl_interp.plots.legend import ROW_HEIGHT, in_rows, legend_layout, legends_of
from qfl_interp.plots.lines import STEP, curve, over_training, value_range
from qfl_interp.plots.text import line_height, n_lines, room, wrapped
from qfl_interp.plots.theme import (
    BAND,
    FONT_SIZE,
    GREY,
    PURPLE,
    VERMILLION,
    is_narrow,
    new_figure,
    ordered_colors,
    stretch,
    text_at,
)
from qfl_interp.tables import groups

_MARGIN: Final = {"l": 76, "r": 18, "t": 30, "b": 54}
# Pixels left and right of the panels together.
PANEL_SIDES: Final = _MARGIN["l"] + _MARGIN["r"]
_TITLE_HEIGHT: Final = 20
_NOTE_HEIGHT: Final = 17
_PANEL_GAP: Final = 14


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


def panel_rows(panels: Sequence[Panel]) -> pd.DataFrame:
    """The points of the panels' curves, a row each: panel, curve, how far training was, value, unit."""
    axis = _one_axis(panels) or FLOPS
    frames = [
        pd.DataFrame({axis.column: trace.x, "value": trace.y}).assign(
            panel=panel.title, curve=trace.name, unit=panel.y_title
        )
        for panel in panels
        for trace in panel.traces
        if trace.x is not None
    ]
    names = ["panel", "curve", axis.column, "value", "unit"]
    return pd.concat([pd.DataFrame(columns=names), *frames], ignore_index=True).reindex(columns=names)


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
    opens = [panel.legend is not None and first[panel.legend.name] == index for index, panel in enumerate(panels)]
    heads = [_Head.of(panel, opens=on) for panel, on in zip(panels, opens, strict=True)]
    inner = sum(panel.height for panel in panels) + sum(head.height for head in heads) + _PANEL_GAP * (len(panels) - 1)
    label = _label(shade, note, over)
    margin = _MARGIN | {"t": _MARGIN["t"] + round(line_height(FONT_SIZE - 1) * (n_lines(label) - 1))}
    figure = new_figure(filename, inner, margin)
    top, n_legends = float(inner), 0
    # Which legend lists each group of curves, by the name of the panels' legend.
    listed: dict[str, dict[str, str]] = {}
    for panel, head, on, y in zip(panels, heads, opens, _numbered("y"), strict=False):
        bottom = top - head.height - panel.height
        domain = (bottom / inner, (top - head.height) / inner)
        top = bottom - _PANEL_GAP
        # The y axis does not zoom: dragging selects a stretch of training everywhere.
        y_axis = {"domain": domain, "title": {"text": panel.y_title}, "fixedrange": True, "anchor": "x"}
        y_axis |= log_axis(*panel.y_range) if panel.log_y else {"range": list(panel.y_range), "nticks": 5}
        figure.update_layout({f"yaxis{y[1:]}": y_axis, "xaxis": {"anchor": y}})
        _add_texts(figure, panel, y, domain[1], head)
        added: dict[str, Any] = {"xaxis": "x", "yaxis": y} | ({} if on else {"showlegend": False})
        of: dict[str, str] = {}
        if panel.legend and on:
            of = legends_of(head.rows, first=n_legends + 1)
            figure.update_layout(legend_layout(of, inner, y=domain[1]))
            n_legends += len(head.rows)
            shown = [trace for trace in (*panel.traces, *panel.legend.entries) if trace["name"] in of]
            listed[panel.legend.name] = {_group(trace): of[str(trace["name"])] for trace in shown}
        entries = panel.legend.entries if panel.legend and on else ()
        for trace in (*panel.traces, *entries):
            # Where it is listed itself, or else with its group, so that a click takes all of them.
            groups_of = listed.get(panel.legend.name, {}) if panel.legend else {}
            at = of.get(str(trace["name"])) or groups_of.get(_group(trace))
            figure.add_trace(go.Scatter({**trace.to_plotly_json(), **added, **({"legend": at} if at else {})}))
    spike = {"spikemode": "across", "spikethickness": 1, "spikedash": "dot", "spikesnap": "cursor", "spikecolor": GREY}
    figure.update_layout(hovermode="x unified", hoverdistance=40, xaxis={**axis, "showspikes": True, **spike})
    _add_shade(figure, shade, label, axis["range"])
    return figure


# What the name of a marked step takes above a figure, in pixels.
_STEP_LINE: Final = 16


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
    # A line of text above the shade's.
    margin, above = layout["margin"], _STEP_LINE
    figure.update_layout(margin={"t": margin["t"] + above}, height=layout["height"] + above)
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


def _group(trace: go.Scatter) -> str:
    """What a click in the legend takes with it."""
    return str(trace["legendgroup"] or trace["name"])


class _Head(NamedTuple):
    """What stands above a panel: title and note in lines that fit the paper, and the legend it opens in rows."""

    title: str
    note: str
    rows: list[list[str]]

    @classmethod
    def of(cls, panel: Panel, *, opens: bool) -> _Head:
        """The head of a panel, which opens its legend or does not."""
        title = f"<b>{panel.title}</b>" + (f"  {panel.subtitle}" if panel.subtitle else "")
        traces = (*panel.traces, *(panel.legend.entries if panel.legend else ()))
        names = list(dict.fromkeys(str(t["name"]) for t in traces if t["showlegend"] is not False)) if opens else []
        beside = _left() + _MARGIN["r"]
        rows = in_rows(names, room(PANEL_SIDES)) if names else []
        return cls(wrapped(title, room(beside)), wrapped(panel.note, room(beside), FONT_SIZE - 1), rows)

    @property
    def title_height(self) -> float:
        """Pixels from the title's top to what stands below it."""
        return _TITLE_HEIGHT + line_height() * (n_lines(self.title) - 1)

    @property
    def height(self) -> int:
        """Pixels of all of it."""
        note = _NOTE_HEIGHT + line_height(FONT_SIZE - 1) * (n_lines(self.note) - 1) if self.note else 0
        return round(self.title_height + note) + ROW_HEIGHT * len(self.rows) + 8 * bool(self.rows)


def _left() -> int:
    """Pixels from the left edge at which texts begin: on narrow paper they need the room beside the axis."""
    return 6 if is_narrow() else _MARGIN["l"]


def _add_texts(figure: go.Figure, panel: Panel, y: str, top: float, head: _Head) -> None:
    """Title, note and texts of one panel, whose plot area ends at `top` under its head."""
    look: dict[str, Any] = {"yanchor": "top", "align": "left", "xshift": _left() - _MARGIN["l"]}
    figure.add_annotation(text_at(head.title, 0, top, yshift=head.height, **look))
    if head.note:
        look |= {"font": {"size": FONT_SIZE - 1}, "yshift": head.height - head.title_height}
        figure.add_annotation(text_at(head.note, 0, top, **look))
    for text in panel.annotations:
        figure.add_annotation(**text, xref="x", yref=y)


def _label(shade: Shade | None, note: str, over: TrainingAxis) -> str:
    """What is written above all panels: of the band, or that there is none; in lines that fit."""
    text = f"<b>{shade.label}</b> {over.stretch(shade.start, shade.end)}" if shade else f"<i>{note}</i>" if note else ""
    return wrapped(text, room(_left() + _MARGIN["r"]), FONT_SIZE - 1)


def _add_shade(figure: go.Figure, shade: Shade | None, label: str, log_range: list[float]) -> None:
    """The band across all panels, with its label above them; or the text that there is none."""
    look: dict[str, Any] = {"font": {"size": FONT_SIZE - 1}, "yshift": 6, "align": "left"}
    if shade is None:
        if label:
            figure.add_annotation(text_at(label, xshift=_left() - _MARGIN["l"], **look))
        return
    figure.add_shape(
        stretch(shade.start, shade.end, fillcolor=BAND, line={"width": 0}, xref="x", yref="paper", name="transition")
    )
    look["font"] |= {"color": PURPLE}
    if is_narrow():
        figure.add_annotation(text_at(label, xshift=_left() - _MARGIN["l"], **look))
        return
    centre = math.sqrt(shade.start * shade.end)
    place = (math.log10(centre) - log_range[0]) / (log_range[1] - log_range[0])
    # Keep the label inside the figure: near an edge it hangs to the other side.
    anchor, at = ("left", shade.start) if place < 0.3 else ("right", shade.end) if place > 0.7 else ("center", centre)
    # Annotations on a log axis are placed by their logarithm, shapes by their value.
    figure.add_annotation(text_at(label, math.log10(at), xref="x", xanchor=anchor, **look))
