"""Whether swapping a feature's directions moves the answer: interchange accuracy by layer and over compute."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.conditions import INTERCHANGE, curves, present
from qfl_interp.plots.lines import whiskers
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel
from qfl_interp.plots.slider import add_steps, bottom_margin, shown_steps, step_title
from qfl_interp.plots.theme import FONT_SIZE, format_p, new_figure, words
from qfl_interp.tables import column, distinct, records, select

_COLUMNS: Final = 3
_CELL_HEIGHT: Final = 170
_GAP: Final = 44
_ABOVE: Final = 74
_OFFSET: Final = 0.14


def interchange_figure(rows: pd.DataFrame, *, step: int | None = None) -> go.Figure:
    """By layer, the fraction of pairs whose answer becomes the clean one, under each swap; a panel a label.

    Whiskers are the table's 95 % intervals. A slider changes the step.

    Args:
        rows: Table "interchange" of one feature.
        step: The step shown first; None for the last.

    Raises:
        ValueError: No row, several features, several rows of one point, or an unknown step or condition.
    """
    require_rows(rows, "interchange", ("feature",), ("step", "label", "layer", "condition"))
    steps, first = shown_steps(rows, step, "interchange")
    labels, layers = (sorted(int(v) for v in distinct(rows, name)) for name in ("label", "layer"))
    contents = {at: _contents(select(rows, step=at), rows, labels, layers) for at in steps}
    titles = {at: step_title(select(rows, step=at), words(rows["feature"].iloc[0])) for at in steps}
    n_rows = math.ceil(len(labels) / _COLUMNS)
    inner = n_rows * _CELL_HEIGHT + (n_rows - 1) * _GAP
    margin = {"l": 62, "r": 18, "t": 114, "b": bottom_margin(steps)}
    figure = new_figure(f"interchange_{rows['feature'].iloc[0]}", inner + margin["t"] + margin["b"])
    figure.add_traces([_trace(fields) for fields in contents[first]])
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"}
    figure.update_layout(margin=margin, legend=legend | {"itemwidth": 30, "yref": "paper"})
    # Room for the panels' titles between the legend and the plot area.
    figure.update_layout(legend={"y": 1 + 20 / inner})
    annotations = [_add_axes(figure, number, label, layers, inner, len(labels)) for number, label in enumerate(labels)]
    flat = {at: [go.Scatter(**_moving(fields)) for fields in contents[at]] for at in steps}
    add_steps(figure, flat, range(len(contents[first])), titles, first, above=_ABOVE, annotations=annotations)
    return figure


def _contents(rows: pd.DataFrame, of_all: pd.DataFrame, labels: list[int], layers: list[int]) -> list[dict[str, Any]]:
    """What every trace shows at one step: a trace a label and condition."""
    conditions = present(of_all, INTERCHANGE)
    found = []
    for number, label in enumerate(labels):
        for place, condition in enumerate(conditions):
            offset = (place - (len(conditions) - 1) / 2) * _OFFSET
            part = select(rows, label=label, condition=condition).sort_values("layer", kind="stable")
            found.append(_points(part, layers, condition, offset, number))
    return found


def _points(rows: pd.DataFrame, layers: list[int], condition: str, offset: float, number: int) -> dict[str, Any]:
    """The points of one condition in one label's panel."""
    values, low, high = (column(rows, name) for name in ("flipped", "flipped_low", "flipped_high"))
    beside = ("layer", "flipped_low", "flipped_high", "logit_diff_normalised", "n_directions", "n_pairs")
    return {
        "x": [layers.index(int(layer)) + offset for layer in rows["layer"]],
        "y": values,
        "error_y": whiskers(values, low, high, width=3),
        "customdata": np.stack([column(rows, name) for name in beside], axis=1),
        "text": [_p_text(float(p)) for p in column(rows, "p_value_holm")],
        "condition": condition,
        "number": number,
    }


def _p_text(p_value: float) -> str:
    """The corrected p-value for the hover text, where there is one."""
    return f"<br>against random: {format_p(p_value)} (Holm-corrected)" if math.isfinite(p_value) else ""


def _moving(fields: dict[str, Any]) -> dict[str, Any]:
    """What of a trace changes with the step."""
    return {name: value for name, value in fields.items() if name not in ("condition", "number")}


