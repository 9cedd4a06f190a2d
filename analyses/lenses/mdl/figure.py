"""How much a model's activations shorten the description of a feature's labels, over compute and by layer and label."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.maps import cells, color_bar, crosses, place_axis, place_text, place_words, places, require_rows
from qfl_interp.plots.panels import Legend, Panel, over_compute
from qfl_interp.plots.theme import (
    FONT_SIZE,
    GREY,
    PURPLE,
    SERIES,
    format_power,
    log_flops_axis,
    log_ticks,
    new_figure,
    short,
    words,
)
from qfl_interp.tables import column, distinct, groups, select

_CURVE_HEIGHT: Final = 190
_BETWEEN: Final = 140
_MAP_GAP: Final = 60
_MAP_COLUMNS: Final = 2
_KEY: Final = ("source", "model_seed", "step", "feature", "layer", "head", "label")


def mdl_figure(rows: pd.DataFrame) -> go.Figure:
    """Compression of each feature's labels over compute, and by layer and label at the last step.

    Compression is the uniform code's length over the online code's: 1 says that the activations tell nothing. The
    curve is the mean over labels of each label's best layer; the dotted line is the same of untrained models.

    Args:
        rows: Table "mdl"; labels that were not coded are left out of the means.

    Raises:
        ValueError: No row, several rows of one label, or no trained model after step 0.
    """
    require_rows(rows, "mdl", (), _KEY)
    features = [str(name) for name in distinct(rows, "feature")]
    best = {feature: _best(select(rows, feature=feature)) for feature in features}
    flops = np.concatenate([one.flops for one in best.values()])
    if not len(flops):
        raise ValueError(
            "the mdl table must have rows of a trained model with more than 0 FLOPs, got none. Run it at a later step."
        )
    last = max(int(step) for step in distinct(select(rows, source="trained"), "step"))
    shown = select(rows, source="trained", step=last)
    map_height = max(24 * len(places(shown)), 80)
    n_map_rows = math.ceil(len(features) / _MAP_COLUMNS)
    inner = _CURVE_HEIGHT + _BETWEEN + n_map_rows * map_height + (n_map_rows - 1) * _MAP_GAP
    margin = {"l": 62, "r": 18, "t": 44, "b": 56}
    figure = new_figure("mdl", inner + margin["t"] + margin["b"])
    high = float(flops.max()) if flops.max() > flops.min() else 10 * float(flops.min())
    for index, feature in enumerate(features):
        color, symbol = SERIES[index % len(SERIES)]
        name = words(feature)
        figure.add_traces(_curves(best[feature], (float(flops.min()), high), name, color, symbol, f"mdl: {feature}"))
    line = {"color": GREY, "width": 1.4, "dash": "dot"}
    figure.add_scatter(x=[None], y=[None], mode="lines", name="untrained models", line=line, showlegend=True)
    highest = max(float(np.nanmax([1.0, one.untrained, *one.compression])) for one in best.values())
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
    y_axis = {"domain": [1 - _CURVE_HEIGHT / inner, 1], "title": {"text": "compression"}, "range": [0, 1.06 * highest]}
    x_axis = log_flops_axis(float(flops.min()), high) | {"anchor": "y"}
    figure.update_layout(margin=margin, legend=legend, xaxis=x_axis, yaxis=y_axis, coloraxis=_color_axis(shown, inner))
    for number, feature in enumerate(features):
        _add_map(figure, number, select(shown, feature=feature), (inner, map_height), len(features))
    compute = f"{format_power(float(shown['flops'].iloc[0]))} FLOPs" if last else "initial model"
    at = {"xref": "paper", "yref": "paper", "x": 0, "xanchor": "left", "yanchor": "bottom"}
    y = 1 - (_CURVE_HEIGHT + _BETWEEN) / inner
    figure.add_annotation(text=f"<b>By layer and label</b>  step {last:,} · {compute}", y=y, yshift=38, **at)
    return figure


class _Best(NamedTuple):
    """One feature's compression over compute, at the best layer of each label.

    Attributes:
        step: Of the trained model.
        flops: At those steps, above 0.
        compression: Mean over labels.
        n_labels: Labels in the mean.
        untrained: The same of untrained models, their mean; NaN where there is none.
    """

    step: np.ndarray
    flops: np.ndarray
    compression: np.ndarray
    n_labels: np.ndarray
    untrained: float


def _best(rows: pd.DataFrame) -> _Best:
    """One feature's curve."""
    coded = rows.dropna(subset=["compression"])
    trained = [(step, _mean_of_best(part), part) for step, part in groups(over_compute(_of(coded, "trained")), "step")]
    untrained = [_mean_of_best(part) for _, part in groups(_of(coded, "untrained"), "model_seed")]
    return _Best(
        np.array([step for step, _, _ in trained], dtype=int),
        np.array([part["flops"].iloc[0] for _, _, part in trained], dtype=float),
        np.array([mean for _, mean, _ in trained]),
        np.array([len(distinct(part, "label")) for _, _, part in trained], dtype=int),
        float(np.mean(untrained)) if untrained else math.nan,
    )


def _of(rows: pd.DataFrame, source: str) -> pd.DataFrame:
    """The rows of trained or of untrained models, with their columns even where there is none."""
    return pd.DataFrame(rows.loc[rows["source"] == source])


def _mean_of_best(rows: pd.DataFrame) -> float:
    """Mean over labels of the compression at each label's best layer, of one model."""
    return float(np.mean([column(part, "compression").max() for _, part in groups(rows, "label")]))


