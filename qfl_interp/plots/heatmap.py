"""Where a feature is decodable: a layer x label map of probe loss, with a slider over steps."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from qfl_interp.plots.theme import FONT_SIZE, GREY, format_power, log_ticks, new_figure, words
from qfl_interp.tables import column, distinct, select

Beside = Literal["score", "shuffled"]

_HOVER_COLUMNS: Final = (
    "test_loss",
    "test_score",
    "shuffled_test_loss",
    "shuffled_test_score",
    "label_mean",
    "n_test",
)


class _Words(NamedTuple):
    """How a probe's loss and score are called, and the numbers of the score written."""

    loss: str
    unit: str
    score: str
    number: str


_WORDS: Final = {
    "log_loss": _Words("test log loss", " (nats)", "test accuracy", ".0%"),
    "mse": _Words("test mean squared error", "", "test R²", ".2f"),
}
# Losses below this share the last colour.
_LOSS_FLOOR: Final = 1e-4


class _Map(NamedTuple):
    """One of the two maps: its column, its colours, and how values become colours."""

    title: str
    column: str
    colorscale: str
    low: float
    high: float
    logarithmic: bool
    number: str = ""


def probe_heatmap(probe: pd.DataFrame, feature: str, *, beside: Beside = "score", step: int | None = None) -> go.Figure:
    """Test loss by layer and label at one step, a second map beside it, and a slider over all steps.

    Colours are the same at every step, and brighter is better in both maps. The loss's colour is logarithmic.
    Cells whose probe could not be fitted (the label does not vary) are grey with a cross.

    Args:
        probe: Table "probe"; rows of other features and of untrained models are left out.
        feature: Which feature's probes.
        beside: The second map: the test score (accuracy or R2), or the test loss of probes trained on shuffled labels.
        step: The step shown first; None for the last.

    Raises:
        ValueError: The table has no row of this feature and source, none at the step, or several in a cell.
    """
    rows = select(probe, feature=feature, source="trained")
    if rows.empty:
        raise ValueError(
            f"the probe table must have rows of feature {feature!r} with source 'trained', got none among "
            f"{sorted(distinct(probe, 'feature'))}. Probe this feature first."
        )
    steps = sorted(int(at) for at in distinct(rows, "step"))
    first = steps[-1] if step is None else step
    if first not in steps:
        raise ValueError(f"step {first} of feature {feature!r} is not in the probe table, which has {steps}.")
    if rows.duplicated(["step", "layer", "label"]).any():
        raise ValueError(
            f"the probe table must have one row a step, layer and label, got several of {feature!r}. "
            "Select the rows of one run and one hash of settings."
        )
    names = _WORDS[distinct(rows, "metric")[0]]
    maps = (_loss_map(rows, names), _second_map(rows, beside, names))
    hover = _hover(names)
    layers, labels = (sorted(int(v) for v in distinct(rows, axis)) for axis in ("layer", "label"))
    contents = {at: _traces(select(rows, step=at), maps, hover, layers, labels) for at in steps}
    titles = {at: _title(select(rows, step=at), feature) for at in steps}
    figure = new_figure(f"probes_{feature}", 202 + max(26 * len(layers), 110))
    figure.add_traces(contents[first])
    # The crosses are the same at every step as a rule; a frame then holds the two maps only.
    moving = (0, 2) if all(contents[at][1].z == contents[first][1].z for at in steps) else (0, 1, 2, 3)
    figure.frames = [
        go.Frame(
            name=str(at),
            data=[contents[at][index] for index in moving],
            traces=moving,
            layout={"annotations": [_heading(titles[at])]},
        )
        for at in steps
    ]
    _lay_out(figure, maps, layers, labels, titles[first])
    _add_slider(figure, steps, first)
    return figure


