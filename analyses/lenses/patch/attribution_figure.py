"""How well the gradient's estimate of a patch agrees with the patch itself."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.legend import ROW_HEIGHT, in_rows, legend_layout, legends_of
from qfl_interp.plots.lines import value_range
from qfl_interp.plots.maps import place_words, require_rows
from qfl_interp.plots.slider import AXIS_HEIGHT, over_steps
from qfl_interp.plots.theme import GREY, SERIES, new_figure, page_width, short, visible, words
from qfl_interp.sites import site_words
from qfl_interp.tables import column, distinct, records, select

_SIDE: Final = 360


def attribution_figure(rows: pd.DataFrame, *, step: int | None = None, slider: bool = True) -> go.Figure:
    """Each patch's effect on the logit difference by the gradient against its exact one, a point a place and position.

    On the dotted line both agree. Pearson's r of each component, column `attribution_r`, stands in the legend, with the
    number of entries in which a patch changes something. A slider changes the step.

    Args:
        rows: Table "patch" of one feature and label; rows without an attribution are left out.
        step: The step shown first; None for the last.
        slider: Whether the figure goes through all steps; without it, it shows this one, in the colours of all.

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
    components = [str(name) for name in distinct(rows, "component")]
    feature, label = rows["feature"].iloc[0], rows["label"].iloc[0]
    # A step's numbers make a name longer.
    rows_of = in_rows([f"{name}, r = −0.000 over 10,000" for name in components], page_width() - 80)
    listed, above = legends_of(rows_of), ROW_HEIGHT * len(rows_of)
    margin = {"l": 62, "r": 18, "t": 44 + above, "b": AXIS_HEIGHT}
    side = min(_SIDE, page_width() - margin["l"] - margin["r"])
    figure = new_figure(f"attribution_{feature}", side, margin)
    ends = value_range(rows[["attribution", "logit_diff_normalised"]], include=(0.0, 1.0), below=0.05, above=0.05)
    line = {"color": GREY, "width": 1.2, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False, name="y = x")
    span = ends[1] - ends[0]
    spacing = 0.2 if span < 2 else 0.5 if span < 5 else float(f"{span / 8:.1g}")
    axis = {"range": ends, "constrain": "domain", "dtick": spacing}
    figure.update_layout(
        legend_layout(listed, side, traceorder="normal"),
        xaxis=axis | {"constraintoward": "left", "title": {"text": "exact patch, logit difference (normalised)"}},
        yaxis=axis | {"title": {"text": "by gradient (attribution patching)"}, "scaleanchor": "x"},
    )

    def draw(part: pd.DataFrame) -> list[go.Scatter]:
        return [
            _points(select(part, component=name), name, index).update(legend=legend)
            for index, (name, legend) in enumerate(zip(components, listed.values(), strict=True))
        ]

    title, how = f"{words(feature)}, label {label}", {"step": step, "slider": slider}
    return over_steps(figure, rows, draw, table="patch", title=title, above=above + 8, **how)


def _points(rows: pd.DataFrame, component: str, index: int) -> go.Scatter:
    """One component's points at one step; none where it was not patched there."""
    r = float(rows["attribution_r"].iloc[0]) if len(rows) else math.nan
    n = int(column(rows, "attribution_n")[0]) if len(rows) and "attribution_n" in rows else len(rows)
    color, symbol = SERIES[index % len(SERIES)]
    return go.Scatter(
        x=short(column(rows, "logit_diff_normalised")) or [None],
        y=short(column(rows, "attribution")) or [None],
        text=[
            f"“{visible(row['token'])}” at position {row['position']}, {place_words(row['layer'], row['head'])}"
            for row in records(rows)
        ],
        name=component + (f", r = {r:.3f} over {n}" if math.isfinite(r) else ""),
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 7, "opacity": 0.75, "line": {"width": 0}},
        hovertemplate="%{text}<br>exact <b>%{x:.3f}</b>, by gradient <b>%{y:.3f}</b>"
        f"<extra>{site_words(component)}</extra>",
        showlegend=True,
    )
