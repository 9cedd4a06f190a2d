"""Which heads or neurons the answer needs: how much the loss rises when each is ablated alone."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.lines import whiskers
from qfl_interp.plots.maps import axis_title, cells, color_bar, crosses, require_rows
from qfl_interp.plots.slider import add_steps, bottom_margin, shown_steps, step_title
from qfl_interp.plots.theme import DIVERGING, FONT_SIZE, VERMILLION, format_p, new_figure, plain, short
from qfl_interp.tables import column, distinct, records, select

_MOST_BARS: Final = 30
_MOST_WRITTEN: Final = 80
_SIGNIFICANT: Final = 0.05
_NAMES: Final = {"z": "attention heads", "mlp_post": "MLP neurons"}
_HOVER: Final = ("loss_increase_low", "loss_increase_high", "loss_answer", "exact_answer")
_NUMBERS: Final = (
    "(95 % %{customdata[0]:.4f} to %{customdata[1]:.4f})<br>"
    "loss %{customdata[2]:.4f} nats, exact match %{customdata[3]:.1%}"
)


def units_figure(rows: pd.DataFrame, *, step: int | None = None) -> go.Figure:
    """Rise of the answer's loss when one head or neuron is ablated: a layer x head map, or the 30 largest rises.

    An asterisk marks a rise or fall with p < 0.05 after Holm's correction. A slider changes the step.

    Args:
        rows: Table "ablate_units" of one `name` ("z": heads, "mlp_post": neurons) and method.
        step: The step shown first; None for the last.

    Raises:
        ValueError: No row, several names or methods, several rows of one unit, or an unknown step.
    """
    require_rows(rows, "ablate_units", ("name", "method"), ("step", "layer", "unit"))
    steps, first = shown_steps(rows, step, "ablate_units")
    name, method = str(rows["name"].iloc[0]), plain(rows["method"].iloc[0])
    what = f"{_NAMES.get(name, plain(name))}, {method} ablation"
    titles = {at: step_title(select(rows, step=at), what) for at in steps}
    return _map(rows, steps, first, titles) if name == "z" else _bars(rows, steps, first, titles, name)


def _map(rows: pd.DataFrame, steps: list[int], first: int, titles: dict[int, str]) -> go.Figure:
    """Layers x heads, one colour scale for all steps."""
    layers, heads = (sorted(int(v) for v in distinct(rows, name)) for name in ("layer", "unit"))
    written = len(layers) * len(heads) <= _MOST_WRITTEN
    contents = {at: _cells(select(rows, step=at), layers, heads) for at in steps}
    margin = {"l": 52, "r": 20, "t": 92, "b": bottom_margin(steps)}
    figure = new_figure("units_z", max(28 * len(layers), 90) + margin["t"] + margin["b"])
    figure.add_trace(crosses(heads, layers, {"xaxis": "x", "yaxis": "y"}, "not ablated"))
    figure.add_trace(
        go.Heatmap(
            **contents[first],
            name="loss_increase",
            x=heads,
            y=layers,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            coloraxis="coloraxis",
            texttemplate="%{text[0]}" if written else None,
            textfont={"size": FONT_SIZE - 2},
            hovertemplate=f"layer %{{y}}, head %{{x}}<br>loss rises by <b>%{{z:.4f}}</b> nats {_NUMBERS}"
            "%{text[1]}<extra></extra>",
        )
    )
    values = column(rows, "loss_increase")
    end = max(float(np.abs(values[np.isfinite(values)]).max(initial=0.0)), 1e-6)
    bar = color_bar("rise of the loss (nats); *: p < 0.05, Holm", 0.4, 1.0) | {"nticks": 7}
    bare = {"showgrid": False, "showline": False}
    figure.update_layout(
        margin=margin,
        coloraxis={"colorscale": DIVERGING, "cmin": -end, "cmax": end, "colorbar": bar},
        xaxis=bare | {"dtick": math.ceil(len(heads) / 24)},
        yaxis=bare | {"title": {"text": "layer"}, "dtick": math.ceil(len(layers) / 12)},
    )
    flat = {at: [go.Heatmap(**contents[at])] for at in steps}
    add_steps(figure, flat, [1], titles, first, above=60, annotations=[axis_title("head", 0)])
    return figure


def _cells(rows: pd.DataFrame, layers: list[int], heads: list[int]) -> dict[str, Any]:
    """Colours, texts and hover numbers of one step."""
    grid = cells(rows, ("layer", "unit"), [(layer, head) for layer in layers for head in heads])
    shape = (len(layers), len(heads))
    texts = [[_written(row), _p_text(row["p_value_holm"])] for row in records(grid)]
    return {
        "z": short(column(grid, "loss_increase").reshape(shape)),
        "customdata": short(np.stack([column(grid, name) for name in _HOVER], axis=-1).reshape(*shape, -1)),
        "text": np.array(texts, dtype=object).reshape(*shape, 2).tolist(),
    }


def _written(row: dict[str, Any]) -> str:
    """A cell's number, with an asterisk where it is significant."""
    value = row["loss_increase"]
    mark = "*" if row["p_value_holm"] < _SIGNIFICANT else ""
    return f"{value:.2f}{mark}" if math.isfinite(value) else ""


