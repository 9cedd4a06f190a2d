"""Whether the model uses a feature: exact match and loss with its direction removed, beside the controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from qfl_interp.plots.conditions import ABLATION, Condition, curves, present
from qfl_interp.plots.lines import whiskers
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel, stack_panels
from qfl_interp.plots.theme import FONT_SIZE, GREY, format_p, log_ticks, new_figure, plain, words
from qfl_interp.tables import column, distinct, records, select

Count = Literal["answer", "paper"]
Scale = Literal["auto", "linear", "log"]


# Of the space between two features, what the bars of one take.
_GROUP_WIDTH: Final = 0.81
_BAR_SHARE: Final = 0.89
_COUNT_TITLES: Final = {"answer": "over the answer alone", "paper": "as the paper counts"}
# A log axis suits losses that differ by more than this factor.
_LOG_RATIO: Final = 20.0
_LOSS_FLOOR: Final = 1e-12
_ROW_HEIGHT: Final = 270


class _Quantity(NamedTuple):
    """One panel: what it shows and where.

    Attributes:
        name: Column of the table; `name`_low and `name`_high hold its interval.
        title: Above the panel.
        log: Whether y is logarithmic.
        low: Lower end of the y axis; its logarithm on a log axis.
        high: Upper end, likewise.
        suffix: Ending of plotly's axis names.
        x_domain: Left and right edge, as fractions of the figure.
        y_domain: Bottom and top edge, likewise.
    """

    name: str
    title: str
    log: bool
    low: float
    high: float
    suffix: str
    x_domain: tuple[float, float]
    y_domain: tuple[float, float]


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
    figure = new_figure("ablation", top + _ROW_HEIGHT * len(counts))
    figure.update_layout(margin={"l": 66, "r": 18, "t": top, "b": 34})
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
        for side, (kind, name, x_domain) in enumerate(
            [("Exact match", f"exact{ending}", (0.0, 0.45)), ("Loss", f"loss{ending}", (0.56, 1.0))]
        ):
            log = kind == "Loss" and _use_log(column(ablate, name), loss_scale)
            low, high = (0.0, 1.19) if kind == "Exact match" else _loss_limits(ablate, name, log)
            number = 2 * row + side + 1
            suffix = str(number) if number > 1 else ""
            title = f"{kind} {_COUNT_TITLES[count]}"
            quantities.append(_Quantity(name, title, log, low, high, suffix, x_domain, y_domain))
    return quantities


def _use_log(losses: Float[np.ndarray, " row"], scale: Scale) -> bool:
    """Whether the losses get a logarithmic axis."""
    if scale != "auto":
        return scale == "log"
    known = losses[np.isfinite(losses)]
    return len(known) > 0 and bool(known.max() > _LOG_RATIO * max(float(known.min()), _LOSS_FLOOR))


def _loss_limits(ablate: pd.DataFrame, name: str, log: bool) -> tuple[float, float]:
    """Ends of a loss axis, with room for a bracket above the highest whisker; logarithms on a log axis."""
    values = np.concatenate([column(ablate, name + ending) for ending in ("", "_low", "_high")])
    values = values[np.isfinite(values)]
    high = max(float(values.max()) if len(values) else 1.0, _LOSS_FLOOR)
    if not log:
        return 0.0, 1.19 * high
    low = math.log10(max(float(values.min()) if len(values) else 0.1, _LOSS_FLOOR))
    span = max(math.log10(high) - low, 0.3)
    return low - 0.08 * span, low + 1.2 * span


def _add_series(figure: go.Figure, ablate: pd.DataFrame, features: list[str], quantity: _Quantity) -> None:
    """Bars or points of each condition over all features."""
    offsets = _offsets(ablate)
    for condition, offset in offsets.items():
        rows, style = select(ablate, condition=condition), ABLATION[condition]
        shared = _series(rows, features, quantity, style, offset)
        if quantity.log:
            marker = {"color": style.color, "symbol": style.symbol, "size": 10}
            figure.add_trace(go.Scatter(**shared, mode="markers", marker=marker))
        else:
            pattern = {"shape": style.pattern, "fillmode": "overlay", "size": 6, "fgopacity": 0.6}
            marker = {"color": style.color, "pattern": pattern, "line": {"width": 0}}
            figure.add_trace(go.Bar(**shared, width=_BAR_SHARE * _GROUP_WIDTH / len(offsets), marker=marker))


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
    number = ":.1%" if quantity.name.startswith("exact") else ":.4g"
    return {
        "x": [features.index(feature) + offset for feature in rows["feature"]],
        "y": np.maximum(values, _LOSS_FLOOR) if quantity.log else values,
        "error_y": whiskers(values, low, high) | ({"color": style.color} if quantity.log else {}),
        "customdata": np.stack([low, high, column(rows, "n_examples"), column(rows, "n_trials")], axis=1),
        "hovertext": [
            _settings_text(row) + (_p_text(row) if quantity.name.startswith("exact") else "") for row in records(rows)
        ],
        "hovertemplate": f"<b>%{{y{number}}}</b> (95 % %{{customdata[0]{number}}} to "
        f"%{{customdata[1]{number}}})<br>"
        "n = %{customdata[2]:,} examples, %{customdata[3]:,} trials%{hovertext}"
        f"<extra>{style.legend}</extra>",
        "name": style.legend,
        "legendgroup": style.legend,
        "showlegend": not quantity.suffix,
        "xaxis": f"x{quantity.suffix}",
        "yaxis": f"y{quantity.suffix}",
    }


def _add_axes(figure: go.Figure, features: list[str], quantity: _Quantity) -> None:
    """Axes and title of one panel."""
    x_axis = {
        "domain": quantity.x_domain,
        "anchor": f"y{quantity.suffix}",
        "range": [-0.5, len(features) - 0.5],
        "tickvals": list(range(len(features))),
        "ticktext": [words(feature) for feature in features],
        "showgrid": False,
        "ticks": "",
        "fixedrange": True,
    }
    y_axis: dict[str, Any] = {
        "domain": quantity.y_domain,
        "anchor": f"x{quantity.suffix}",
        "range": [quantity.low, quantity.high],
        "title": {"text": "nats per scored token"},
    }
    if quantity.name.startswith("exact"):
        y_axis |= {"title": {"text": "fraction of examples"}, "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    if quantity.log:
        ticks, texts = log_ticks(10**quantity.low, 10**quantity.high)
        y_axis |= {"type": "log", "tickvals": ticks, "ticktext": texts}
    figure.update_layout({f"xaxis{quantity.suffix}": x_axis, f"yaxis{quantity.suffix}": y_axis})
    place = {"x": quantity.x_domain[0], "y": quantity.y_domain[1], "xanchor": "left", "yanchor": "bottom"}
    figure.add_annotation(text=f"<b>{quantity.title}</b>", xref="paper", yref="paper", **place)


def _add_brackets(figure: go.Figure, ablate: pd.DataFrame, features: list[str], quantity: _Quantity) -> None:
    """A bracket from ablated to random with the p-value, where the table has one."""
    axes = {"xref": f"x{quantity.suffix}", "yref": f"y{quantity.suffix}"}
    offsets = _offsets(ablate)
    for row in records(select(ablate, condition="ablated")):
        p_value = row["p_value_holm"] if math.isfinite(row["p_value_holm"]) else row["p_value_paired"]
        control = select(ablate, feature=row["feature"], condition="random")
        if not math.isfinite(p_value) or control.empty:
            continue
        ends = [column(control, quantity.name + ending)[0] for ending in ("", "_high")]
        peak = float(np.nanmax([*ends, row[quantity.name], row[f"{quantity.name}_high"]]))
        height = (math.log10(max(peak, _LOSS_FLOOR)) if quantity.log else peak) + 0.03 * (quantity.high - quantity.low)
        # On a log axis a shape is placed by its value, a text by its logarithm.
        level = 10**height if quantity.log else height
        place = features.index(row["feature"])
        left, right = (place + offsets[name] for name in ("ablated", "random"))
        line = {"color": GREY, "width": 1.2}
        figure.add_shape(type="line", x0=left, x1=right, y0=level, y1=level, line=line, **axes)
        text = {"text": format_p(p_value), "font": {"size": FONT_SIZE - 1}, "yanchor": "bottom"}
        figure.add_annotation(x=(left + right) / 2, y=height, **text, **axes)


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
