"""Whether the model uses a feature: exact match and loss with its direction removed, beside the controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import log_axis, names_below
from qfl_interp.plots.conditions import ABLATION, curves, present
from qfl_interp.plots.grid import Cell, Grid
from qfl_interp.plots.legend import ROW_HEIGHT, in_rows, legend_layout, legends_of
from qfl_interp.plots.lines import LOSS_FLOOR, finite, value_range, whiskers
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, stack_panels
from qfl_interp.plots.slider import heading, heading_height, step_title
from qfl_interp.plots.text import wrapped
from qfl_interp.plots.theme import FONT_SIZE, GREY, format_p, is_narrow, new_figure, page_width, plain, text_at, words
from qfl_interp.tables import column, distinct, records, select

Count = Literal["answer", "paper"]
Scale = Literal["auto", "linear", "log"]

# Of the space between two features, what the bars of one take.
_GROUP_WIDTH: Final = 0.81
_BAR_SHARE: Final = 0.89
_COUNTS: Final = {"answer": ("_answer", "over the answer alone"), "paper": ("", "as the paper counts")}
# A log axis suits losses that differ by more than this factor.
_LOG_RATIO: Final = 20.0
# Pixels left and right of the panels, of a panel, above it for its title, and below it for a line of names.
_LEFT, _RIGHT = 66, 18
_HEIGHT, _TITLE, _NAMES = 205, 32, 34
# Between two panels side by side, as a fraction of the plot area.
_GAP: Final = 0.11
_EXACT_RANGE: Final = (0.0, 1.19)
_P_VALUES: Final = {
    "p_value_paired": "paired over examples",
    "p_value_trials": "rank among random trials",
    "p_value_holm": "Holm-corrected",
}


class _Quantity(NamedTuple):
    """One panel: its column (`name`_low and `name`_high hold the interval), title, whether y is logarithmic, place."""

    name: str
    title: str
    log: bool
    cell: Cell

    @property
    def is_exact(self) -> bool:
        """Whether it is a fraction of examples."""
        return self.name.startswith("exact")


def ablation_figure(
    ablate: pd.DataFrame, *, counts: Sequence[Count] = ("answer",), loss_scale: Scale = "auto"
) -> go.Figure:
    """Exact match and loss of the intact model, with the feature removed, and under each control the table has.

    Whiskers are the table's 95 % intervals, controls are hatched. Exact match is drawn as bars from 0. So is loss on
    a linear axis; a logarithmic one has no zero to start a bar from and gets points. Brackets have the p-value of
    exact match over the answer alone, ablated against random.

    Args:
        ablate: Table "ablate", of one step.
        counts: Which counts to show, one row of panels each: "answer", "paper" (`=` scored), or both.
        loss_scale: Axis of the loss; "auto": logarithmic where losses differ by more than a factor of 20.

    Raises:
        ValueError: The table is empty, mixes steps or settings, has an unknown condition, or `counts` is empty.
    """
    steps = sorted(distinct(ablate, "step"))
    if len(steps) != 1 or not counts:
        raise ValueError(
            f"an ablation figure shows one step and at least one count, got steps {steps} and counts {list(counts)}. "
            "Select the rows of one step."
        )
    require_rows(ablate, "ablate", (), ("feature", "condition"))
    features, conditions = distinct(ablate, "feature"), present(ablate, ABLATION)
    width = _GROUP_WIDTH / len(conditions)
    # How far to the side of its feature each condition stands.
    offsets = {name: (place - (len(conditions) - 1) / 2) * width for place, name in enumerate(conditions)}
    inner = page_width() - _LEFT - _RIGHT
    rows_of = in_rows([ABLATION[name].name for name in conditions], inner)
    listed, across = legends_of(rows_of), 1 if is_narrow() else 2
    panel_width = inner if across == 1 else inner * (1 - _GAP) / 2
    names, more = names_below([words(feature) for feature in features], panel_width)
    x_axis = names | {"ticks": "", "fixedrange": True}
    # On narrow paper the panels stand below each other.
    grid = Grid([_HEIGHT], 2 * len(counts), across, gap=_GAP, head=_TITLE, foot=_NAMES + more)
    said, above = step_title(ablate, "Features ablated"), ROW_HEIGHT * len(rows_of) + 6
    margin = {"l": _LEFT, "r": _RIGHT, "t": above + 24 + heading_height(said), "b": _NAMES + more}
    figure = new_figure("ablation", grid.height, margin)
    figure.update_layout(legend_layout(listed, grid.height, traceorder="normal"))
    figure.add_annotation(heading(said, above))
    for row, count in enumerate(counts):
        ending, title = _COUNTS[count]
        left, right = grid.cell(2 * row), grid.cell(2 * row + 1)
        log, y_axis = _loss_axis(ablate, f"loss{ending}", loss_scale)
        exact = _Quantity(f"exact{ending}", f"Exact match {title}", False, left)
        ticks = {"range": _EXACT_RANGE, "tickvals": [0, 0.25, 0.5, 0.75, 1], "title": {"text": "fraction of examples"}}
        shown = [(exact, ticks), (_Quantity(f"loss{ending}", f"Loss {title}", log, right), y_axis)]
        if not len(finite(ablate[exact.name])):  # a real-valued task has no exact match
            whole = Cell(2 * row + 1, (0.0, 1.0), (right.y_domain[0], left.y_domain[1]))
            axis = y_axis | {"title": {"text": "half squared error"}}
            shown = [(_Quantity(f"loss{ending}", f"Loss {title}", log, whole), axis)]
        for quantity, axis in shown:
            for trace in _traces(ablate, features, quantity, offsets, _BAR_SHARE * width):
                figure.add_trace(trace.update(legend=listed[str(trace["name"])]))
            figure.update_layout(quantity.cell.layout(x_axis, axis))
            figure.add_annotation(quantity.cell.title(f"<b>{quantity.title}</b>", 0))
        if count == "answer" and shown[0][0] is exact:
            _add_brackets(figure, ablate, features, exact, offsets, panel_width / len(features))
    return figure


def _loss_axis(ablate: pd.DataFrame, name: str, scale: Scale) -> tuple[bool, dict[str, Any]]:
    """Whether a loss axis is logarithmic, and the axis, with room above the highest whisker."""
    known = finite(ablate[name])
    far = len(known) > 0 and bool(known.max() > _LOG_RATIO * max(float(known.min()), LOSS_FLOOR))
    values = np.maximum(finite(ablate[[name, f"{name}_low", f"{name}_high"]]), LOSS_FLOOR)
    axis: dict[str, Any] = {"title": {"text": "nats per scored token"}}
    if not (far if scale == "auto" else scale == "log"):
        return False, axis | {"range": value_range(values if len(values) else 1.0, below=0.0, above=0.19)}
    low, high = (math.log10(end) for end in (values.min(initial=0.1), values.max(initial=1.0)))
    span = max(high - low, 0.3)
    return True, axis | log_axis(10 ** (low - 0.08 * span), 10 ** (low + 1.2 * span))


def _traces(
    ablate: pd.DataFrame, features: list[str], quantity: _Quantity, offsets: Mapping[str, float], width: float
) -> list[go.Bar | go.Scatter]:
    """Bars, on a logarithmic axis points, of each condition over all features."""
    number = ":.1%" if quantity.is_exact else ":.4g"
    said = (
        f"<b>%{{y{number}}}</b> (95 % %{{customdata[0]{number}}} to %{{customdata[1]{number}}})<br>"
        "n = %{customdata[2]:,} examples, %{customdata[3]:,} trials%{hovertext}"
    )
    traces = []
    for condition, offset in offsets.items():
        rows, style = select(ablate, condition=condition), ABLATION[condition]
        values, low, high = (column(rows, quantity.name + ending) for ending in ("", "_low", "_high"))
        shared: dict[str, Any] = {
            "x": [features.index(feature) + offset for feature in rows["feature"]],
            "customdata": np.stack([low, high, column(rows, "n_examples"), column(rows, "n_trials")], axis=1),
            "hovertext": [_details(row, p_values=quantity.is_exact) for row in records(rows)],
            "hovertemplate": f"{said}<extra>{style.name}</extra>",
            "name": style.name,
            "legendgroup": style.name,
            "showlegend": quantity.cell.number == 1,
            **quantity.cell.axes,
        }
        bars = whiskers(values, low, high)
        if quantity.log:
            marker = {"color": style.color, "symbol": style.symbol, "size": 10}
            look = {"mode": "markers", "marker": marker, "error_y": bars | {"color": style.color}}
            traces.append(go.Scatter(y=np.maximum(values, LOSS_FLOOR), **look, **shared))
        else:
            pattern = {"shape": style.pattern, "fillmode": "overlay", "size": 6, "fgopacity": 0.6}
            marker = {"color": style.color, "pattern": pattern, "line": {"width": 0}}
            traces.append(go.Bar(y=values, width=width, marker=marker, error_y=bars, **shared))
    return traces


def _add_brackets(
    figure: go.Figure,
    ablate: pd.DataFrame,
    features: list[str],
    exact: _Quantity,
    offsets: Mapping[str, float],
    room: float,
) -> None:
    """A bracket from ablated to random with the p-value, where the table has one; in `room` pixels a feature."""
    axes = {"xref": exact.cell.x, "yref": exact.cell.y}
    for row in records(select(ablate, condition="ablated")):
        p_value = row["p_value_holm"] if math.isfinite(row["p_value_holm"]) else row["p_value_paired"]
        control = select(ablate, feature=row["feature"], condition="random")
        if not math.isfinite(p_value) or control.empty:
            continue
        names = [exact.name, f"{exact.name}_high"]
        height = float(finite(control[names], [row[name] for name in names]).max()) + 0.03 * _EXACT_RANGE[1]
        left, right = (features.index(row["feature"]) + offsets[name] for name in ("ablated", "random"))
        ends = {"x0": left, "x1": right, "y0": height, "y1": height}
        figure.add_shape(type="line", line={"color": GREY, "width": 1.2}, **ends, **axes)
        look = {"font": {"size": FONT_SIZE - 1}, "xanchor": "center", **axes}
        figure.add_annotation(
            text_at(wrapped(format_p(p_value), room, FONT_SIZE - 1), (left + right) / 2, height, **look)
        )


def _details(row: Mapping[str, Any], *, p_values: bool) -> str:
    """For the hover text: how the feature was removed, and the row's p-values."""
    where = "pooled over labels" if row["pooled"] else "label by label"
    text = f"<br>{plain(row['method'])}, top {row['top_k']} layer(s), strength {row['epsilon']:g}, {where}"
    parts = [f"{format_p(row[key])} ({name})" for key, name in _P_VALUES.items() if math.isfinite(row[key])]
    return text + ("<br>against random: " + ", ".join(parts) if parts and p_values else "")


