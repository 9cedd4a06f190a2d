"""How much a model's activations shorten the description of a feature's labels, over compute and by layer and label."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import axis_layout, training_axis
from qfl_interp.plots.grid import Grid
from qfl_interp.plots.legend import ROW_HEIGHT, in_rows, legend_layout, legends_of
from qfl_interp.plots.lines import STEP, curve, finite, legend_entry, level, over_training, places, value_range
from qfl_interp.plots.maps import CellMap, axis_title, bar_span, color_axis, place_words, places_of, require_rows
from qfl_interp.plots.panels import Legend, Panel
from qfl_interp.plots.slider import step_title
from qfl_interp.plots.text import room, wrapped
from qfl_interp.plots.theme import (
    GREY,
    PURPLE,
    SERIES,
    VERMILLION,
    is_narrow,
    new_figure,
    page_width,
    stretch,
    text_at,
    words,
)
from qfl_interp.tables import column, distinct, groups, select

_CURVE_HEIGHT: Final = 190
_BETWEEN: Final = 140
_MAP_GAP: Final = 60
_RAISED: Final = 44
_TITLE: Final = "mean over labels of each label's best layer"
_UNTRAINED: Final = "untrained models"
_MAP_COLUMNS: Final = 2
_KEY: Final = ("source", "model_seed", "step", "feature", "layer", "head", "label")
_BESIDE: Final = ("compression", "codelength_bits", "uniform_bits", "n_train")
_HOVER: Final = (
    "%{text}<br><b>%{customdata[0]:.2f}</b> times shorter: %{customdata[1]:,.0f} bits, "
    "uniform code %{customdata[2]:,.0f} bits<br>n = %{customdata[3]:,} labels sent"
)


def mdl_figure(rows: pd.DataFrame, *, step: int | None = None) -> go.Figure:
    """Compression of each feature's labels over compute, and by layer and label at one step.

    Compression is the uniform code's length over the online code's: 1 says that the activations tell nothing. The
    curve is the mean over labels of each label's best layer; the dotted line is the same of untrained models.

    Args:
        rows: Table "mdl"; labels that were not coded are left out of the means.
        step: The step of the maps, marked on the curve; None for the last.

    Raises:
        ValueError: No row, several rows of one label, no trained model after step 0, or none at the step.
    """
    require_rows(rows, "mdl", (), _KEY)
    features = [str(name) for name in distinct(rows, "feature")]
    best = [_best(select(rows, feature=feature)) for feature in features]
    drawn = [one for one in best if len(one)]
    if not drawn:
        raise ValueError(
            "the mdl table must have rows of a trained model after step 0, got none. Run it at a later step."
        )
    every = pd.concat(drawn)
    over = places(every)
    steps = sorted(int(at) for at in distinct(select(rows, source="trained"), "step"))
    if step is not None and step not in steps:
        raise ValueError(f"the step of the maps must be in the mdl table, got {step}, which is not among {steps}.")
    shown = select(rows, source="trained", step=steps[-1] if step is None else step)
    # Of one step among others, the colours are those of all.
    high = float(finite((shown if step is None else select(rows, source="trained"))["compression"]).max(initial=1.2))
    # On narrow paper the maps' heading stands above the colour bar, not beside it.
    raised = _RAISED if is_narrow() else 0
    above = _CURVE_HEIGHT + _BETWEEN + raised
    height = max(24 * len(places_of(shown)), 80)
    columns = 1 if is_narrow() else _MAP_COLUMNS
    grid = Grid([height], len(features), columns, gap=0.07, foot=_MAP_GAP, above=above, first=2)
    margin = {"l": 62, "r": 18, "t": 30, "b": 56}
    names = [words(feature) for feature in features]
    rows_of = in_rows([*names, _UNTRAINED], page_width() - margin["l"] - margin["r"])
    listed = legends_of(rows_of)
    margin["t"] += ROW_HEIGHT * len(rows_of)
    figure = new_figure("mdl", grid.height, margin)
    ends = float(over.min()), float(over.max()) if over.max() > over.min() else 10 * float(over.min())
    for feature, one, (color, symbol) in zip(features, best, itertools.cycle(SERIES), strict=False):
        figure.add_traces(_curves(one, ends, words(feature), color, symbol, f"mdl: {feature}", listed[words(feature)]))
    line = {"color": GREY, "width": 1.4, "dash": "dot"}
    figure.add_trace(legend_entry(_UNTRAINED, line=line, legend=listed[_UNTRAINED]))
    y_range = value_range(*(one[["compression", "untrained"]] for one in best), include=(0.0, 1.0), below=0.0)
    figure.update_layout(
        legend_layout(listed, grid.height),
        xaxis=axis_layout(training_axis(every), *ends) | {"anchor": "y"},
        yaxis={"domain": [1 - _CURVE_HEIGHT / grid.height, 1], "title": {"text": "compression"}, "range": y_range},
    )
    if step:
        x = float(places(shown)[0])
        look = {"width": 1.6, "dash": "dash", "color": VERMILLION}
        figure.add_shape(stretch(x, x, line=look, xref="x", yref="y domain", name="step"))
    for index, feature in enumerate(features):
        rows, cell = select(shown, feature=feature), grid.cell(index)
        cells = CellMap.by_place(rows, "label").within(cell)
        names = [[f"{place_words(row[0], row[1])}, label {label}" for label in cells.across] for row in cells.down]
        figure.add_trace(cells.crosses("layer %{y}, label %{x}<br>not coded: the label does not vary"))
        figure.add_trace(cells.heat(rows, "compression", _HOVER, beside=_BESIDE, floor=0.0, text=names, name=feature))
        figure.update_layout(cells.layout(cell))
        figure.add_annotation(axis_title("label", cell.y_domain[0], x=sum(cell.x_domain) / 2))
        figure.add_annotation(cell.title(words(feature)))
    title = f"<b>Description length</b>  {_TITLE}" if not is_narrow() else "<b>Description length</b>"
    figure.add_annotation(text_at(title, yshift=ROW_HEIGHT * len(rows_of) + 6))
    y = 1 - above / grid.height
    bar = color_axis("compression", 1.0, high, log=True, span=bar_span(0.6, 1.0), y=y, ypad=28)
    figure.update_layout(coloraxis=bar)
    figure.add_annotation(
        text_at(wrapped(step_title(shown, "By layer and label"), room()), align="left", y=y, yshift=38 + raised)
    )
    return figure


def _best(rows: pd.DataFrame) -> pd.DataFrame:
    """One feature's curve after step 0: step and how far it is, compression, n_labels, the untrained models' mean."""
    coded = rows.dropna(subset=["compression"])
    untrained = [_mean_of_best(part) for _, part in groups(select(coded, source="untrained"), "model_seed")]
    after = over_training(select(coded, source="trained"))
    known = [name for name in ("step", "flops", "tokens") if name in after]
    trained = [
        part[known].iloc[0].to_dict() | {"compression": _mean_of_best(part), "n_labels": len(distinct(part, "label"))}
        for _, part in groups(after, "step")
    ]
    found = pd.DataFrame(trained, columns=[*known, "compression", "n_labels"])
    return found.assign(untrained=np.mean(untrained) if untrained else math.nan)


def _mean_of_best(rows: pd.DataFrame) -> float:
    """Mean over labels of the compression at each label's best layer, of one model."""
    return float(np.mean([column(part, "compression").max() for _, part in groups(rows, "label")]))