def _curves(
    best: _Best, ends: tuple[float, float], name: str, color: str, symbol: str, group: str
) -> tuple[go.Scatter, go.Scatter]:
    """A feature's curve and, dotted, the level of untrained models."""
    untrained = go.Scatter(
        x=list(ends),
        y=[best.untrained] * 2,
        mode="lines",
        name=f"{name}, untrained models",
        line={"color": color, "width": 1.4, "dash": "dot"},
        opacity=0.65,
        legendgroup=group,
        showlegend=False,
        hoverinfo="skip",
    )
    curve = go.Scatter(
        x=best.flops,
        y=best.compression,
        customdata=np.stack([best.step, np.full(len(best.step), best.untrained), best.n_labels], axis=1),
        mode="lines+markers",
        name=name,
        line={"color": color, "width": 2},
        marker={"symbol": symbol, "size": 5.5, "color": color},
        legendgroup=group,
        showlegend=True,
        hovertemplate="%{y:.2f} times shorter (untrained %{customdata[1]:.2f}) · n = %{customdata[2]} labels · "
        f"step %{{customdata[0]:,}}<extra>{name}</extra>",
    )
    return untrained, curve


def _add_map(figure: go.Figure, number: int, rows: pd.DataFrame, sizes: tuple[int, int], n_maps: int) -> None:
    """One feature's layer x label map."""
    inner, height = sizes
    found, labels = places(rows), sorted(int(label) for label in distinct(rows, "label"))
    keys = [(layer, head, label) for layer, head in found for label in labels]
    grid, shape = cells(rows, ("layer", "head", "label"), keys), (len(found), len(labels))
    suffix = str(number + 2)
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    beside = ("compression", "codelength_bits", "uniform_bits", "n_train")
    y = [place_text(place) for place in found]
    figure.add_trace(crosses(labels, y, axes, "layer %{y}, label %{x}<br>not coded: the label does not vary"))
    figure.add_trace(
        go.Heatmap(
            **axes,
            name=str(rows["feature"].iloc[0]),
            x=labels,
            y=y,
            z=short(np.log10(column(grid, "compression")).reshape(shape)),
            customdata=short(np.stack([column(grid, one) for one in beside], axis=-1).reshape(*shape, -1)),
            text=[[f"{place_words(place)}, label {label}" for label in labels] for place in found],
            xgap=1,
            ygap=1,
            hoverongaps=False,
            coloraxis="coloraxis",
            hovertemplate="%{text}<br><b>%{customdata[0]:.2f}</b> times shorter: %{customdata[1]:,.0f} bits, "
            "uniform code %{customdata[2]:,.0f} bits<br>n = %{customdata[3]:,} labels sent<extra></extra>",
        )
    )
    row, place = divmod(number, _MAP_COLUMNS)
    across = min(n_maps, _MAP_COLUMNS)
    width = (1 - 0.07 * (across - 1)) / across
    left = place * (width + 0.07)
    top = inner - _CURVE_HEIGHT - _BETWEEN - row * (height + _MAP_GAP)
    x_axis = {
        "domain": [left, left + width],
        "anchor": f"y{suffix}",
        "title": {"text": "label"},
        "dtick": math.ceil(len(labels) / 12),
        "showgrid": False,
        "showline": False,
    }
    y_axis = place_axis(found) | {"domain": [max((top - height) / inner, 0), top / inner], "anchor": f"x{suffix}"}
    figure.update_layout({f"xaxis{suffix}": x_axis, f"yaxis{suffix}": y_axis})
    at = {"xref": "paper", "yref": "paper", "x": left, "xanchor": "left", "y": top / inner, "yanchor": "bottom"}
    figure.add_annotation(text=words(rows["feature"].iloc[0]), font={"size": FONT_SIZE}, yshift=2, **at)


def _color_axis(rows: pd.DataFrame, inner: int) -> dict[str, Any]:
    """Logarithmic colours from no compression to the highest."""
    values = column(rows, "compression")
    high = max(float(values[np.isfinite(values)].max(initial=1.0)), 1.2)
    ticks, texts = log_ticks(1.0, high)
    bar = color_bar("compression", 0.6, 1.0) | {"y": 1 - (_CURVE_HEIGHT + _BETWEEN) / inner, "ypad": 28}
    bar |= {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": texts}
    return {"colorscale": "Viridis", "cmin": 0.0, "cmax": math.log10(high), "colorbar": bar}


def mdl_panel(rows: pd.DataFrame, feature: str) -> Panel:
    """A feature's compression over compute, beside that of untrained models.

    Args:
        rows: Table "mdl".
        feature: Which feature's rows.

    Raises:
        ValueError: There is no row of the feature, or several of one label.
    """
    chosen = select(rows, feature=feature)
    require_rows(chosen, "mdl", (), _KEY)
    best = _best(chosen)
    ends = (float(best.flops.min()), float(best.flops.max())) if len(best.flops) else (math.nan, math.nan)
    untrained, curve = _curves(best, ends, "trained model", PURPLE, "circle", "mdl")
    # Legend entries of one group would stand below each other.
    untrained.update(name="untrained models", line={"color": GREY}, showlegend=True, legendgroup="mdl: untrained")
    values = np.array([1.0, best.untrained, *best.compression])
    return Panel(
        title=f"Description length of {words(feature)}",
        subtitle="mean over labels of each label's best layer",
        traces=(untrained, curve),
        y_title="compression",
        y_range=(0.0, 1.06 * float(values[np.isfinite(values)].max())),
        height=120,
        legend=Legend("mdl"),
    )