def ablation_over_steps_figure(ablate: pd.DataFrame) -> go.Figure:
    """Exact match over compute under each condition, a panel a feature: when the model comes to use it.

    Whiskers are the table's 95 % intervals.

    Args:
        ablate: Table "ablate", of any number of steps above 0.

    Raises:
        ValueError: There is no row above step 0, or several of one step, feature and condition.
    """
    require_rows(ablate, "ablate", (), ("step", "feature", "condition"))
    panels = [ablation_panel(ablate, feature) for feature in distinct(ablate, "feature")]
    return stack_panels(panels, None, filename="ablation_over_steps")


def ablation_panel(ablate: pd.DataFrame, feature: str) -> Panel:
    """Exact match over the answer alone, over compute, under each condition of a feature's ablation.

    Args:
        ablate: Table "ablate".
        feature: Which feature's rows.

    Raises:
        ValueError: There is no row of the feature, or several of one step and condition.
    """
    rows = select(ablate, feature=feature)
    require_rows(rows, "ablate", (), ("step", "condition"))
    (method,) = distinct(rows, "method")
    if not len(finite(rows["exact_answer"])):  # a real-valued task has no exact match
        traces = curves(rows, ABLATION, "loss_answer", "ablate")
        return Panel(
            title=f"Ablating {words(feature)}",
            subtitle=f"loss by method {method!r}; dashed: controls",
            traces=traces,
            y_title="half squared error",
            y_range=value_range(finite(*traces), below=0.0, above=0.1),
            height=140,
            legend=Legend("ablation"),
        )
    return Panel(
        title=f"Ablating {words(feature)}",
        subtitle=f"examples with every answer token right, by method {method!r}; dashed: controls",
        traces=curves(rows, ABLATION, "exact_answer", "ablate"),
        y_title="exact match",
        y_range=(-0.04, 1.04),
        height=140,
        legend=Legend("ablation"),
    )
