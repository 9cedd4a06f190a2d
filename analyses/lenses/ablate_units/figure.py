"""Which heads or neurons the answer needs: how much the loss rises when each is ablated alone."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import names_axis
from qfl_interp.plots.lines import finite, whiskers
from qfl_interp.plots.maps import BARE, CellMap, axis_title, bar_span, color_axis, require_rows
from qfl_interp.plots.slider import AXIS_HEIGHT, over_steps
from qfl_interp.plots.theme import DIVERGING, FONT_SIZE, VERMILLION, holm_line, new_figure, plain
from qfl_interp.tables import column, distinct, groups, records

_MOST_BARS: Final = 30
_MOST_WRITTEN: Final = 80
_SIGNIFICANT: Final = 0.05
UNITS: Final = {"z": "attention heads", "mlp_post": "MLP neurons"}
_HOVER: Final = ("loss_increase_low", "loss_increase_high", "loss_answer", "exact_answer")
_NUMBERS: Final = "(95 % %{customdata[0]:.4f} to %{customdata[1]:.4f})<br>loss %{customdata[2]:.4f}"
_EXACT: Final = ", exact match %{customdata[3]:.1%}"


def units_figure(rows: pd.DataFrame, *, step: int | None = None, slider: bool = True) -> go.Figure:
    """Rise of the answer's loss when one head or neuron is ablated: a layer x head map, or the 30 largest rises.

    An asterisk marks a rise or fall with p < 0.05 after Holm's correction. A slider changes the step.

    Args:
        rows: Table "ablate_units" of one `name` ("z": heads, "mlp_post": neurons) and method.
        step: The step shown first; None for the last.
        slider: Whether the figure goes through all steps; without it, it shows this one, in the colours of all.

    Raises:
        ValueError: No row, several names or methods, several rows of one unit, or an unknown step.
    """
    require_rows(rows, "ablate_units", ("name", "method"), ("step", "layer", "unit"))
    name, method = str(rows["name"].iloc[0]), plain(rows["method"].iloc[0])
    what = f"{UNITS.get(name, plain(name))}, {method} ablation"
    # What is scored without an exact match are numbers, by half the squared error.
    scored = bool(rows["exact_answer"].notna().any())
    rows = rows.assign(mark=np.where(column(rows, "p_value_holm") < _SIGNIFICANT, "*", ""))
    bar = f"rise of the loss ({'nats' if scored else 'half squared error'}); *: p < 0.05, Holm"
    numbers = _NUMBERS + (_EXACT if scored else "")
    how: dict[str, Any] = {"table": "ablate_units", "title": what, "step": step, "slider": slider}
    return _map(rows, bar, numbers, how) if name == "z" else _bars(rows, name, bar, numbers, how)


def _map(rows: pd.DataFrame, bar: str, numbers: str, how: dict[str, Any]) -> go.Figure:
    """Layers x heads, one colour scale for all steps."""
    layers, heads = (sorted(int(v) for v in distinct(rows, name)) for name in ("layer", "unit"))
    cells = CellMap(("layer", "unit"), [(layer,) for layer in layers], heads, layers)
    margin = {"l": 52, "r": 20, "t": 92, "b": AXIS_HEIGHT}
    figure = new_figure("units_z", max(28 * len(layers), 90), margin)
    figure.add_trace(cells.crosses("not ablated"))
    end = max(float(abs(finite(rows["loss_increase"])).max(initial=0.0)), 1e-6)
    figure.update_layout(
        annotations=[axis_title("head", 0)],
        coloraxis=color_axis(bar, -end, end, scale=DIVERGING, span=bar_span(0.4, 1.0), nticks=7),
        xaxis=BARE | {"dtick": math.ceil(len(heads) / 24)},
        yaxis=BARE | {"title": {"text": "layer"}, "dtick": math.ceil(len(layers) / 12)},
    )
    hover = f"layer %{{y}}, head %{{x}}<br>loss rises by <b>%{{z:.4f}}</b> {numbers}%{{text[1]}}"
    written = len(layers) * len(heads) <= _MOST_WRITTEN
    look = {"texttemplate": "%{text[0]}" if written else None, "textfont": {"size": FONT_SIZE - 2}}

    def draw(part: pd.DataFrame) -> list[dict[str, Any]]:
        found = [(row["loss_increase"], row["mark"], row["p_value_holm"]) for row in records(cells.cells(part))]
        texts = [[_written(rise, mark), holm_line(p)] for rise, mark, p in found]
        text = cells.grid(np.array(texts, dtype=object)).tolist()
        return [cells.heat(part, "loss_increase", hover, beside=_HOVER, text=text, name="loss_increase", **look)]

    return over_steps(figure, rows, draw, above=60, **how)


def _written(rise: float, mark: str) -> str:
    """A cell's text; a rise that is told from zero is never written as zero."""
    if not math.isfinite(rise):
        return ""
    small = mark and abs(rise) < 0.005
    if small:
        return f"{rise:.0e}{mark}"
    return f"{rise:.2f}{mark}".replace("-0.00", "0.00")


def _bars(rows: pd.DataFrame, name: str, bar: str, numbers: str, how: dict[str, Any]) -> go.Figure:
    """The units whose ablation raises the loss most, from the top; other units at other steps."""
    n_bars = max(len(_largest(part)) for _, part in groups(rows, "step"))
    ends = finite(rows[[f"loss_increase{end}" for end in ("", "_low", "_high")]])
    low, high = float(ends.min(initial=0.0)), float(ends.max(initial=1e-6))
    figure = new_figure(f"units_{name}", 17 * n_bars, {"l": 78, "r": 20, "t": 52, "b": AXIS_HEIGHT})
    figure.update_layout(
        xaxis={"title": {"text": bar}, "range": [1.05 * low, 1.05 * high]},
        yaxis={"title": {"text": "layer.neuron"}, "tickfont": {"size": FONT_SIZE - 2}},
    )

    def draw(part: pd.DataFrame) -> list[go.Bar]:
        top = _largest(part)
        values, low, high = (column(top, f"loss_increase{end}") for end in ("", "_low", "_high"))
        drawn = go.Bar(
            x=values,
            y=list(range(len(top))),
            error_x=whiskers(values, low, high, thickness=1, width=2),
            customdata=top[list(_HOVER)].to_numpy(dtype=float),
            text=[f"layer {row['layer']}, neuron {row['unit']}" for row in records(top)],
            hovertext=[holm_line(p_value) for p_value in column(top, "p_value_holm")],
            name="loss_increase",
            orientation="h",
            textposition="none",
            marker={"color": VERMILLION, "line": {"width": 0}},
            hovertemplate=f"<b>%{{text}}</b><br>loss rises by <b>%{{x:.4f}}</b> {numbers}%{{hovertext}}<extra></extra>",
        )
        return [drawn]

    def names(part: pd.DataFrame) -> dict[str, Any]:
        texts = [f"{row['layer']}.{row['unit']}{row['mark']}" for row in records(_largest(part))]
        return {"yaxis": names_axis(texts) | {"range": [n_bars - 0.4, -0.6]}}

    return over_steps(figure, rows, draw, above=14, layout=names, **how)


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the largest rises, from the top."""
    known = rows.dropna(subset=["loss_increase"])
    return known.sort_values("loss_increase", ascending=False, kind="stable").head(_MOST_BARS)