def _trace(fields: dict[str, Any]) -> go.Scatter:
    """One condition in one panel."""
    style = INTERCHANGE[fields["condition"]]
    suffix = str(fields["number"] + 1) if fields["number"] else ""
    moving = _moving(fields)
    return go.Scatter(
        **{**moving, "error_y": moving["error_y"] | {"color": style.color}},
        xaxis=f"x{suffix}",
        yaxis=f"y{suffix}",
        mode="markers",
        name=style.legend,
        legendgroup=fields["condition"],
        showlegend=not fields["number"],
        marker={"color": style.color, "symbol": style.symbol, "size": 8},
        hovertemplate="layer %{customdata[0]}: <b>%{y:.1%}</b> of answers flipped "
        "(95 % %{customdata[1]:.1%} to %{customdata[2]:.1%})<br>"
        "logit difference, normalised: %{customdata[3]:.3f}<br>"
        "%{customdata[4]} direction(s), %{customdata[5]:,} pairs%{text}"
        f"<extra>{style.legend}</extra>",
    )


def _add_axes(
    figure: go.Figure, number: int, label: int, layers: list[int], inner: int, n_labels: int
) -> dict[str, Any]:
    """Axes of one label's panel; returns its title."""
    row, place = divmod(number, _COLUMNS)
    across = min(n_labels, _COLUMNS)
    width = (1 - 0.04 * (across - 1)) / across
    left = place * (width + 0.04)
    top = 1 - row * (_CELL_HEIGHT + _GAP) / inner
    suffix = str(number + 1) if number else ""
    lowest = number + _COLUMNS >= n_labels
    x_axis: dict[str, Any] = {
        "domain": [left, left + width],
        "anchor": f"y{suffix}",
        "range": [-0.5, len(layers) - 0.5],
        "tickvals": list(range(len(layers))),
        "ticktext": [str(layer) for layer in layers],
        "showgrid": False,
        "title": {"text": "layer" if lowest else ""},
    }
    y_axis: dict[str, Any] = {
        "domain": [max(top - _CELL_HEIGHT / inner, 0.0), top],
        "anchor": f"x{suffix}",
        "range": [-0.04, 1.04],
        "tickvals": [0, 0.25, 0.5, 0.75, 1],
        "showticklabels": place == 0,
        "title": {"text": "answers flipped" if place == 0 else ""},
    }
    figure.update_layout({f"xaxis{suffix}": x_axis, f"yaxis{suffix}": y_axis})
    at = {"xref": "paper", "x": left, "xanchor": "left", "yref": "paper", "y": top, "yanchor": "bottom"}
    return {"text": f"<b>label {label}</b>", "font": {"size": FONT_SIZE}, **at}


def interchange_panel(rows: pd.DataFrame, feature: str, label: int, *, layer: int | None = None) -> Panel:
    """Over compute, the fraction of pairs whose answer becomes the clean one, under each swap at one layer.

    Args:
        rows: Table "interchange".
        feature: Which feature's directions.
        label: Which label's.
        layer: Where they are swapped; None for the layer where the feature's flips most at the last step.

    Raises:
        ValueError: The table has no such row, or several of one step and condition.
    """
    chosen = select(rows, feature=feature, label=label)
    require_rows(chosen, "interchange", (), ("step", "layer", "condition"))
    if layer is None:
        swapped = select(chosen, condition="feature")
        at_last = records(select(swapped, step=max(distinct(swapped, "step"))))
        layer = int(max(at_last, key=lambda row: row["flipped"])["layer"])
    at_layer = select(chosen, layer=layer)
    if at_layer.empty:
        raise ValueError(
            f"layer must be one the interchange table has, got {layer}, not among {sorted(distinct(chosen, 'layer'))}. "
            "Choose one of them."
        )
    return Panel(
        title=f"Swapping {words(feature)}",
        subtitle=f"label {label}, layer {layer}: pairs whose answer becomes the clean one",
        traces=curves(at_layer, INTERCHANGE, "flipped", "interchange"),
        y_title="answers flipped",
        y_range=(-0.04, 1.04),
        height=140,
        legend=Legend("interchange"),
    )
