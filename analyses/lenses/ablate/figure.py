"""Whether the model uses a feature: exact match and loss with its direction removed, beside the controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.conditions import ABLATION, Condition, curves, present
from qfl_interp.plots.grid import Cell
from qfl_interp.plots.lines import LOSS_FLOOR, finite, value_range, whiskers
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, stack_panels
from qfl_interp.plots.theme import FONT_SIZE, GREY, format_p, log_axis, new_figure, plain, text_at, words
from qfl_interp.tables import column, distinct, records, select

Count = Literal["answer", "paper"]
Scale = Literal["auto", "linear", "log"]


# Of the space between two features, what the bars of one take.
_GROUP_WIDTH: Final = 0.81
_BAR_SHARE: Final = 0.89
_COUNT_TITLES: Final = {"answer": "over the answer alone", "paper": "as the paper counts"}
# A log axis suits losses that differ by more than this factor.
_LOG_RATIO: Final = 20.0
_ROW_HEIGHT: Final = 270


class _Quantity(NamedTuple):
    """One panel: what it shows and where.

    Attributes:
        name: Column of the table; `name`_low and `name`_high hold its interval.
        title: Above the panel.
        log: Whether y is logarithmic.
        low: Lower end of the y axis; its logarithm on a log axis.
        high: Upper end, likewise.
        cell: Where it stands.
    """

    name: str
    title: str
    log: bool
    low: float
    high: float
    cell: Cell

    @property
    def is_exact(self) -> bool:
        """Whether it is a fraction of examples."""
        return self.name.startswith("exact")


def ablation_figure(
    ablate: pd.DataFrame,
    *,
    counts: Sequence[Count] = ("answer",),
    loss_scale: Scale = "auto",
    tested: str | None = "exact_answer",
) -> go.Figure:
    """Exact match and loss of the intact model, with the feature removed, and under each control the table has.

    Whiskers are the table's 95 % intervals, controls are hatched. Exact match is drawn as bars from 0. So is loss on
    a linear axis; a logarithmic one has no zero to start a bar from and gets points.

    Args:
        ablate: Table "ablate", of one step.
        counts: Which counts to show, one row of panels each: "answer", "paper" (`=` scored), or both.
        loss_scale: Axis of the loss; "auto": logarithmic where losses differ by more than a factor of 20.
        tested: The column that the table's p-values (ablated against random) are about; its panel gets them.

    Raises:
        ValueError: The table is empty, mixes steps or settings, has an unknown condition, or `counts` is empty.
    """
    steps = sorted(distinct(ablate, "step"))
    if len(steps) != 1 or not counts:
        raise ValueError(
            f"an ablation figure shows one step and at least one count, got {steps=} and {list(counts)=}. "
            "Select the rows of one step."
        )
    require_rows(ablate, "ablate", (), ("feature", "condition"))
    features = distinct(ablate, "feature")
    # More than three conditions take a second line of the legend.
    top = 30 if len(present(ablate, ABLATION)) <= 3 else 50
    margin = {"l": 66, "r": 18, "t": top, "b": 34}
    figure = new_figure("ablation", _ROW_HEIGHT * len(counts) - margin["b"], margin)
    place = {"x": 0, "y": 1, "yanchor": "top", "yref": "container"}
    figure.update_layout(legend={"orientation": "h", "traceorder": "normal", **place})
    for quantity in _quantities(ablate, counts, loss_scale):
        _add_series(figure, ablate, features, quantity)
        _add_axes(figure, features, quantity)
        if quantity.name == tested:
            _add_brackets(figure, ablate, features, quantity)
    return figure


def _quantities(ablate: pd.DataFrame, counts: Sequence[Count], loss_scale: Scale) -> list[_Quantity]:
    """The panels: a row a count, exact match on the left and loss on the right."""
    quantities = []
    for row, count in enumerate(counts):
        ending = "" if count == "paper" else "_answer"
        y_domain = (1 - (row + 0.88) / len(counts), 1 - (row + 0.12) / len(counts))
        left, right = Cell(2 * row + 1, (0.0, 0.45), y_domain), Cell(2 * row + 2, (0.56, 1.0), y_domain)
        limits = _loss_limits(ablate, f"loss{ending}", loss_scale)
        quantities += [
            _Quantity(f"exact{ending}", f"Exact match {_COUNT_TITLES[count]}", False, 0.0, 1.19, left),
            _Quantity(f"loss{ending}", f"Loss {_COUNT_TITLES[count]}", *limits, right),
        ]
    return quantities


def _loss_limits(ablate: pd.DataFrame, name: str, scale: Scale) -> tuple[bool, float, float]:
    """Whether a loss axis is logarithmic, and its ends, with room for a bracket above the highest whisker."""
    known = finite(ablate[name])
    far = len(known) > 0 and bool(known.max() > _LOG_RATIO * max(float(known.min()), LOSS_FLOOR))
    values = np.maximum(finite(ablate[[name, f"{name}_low", f"{name}_high"]]), LOSS_FLOOR)
    if not (far if scale == "auto" else scale == "log"):
        return False, *value_range(values if len(values) else 1.0, below=0.0, above=0.19)
    low, high = (math.log10(end) for end in (values.min(initial=0.1), values.max(initial=1.0)))
    span = max(high - low, 0.3)
    return True, low - 0.08 * span, low + 1.2 * span


def _add_series(figure: go.Figure, ablate: pd.DataFrame, features: list[str], quantity: _Quantity) -> None:
    """Bars or points of each condition over all features."""
    offsets = _offsets(ablate)
    for condition, offset in offsets.items():
        rows, style = select(ablate, condition=condition), ABLATION[condition]
        shared = _series(rows, features, quantity, style, offset)
        marker: dict[str, Any] = {"color": style.color}
        if quantity.log:
            look = {"symbol": style.symbol, "size": 10}
            figure.add_trace(go.Scatter(**shared, mode="markers", marker=marker | look))
        else:
            pattern = {"shape": style.pattern, "fillmode": "overlay", "size": 6, "fgopacity": 0.6}
            look = {"pattern": pattern, "line": {"width": 0}}
            figure.add_trace(go.Bar(**shared, width=_BAR_SHARE * _GROUP_WIDTH / len(offsets), marker=marker | look))


def _offsets(ablate: pd.DataFrame) -> dict[str, float]:
    """How far to the side of its feature each condition stands."""
    conditions = present(ablate, ABLATION)
    middle = (len(conditions) - 1) / 2
    return {name: (place - middle) * _GROUP_WIDTH / len(conditions) for place, name in enumerate(conditions)}


def _series(
    rows: pd.DataFrame, features: list[str], quantity: _Quantity, style: Condition, offset: float
) -> dict[str, Any]:
    """What a condition's bars and points have in common: values, whiskers, hover text, legend."""
    values, low, high = (column(rows, quantity.name + ending) for ending in ("", "_low", "_high"))
    number = ":.1%" if quantity.is_exact else ":.4g"
    texts = [_settings_text(row) + (_p_text(row) if quantity.is_exact else "") for row in records(rows)]
    return {
        "x": [features.index(feature) + offset for feature in rows["feature"]],
        "y": np.maximum(values, LOSS_FLOOR) if quantity.log else values,
        "error_y": whiskers(values, low, high) | ({"color": style.color} if quantity.log else {}),
        "customdata": np.stack([low, high, column(rows, "n_examples"), column(rows, "n_trials")], axis=1),
        "hovertext": texts,
        "hovertemplate": f"<b>%{{y{number}}}</b> (95 % %{{customdata[0]{number}}} to %{{customdata[1]{number}}})<br>"
        f"n = %{{customdata[2]:,}} examples, %{{customdata[3]:,}} trials%{{hovertext}}<extra>{style.legend}</extra>",
        "name": style.legend,
        "legendgroup": style.legend,
        "showlegend": quantity.cell.number == 1,
        **quantity.cell.axes,
    }


