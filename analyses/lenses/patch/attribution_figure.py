"""How well the gradient's estimate of a patch agrees with the patch itself."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.lenses.patch.maps import COMPONENTS
from qfl_interp.plots.maps import place_words, require_rows
from qfl_interp.plots.slider import add_steps, bottom_margin, shown_steps, step_title
from qfl_interp.plots.theme import GREY, SERIES, new_figure, short, visible, words
from qfl_interp.tables import column, distinct, records, select

_SIDE: Final = 360
_ABOVE: Final = 16


def attribution_figure(rows: pd.DataFrame, *, step: int | None = None) -> go.Figure:
    """Each patch's effect on the logit difference by the gradient against its exact one, a point a place and position.

    On the dotted line both agree. Pearson's r of each component, column `attribution_r`, stands in the legend. A
    slider changes the step.

    Args:
        rows: Table "patch" of one feature and label; rows without an attribution are left out.
        step: The step shown first; None for the last.

    Raises:
        ValueError: No row with an attribution, several features or labels, or an unknown step.
    """
    require_rows(rows, "patch", ("feature", "label"), ("step", "component", "layer", "head", "position"))
    known = np.isfinite(column(rows, "attribution")) & np.isfinite(column(rows, "logit_diff_normalised"))
    if not known.any():
        raise ValueError(
            f"the patch table must have attributions to compare, got none in {len(rows)} rows. "
            "Run the patching analysis with attribution, at a step where clean and corrupted runs differ."
        )
    rows = pd.DataFrame(rows.loc[known])
    steps, first = shown_steps(rows, step, "patch")
    components = [str(name) for name in distinct(rows, "component")]
    contents = {at: [_points(select(rows, step=at), name) for name in components] for at in steps}
    feature, label = rows["feature"].iloc[0], rows["label"].iloc[0]
    title = f"{words(feature)}, label {label}"
    titles = {at: step_title(select(rows, step=at), title) for at in steps}
    margin = {"l": 62, "r": 18, "t": 50, "b": bottom_margin(steps)}
    figure = new_figure(f"attribution_{feature}", _SIDE + margin["t"] + margin["b"])
    values = np.concatenate([column(rows, name) for name in ("attribution", "logit_diff_normalised")])
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 1.0)
    room = 0.05 * (high - low)
    ends = [low - room, high + room]
    line = {"color": GREY, "width": 1.2, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False, name="y = x")
    for index, (name, fields) in enumerate(zip(components, contents[first], strict=True)):
        figure.add_trace(_trace(name, fields, index))
    span = ends[1] - ends[0]
    spacing = 0.2 if span < 2 else 0.5 if span < 5 else float(f"{span / 8:.1g}")
    axis = {"range": ends, "constrain": "domain", "dtick": spacing}
    figure.update_layout(
        margin=margin,
        legend={"x": 1, "xanchor": "right", "y": 1, "title": {"text": "component, Pearson's r"}},
        xaxis=axis | {"constraintoward": "left", "title": {"text": "exact patch, logit difference (normalised)"}},
        yaxis=axis | {"title": {"text": "by gradient (attribution patching)"}, "scaleanchor": "x"},
    )
    flat = {at: [go.Scatter(**fields) for fields in contents[at]] for at in steps}
    add_steps(figure, flat, range(1, 1 + len(components)), titles, first, above=_ABOVE)
    return figure


def _points(rows: pd.DataFrame, component: str) -> dict[str, Any]:
    """One component's points at one step; none where it was not patched there."""
    of_component = select(rows, component=component)
    r = float(of_component["attribution_r"].iloc[0]) if len(of_component) else math.nan
    names = [
        f"“{visible(row['token'])}” at position {row['position']}, {place_words((row['layer'], row['head']))}"
        for row in records(of_component)
    ]
    return {
        "x": short(column(of_component, "logit_diff_normalised")) if names else [None],
        "y": short(column(of_component, "attribution")) if names else [None],
        "text": names,
        "name": component + (f", r = {r:.3f}" if math.isfinite(r) else ""),
    }


def _trace(component: str, fields: dict[str, Any], index: int) -> go.Scatter:
    """A component's points in its colour."""
    color, symbol = SERIES[index % len(SERIES)]
    return go.Scatter(
        **fields,
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 7, "opacity": 0.75, "line": {"width": 0}},
        hovertemplate="%{text}<br>exact <b>%{x:.3f}</b>, by gradient <b>%{y:.3f}</b>"
        f"<extra>{COMPONENTS.get(component, component)}</extra>",
        showlegend=True,
    )