def _curves(
    best: pd.DataFrame,
    ends: Sequence[float] | np.ndarray,
    name: str,
    color: str,
    symbol: str,
    group: str,
    legend: str | None = None,
) -> tuple[go.Scatter, go.Scatter]:
    """A feature's curve and, dotted, the level of untrained models."""
    look: dict[str, Any] = {"width": 1.4, "opacity": 0.65, "legendgroup": group, "legend": legend}
    value = best["untrained"].iloc[0] if len(best) else math.nan
    untrained = level(ends, value, f"{name}, untrained models", color, **look)
    hover = "%{y:.2f} times shorter (untrained %{customdata[1]:.2f}) · n = %{customdata[2]} labels · " + STEP
    beside = ("step", "untrained", "n_labels")
    look = {"size": 5.5, "symbol": symbol, "legendgroup": group, "showlegend": True, "legend": legend}
    return untrained, curve(best, "compression", name, color, hover=hover, beside=beside, **look)


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
    ends = places(best) if len(best) else [math.nan]
    untrained, trained = _curves(best, ends, "trained model", PURPLE, "circle", "mdl")
    # Legend entries of one group would stand below each other.
    untrained.update(name="untrained models", line={"color": GREY}, showlegend=True, legendgroup="mdl: untrained")
    return Panel(
        title=f"Description length of {words(feature)}",
        subtitle=_TITLE,
        traces=(untrained, trained),
        y_title="compression",
        y_range=value_range(untrained, trained, include=(0.0, 1.0), below=0.0),
        height=120,
        legend=Legend("mdl"),
    )
