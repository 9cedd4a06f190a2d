"""Where a feature is decodable: a layer x label map of probe loss, with a slider over steps."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.maps import Place, cells, color_bar, place_axis, place_text, places, require_rows
from qfl_interp.plots.slider import add_steps, shown_steps, step_title
from qfl_interp.plots.theme import FONT_SIZE, GREY, log_ticks, new_figure, short, words
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
    steps, first = shown_steps(rows, step, "probe")
    require_rows(rows, "probe", (), ("step", "layer", "head", "label"))
    names = _WORDS[distinct(rows, "metric")[0]]
    maps = (_loss_map(rows, names), _second_map(rows, beside, names))
    hover = _hover(names)
    found, labels = places(rows), sorted(int(label) for label in distinct(rows, "label"))
    contents = {at: _traces(select(rows, step=at), maps, hover, found, labels) for at in steps}
    titles = {at: step_title(select(rows, step=at), words(feature)) for at in steps}
    figure = new_figure(f"probes_{feature}", 202 + min(max(26 * len(found), 110), 480))
    figure.add_traces(contents[first])
    # The crosses are the same at every step as a rule; a frame then holds the two maps only.
    moving = (0, 2) if all(contents[at][1].z == contents[first][1].z for at in steps) else (0, 1, 2, 3)
    drawn = {at: [contents[at][index] for index in moving] for at in steps}
    _lay_out(figure, maps, found, labels)
    add_steps(figure, drawn, moving, titles, first, above=60)
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
    rows: pd.DataFrame, maps: tuple[_Map, _Map], hover_text: str, found: list[Place], labels: list[int]
) -> list[go.Heatmap]:
    """Two traces a map: the fitted cells, and the crosses where there is no probe."""
    grid = cells(rows, ("layer", "head", "label"), [(*place, label) for place in found for label in labels])
    shape = (len(found), len(labels))
    fitted = np.asarray(grid["fitted"] == True, dtype=bool).reshape(shape)  # noqa: E712  a cell without a row is NaN
    hover = np.stack([column(grid, name) for name in _HOVER_COLUMNS], axis=-1).reshape(*shape, -1)
    traces = []
    for suffix, one in zip(("", "2"), maps, strict=True):
        values = np.where(fitted, column(grid, one.column).reshape(shape), np.nan)
        if one.logarithmic:
            values = np.log10(np.maximum(values, _LOSS_FLOOR))
        place: dict[str, Any] = {
            "x": labels,
            "y": [place_text(place) for place in found],
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
        }
        place |= {"xgap": 1, "ygap": 1}
        crossed = go.Heatmap(
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
            z=short(values),
            customdata=short(hover),
            coloraxis=f"coloraxis{suffix}",
            hovertemplate=hover_text,
        )
        traces += [colors, crossed]
    return traces


def _lay_out(figure: go.Figure, maps: tuple[_Map, _Map], found: list[Place], labels: list[int]) -> None:
    """Axes and colour bars."""
    figure.update_layout(margin={"l": 52, "r": 20, "t": 92, "b": 104})
    bare: dict[str, Any] = {"showgrid": False, "showline": False}
    for index, (one, domain) in enumerate(zip(maps, ((0.0, 0.48), (0.52, 1.0)), strict=True)):
        suffix = str(index + 1) if index else ""
        x = {"title": {"text": "label"}, "domain": domain, "anchor": f"y{suffix}"}
        y = place_axis(found) | {"anchor": f"x{suffix}"}
        # The second map has the first one's layers.
        if index:
            y |= {"matches": "y", "showticklabels": False, "ticks": "", "title": {"text": ""}}
        figure.update_layout(
            {
                f"xaxis{suffix}": {**bare, **x, "dtick": math.ceil(len(labels) / 12)},
                f"yaxis{suffix}": {**bare, **y},
                f"coloraxis{suffix}": _color_axis(one, domain),
            }
        )


def _color_axis(one: _Map, domain: tuple[float, float]) -> dict[str, Any]:
    """Colours of one map, the same at every step, with their bar above it."""
    bar = color_bar(one.title, *domain)
    limits = (one.low, one.high)
    if one.logarithmic:
        ticks, texts = log_ticks(one.low, one.high)
        bar |= {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": texts}
        limits = (math.log10(one.low), math.log10(one.high))
    else:
        bar |= {"tickformat": one.number, "nticks": 5}
    return {"colorscale": one.colorscale, "cmin": limits[0], "cmax": limits[1], "colorbar": bar}