def _p_text(p_value: float) -> str:
    """The corrected p-value for the hover text, where there is one."""
    return f"<br>{format_p(p_value)} (Holm-corrected)" if math.isfinite(p_value) else ""


def _bars(rows: pd.DataFrame, steps: list[int], first: int, titles: dict[int, str], name: str) -> go.Figure:
    """The units whose ablation raises the loss most, from the top; other units at other steps."""
    contents = {at: _largest(select(rows, step=at)) for at in steps}
    n_bars = max(len(fields["y"]) for fields, _ in contents.values())
    margin = {"l": 78, "r": 20, "t": 52, "b": bottom_margin(steps)}
    figure = new_figure(f"units_{name}", 17 * n_bars + margin["t"] + margin["b"])
    figure.add_trace(
        go.Bar(
            **contents[first][0],
            name="loss_increase",
            orientation="h",
            marker={"color": VERMILLION, "line": {"width": 0}},
            hovertemplate=f"<b>%{{text}}</b><br>loss rises by <b>%{{x:.4f}}</b> nats {_NUMBERS}"
            "%{hovertext}<extra></extra>",
            textposition="none",
        )
    )
    ends = [column(rows, f"loss_increase{end}") for end in ("", "_low", "_high")]
    known = np.concatenate(ends)
    known = known[np.isfinite(known)]
    low, high = min(float(known.min(initial=0.0)), 0.0), max(float(known.max(initial=0.0)), 1e-6)
    axes = {at: {"yaxis": {"ticktext": names}} for at, (_, names) in contents.items()}
    figure.update_layout(
        margin=margin,
        xaxis={"title": {"text": "rise of the loss (nats); *: p < 0.05, Holm"}, "range": [1.05 * low, 1.05 * high]},
        yaxis={
            "range": [n_bars - 0.4, -0.6],
            "tickvals": list(range(n_bars)),
            "ticktext": contents[first][1],
            "title": {"text": "layer.neuron"},
            "tickfont": {"size": FONT_SIZE - 2},
            "showgrid": False,
        },
    )
    flat = {at: [go.Bar(**fields)] for at, (fields, _) in contents.items()}
    add_steps(figure, flat, [0], titles, first, above=14, layouts=axes)
    return figure


def _largest(rows: pd.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """The bars of one step, and how the axis names them."""
    ordered = rows.dropna(subset=["loss_increase"]).sort_values("loss_increase", ascending=False, kind="stable")
    top = ordered.head(_MOST_BARS)
    values, low, high = (column(top, f"loss_increase{end}") for end in ("", "_low", "_high"))
    found = records(top)
    fields = {
        "x": values,
        "y": list(range(len(found))),
        "error_x": whiskers(values, low, high, thickness=1, width=2),
        "customdata": np.stack([column(top, name) for name in _HOVER], axis=1),
        "text": [f"layer {row['layer']}, neuron {row['unit']}" for row in found],
        "hovertext": [_p_text(row["p_value_holm"]) for row in found],
    }
    marks = ["*" if row["p_value_holm"] < _SIGNIFICANT else "" for row in found]
    return fields, [f"{row['layer']}.{row['unit']}{mark}" for row, mark in zip(found, marks, strict=True)]