def _hover(names: _Words) -> str:
    """What a cell says."""
    return (
        "layer %{y}, label %{x}<br>"
        f"{names.loss} %{{customdata[0]:.4f}}{names.unit} (shuffled labels %{{customdata[2]:.4f}})<br>"
        f"{names.score} %{{customdata[1]:.4f}} (shuffled labels %{{customdata[3]:.4f}})<br>"
        "mean label %{customdata[4]:.2f}, n = %{customdata[5]:,} test examples<extra></extra>"
    )


def _loss_map(rows: pd.DataFrame, names: _Words) -> _Map:
    """The map of the test loss, over the range it takes at any step."""
    values = np.maximum(column(select(rows, fitted=True), "test_loss"), _LOSS_FLOOR)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.1, 1.0)
    return _Map(names.loss + names.unit, "test_loss", "Viridis_r", low, max(high, 1.05 * low), True)


def _second_map(rows: pd.DataFrame, beside: Beside, names: _Words) -> _Map:
    """The map on the right."""
    if beside == "shuffled":
        loss = _loss_map(rows, names)
        values = column(select(rows, fitted=True), "shuffled_test_loss")
        high = max([loss.high, *values[np.isfinite(values)].tolist()])
        return loss._replace(title="shuffled-label control" + names.unit, column="shuffled_test_loss", high=high)
    values = column(select(rows, fitted=True), "test_score")
    # R2 has no lower bound; below 0 the mean would do better.
    low = max(min([0.99, *values[np.isfinite(values)].tolist()]), 0.0)
    return _Map(names.score, "test_score", "Viridis", low, 1.0, False, names.number)