def _add_axes(figure: go.Figure, features: list[str], quantity: _Quantity) -> None:
    """Axes and title of one panel."""
    x_axis = {
        "range": [-0.5, len(features) - 0.5],
        "tickvals": list(range(len(features))),
        "ticktext": [words(feature) for feature in features],
        "showgrid": False,
        "ticks": "",
        "fixedrange": True,
    }
    if quantity.is_exact:
        y_axis = {"title": {"text": "fraction of examples"}, "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    else:
        y_axis = {"title": {"text": "nats per scored token"}}
    ends = quantity.low, quantity.high
    y_axis |= log_axis(10 ** ends[0], 10 ** ends[1]) if quantity.log else {"range": ends}
    figure.update_layout(quantity.cell.layout(x_axis, y_axis))
    figure.add_annotation(quantity.cell.title(f"<b>{quantity.title}</b>", 0))


def _add_brackets(figure: go.Figure, ablate: pd.DataFrame, features: list[str], quantity: _Quantity) -> None:
    """A bracket from ablated to random with the p-value, where the table has one."""
    axes = {"xref": quantity.cell.x, "yref": quantity.cell.y}
    offsets = _offsets(ablate)
    for row in records(select(ablate, condition="ablated")):
        p_value = row["p_value_holm"] if math.isfinite(row["p_value_holm"]) else row["p_value_paired"]
        control = select(ablate, feature=row["feature"], condition="random")
        if not math.isfinite(p_value) or control.empty:
            continue
        ends = [column(control, quantity.name + ending)[0] for ending in ("", "_high")]
        peak = float(np.nanmax([*ends, row[quantity.name], row[f"{quantity.name}_high"]]))
        height = (math.log10(max(peak, LOSS_FLOOR)) if quantity.log else peak) + 0.03 * (quantity.high - quantity.low)
        # On a log axis a shape is placed by its value, a text by its logarithm.
        level = 10**height if quantity.log else height
        place = features.index(row["feature"])
        left, right = (place + offsets[name] for name in ("ablated", "random"))
        ends = {"x0": left, "x1": right, "y0": level, "y1": level}
        figure.add_shape(type="line", line={"color": GREY, "width": 1.2}, **ends, **axes)
        look = {"font": {"size": FONT_SIZE - 1}, "xanchor": None, **axes}
        figure.add_annotation(text_at(format_p(p_value), (left + right) / 2, height, **look))


def _settings_text(row: Mapping[str, Any]) -> str:
    """How the feature was removed, where the table says it."""
    if "method" not in row:
        return ""
    where = "pooled over labels" if row["pooled"] else "label by label"
    return f"<br>{plain(row['method'])}, top {row['top_k']} layer(s), strength {row['epsilon']:g}, {where}"


def _p_text(row: Mapping[str, Any]) -> str:
    """All p-values of a row for the hover text."""
    names = {
        "p_value_paired": "paired over examples",
        "p_value_trials": "rank among random trials",
        "p_value_holm": "Holm-corrected",
    }
    parts = [f"{format_p(row[key])} ({name})" for key, name in names.items() if math.isfinite(row[key])]
    return "<br>against random: " + ", ".join(parts) if parts else ""


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
    return Panel(
        title=f"Ablating {words(feature)}",
        subtitle="examples with every answer token right; dashed: controls",
        traces=curves(rows, ABLATION, "exact_answer", "ablate"),
        y_title="exact match",
        y_range=(-0.04, 1.04),
        height=140,
        legend=Legend("ablation"),
    )