def _traces(
    rows: pd.DataFrame, maps: tuple[_Map, _Map], hover_text: str, layers: list[int], labels: list[int]
) -> list[go.Heatmap]:
    """Two traces a map: the fitted cells, and the crosses where there is no probe."""
    grid = pd.MultiIndex.from_product([layers, labels])
    cells = rows.set_index(["layer", "label"]).reindex(grid)
    shape = (len(layers), len(labels))
    fitted = np.asarray(cells["fitted"] == True, dtype=bool).reshape(shape)  # noqa: E712  a cell without a row is NaN
    hover = np.stack([column(cells, name) for name in _HOVER_COLUMNS], axis=-1).reshape(*shape, -1)
    traces = []
    for suffix, one in zip(("", "2"), maps, strict=True):
        values = np.where(fitted, column(cells, one.column).reshape(shape), np.nan)
        if one.logarithmic:
            values = np.log10(np.maximum(values, _LOSS_FLOOR))
        place: dict[str, Any] = {"x": labels, "y": layers, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        place |= {"xgap": 1, "ygap": 1}
        crosses = go.Heatmap(
            **place,
            z=np.where(fitted, np.array(None), 0).tolist(),
            text=np.where(fitted, "", "×").tolist(),
            texttemplate="%{text}",
            textfont={"size": FONT_SIZE + 2},
            colorscale=[[0, GREY], [1, GREY]],
            opacity=0.45,
            showscale=False,
            hovertemplate="layer %{y}, label %{x}<br>no probe fitted: the label does not vary<extra></extra>",
        )
        colors = go.Heatmap(
            **place,
            z=_short(values),
            customdata=_short(hover),
            coloraxis=f"coloraxis{suffix}",
            hovertemplate=hover_text,
        )
        traces += [colors, crosses]
    return traces


def _short(values: Float[np.ndarray, ...]) -> list[Any]:
    """Nested lists of the values, rounded to what a colour and a hover text need; NaN becomes null."""
    rounded = [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.ravel().tolist()]
    return np.array(rounded, dtype=object).reshape(values.shape).tolist()


def _title(rows: pd.DataFrame, feature: str) -> str:
    """Feature, step and compute."""
    step, flops = int(rows["step"].iloc[0]), float(rows["flops"].iloc[0])
    compute = f"{format_power(flops)} FLOPs" if step else "initial model"
    return f"<b>{words(feature)}</b>  step {step:,} · {compute}"


def _heading(title: str) -> dict[str, Any]:
    """The title as an annotation, which a frame can replace."""
    place = {
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "yref": "paper",
        "y": 1,
        "yanchor": "bottom",
        "yshift": 60,
    }
    return {"text": title, "font": {"size": FONT_SIZE + 1}, "showarrow": False, **place}


def _lay_out(figure: go.Figure, maps: tuple[_Map, _Map], layers: list[int], labels: list[int], title: str) -> None:
    """Axes, colour bars and title."""
    figure.update_layout(margin={"l": 52, "r": 20, "t": 92, "b": 104}, annotations=[_heading(title)])
    cells: dict[str, Any] = {"showgrid": False, "showline": False}
    for index, (one, domain) in enumerate(zip(maps, ((0.0, 0.48), (0.52, 1.0)), strict=True)):
        suffix = str(index + 1) if index else ""
        x = {"title": {"text": "label"}, "domain": domain, "anchor": f"y{suffix}"}
        y = {"anchor": f"x{suffix}", "dtick": math.ceil(len(layers) / 8)}
        # The second map has the first one's layers.
        y |= {"matches": "y", "showticklabels": False, "ticks": ""} if index else {"title": {"text": "layer"}}
        figure.update_layout(
            {
                f"xaxis{suffix}": {**cells, **x, "dtick": math.ceil(len(labels) / 12)},
                f"yaxis{suffix}": {**cells, **y},
                f"coloraxis{suffix}": _color_axis(one, domain),
            }
        )


def _color_axis(one: _Map, domain: tuple[float, float]) -> dict[str, Any]:
    """Colours of one map, the same at every step, with their bar above it."""
    bar: dict[str, Any] = {
        "orientation": "h",
        "x": domain[0],
        "xanchor": "left",
        "len": domain[1] - domain[0],
        "y": 1,
        "yanchor": "bottom",
        "ypad": 8,
        "xpad": 0,
        "thickness": 9,
        "outlinewidth": 0,
        "ticklen": 3,
        "tickfont": {"size": FONT_SIZE - 2},
        "title": {"text": one.title, "side": "top", "font": {"size": FONT_SIZE}},
    }
    limits = (one.low, one.high)
    if one.logarithmic:
        ticks, texts = log_ticks(one.low, one.high)
        bar |= {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": texts}
        limits = (math.log10(one.low), math.log10(one.high))
    else:
        bar |= {"tickformat": one.number, "nticks": 5}
    return {"colorscale": one.colorscale, "cmin": limits[0], "cmax": limits[1], "colorbar": bar}


def _add_slider(figure: go.Figure, steps: list[int], first: int) -> None:
    """A slider over the steps, and a button that plays them."""
    if len(steps) < 2:
        return
    at_once: dict[str, Any] = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": True},
        "transition": {"duration": 0},
    }
    play: dict[str, Any] = at_once | {"frame": {"duration": 160, "redraw": True}, "fromcurrent": False}
    slider_steps = [{"label": f"{step:,}", "method": "animate", "args": [[str(step)], at_once]} for step in steps]
    figure.update_layout(
        sliders=[
            {
                "active": steps.index(first),
                "steps": slider_steps,
                "x": 0.13,
                "len": 0.87,
                "xanchor": "left",
                "y": 0,
                "yanchor": "top",
                "pad": {"t": 56, "b": 0},
                "currentvalue": {"visible": False},
                "font": {"size": FONT_SIZE - 2},
                "ticklen": 4,
                "minorticklen": 2,
            }
        ],
        updatemenus=[
            {
                "type": "buttons",
                "showactive": False,
                "direction": "right",
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yanchor": "top",
                "pad": {"t": 50, "r": 0},
                "buttons": [
                    {"label": "▶", "method": "animate", "args": [None, play]},
                    {"label": "■", "method": "animate", "args": [[None], at_once]},
                ],
            }
        ],
    )
