"""What a panel is drawn with: curves of a table with their hover text, levels, whiskers, and the range they need.

How far training was, which is what they are drawn over, `training_axis` decides for each table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from qfl_interp.plots.axes import TRAINING_AXES, training_axis
from qfl_interp.plots.theme import GREY
from qfl_interp.tables import column

# Losses below this are drawn at this level on a log axis.
LOSS_FLOOR: Final = 1e-12
# How a hover text ends in which the step is customdata[0].
STEP: Final = "step %{customdata[0]:,}"


def over_training(table: pd.DataFrame) -> pd.DataFrame:
    """Rows a log axis can show, those of step 0 left out, in the order of training.

    Columns of axes that are known in part are left out too: a part of the rows is over what all of them are.
    """
    axis = training_axis(table)
    unknown = [one.column for one in TRAINING_AXES[: TRAINING_AXES.index(axis)] if one.column in table]
    ordered = table.iloc[np.argsort(column(table, axis.column), kind="stable")].drop(columns=unknown)
    return ordered.iloc[int(np.sum(column(ordered, axis.column) <= 0)) :]


def places(table: pd.DataFrame) -> Float[np.ndarray, " row"]:
    """Where each row stands on the axis that the table is drawn over."""
    return column(table, training_axis(table).column)


def curve(
    rows: pd.DataFrame,
    y: str,
    name: str,
    color: str,
    *,
    x: str | None = None,
    hover: str | None = "",
    beside: Sequence[str] = ("step",),
    interval: tuple[float, int] | None = None,
    floor: float | None = None,
    width: float = 2,
    dash: str | None = None,
    size: float | None = None,
    symbol: str | None = None,
    **more: Any,
) -> go.Scatter:
    """A column of a table as a line, with points where they have a size.

    Args:
        rows: A row a point, in the order in which they are joined.
        y: The column that is drawn.
        name: In the legend, and behind the hover text.
        color: Hex.
        x: The column on the x axis; by default how far training was (`training_axis`).
        hover: Template of the hover text, in which `beside` are customdata[0], [1], ...; empty: the mouse passes over;
            None: plotly's own.
        beside: Further columns for the hover text.
        interval: Thickness of the whiskers from column `y`_low to `y`_high and width of their ends; None for none.
        floor: Values below are drawn at this level.
        width: Of the line, in pixels; 0 leaves it out.
        dash: Plotly's dash.
        size: Of the points, in pixels; None for a line alone.
        symbol: Plotly's marker symbol.
        **more: Further fields of the trace; `legendgroup` is the name by default.
    """
    values = column(rows, y)
    over = training_axis(rows).column if x is None else x
    fields: dict[str, Any] = {
        "x": column(rows, over),
        "y": values if floor is None else np.maximum(values, floor),
        "name": name,
        "mode": "+".join(part for part, on in (("lines", width), ("markers", size)) if on),
        "legendgroup": name,
    }
    if x is None and len(rows):
        fields["meta"] = {"over": over}  # `Panel.axis` reads it: a label cannot say other than what is drawn
    if width:
        fields["line"] = {"color": color, "width": width, "dash": dash}
    if size:
        fields["marker"] = {"color": color, "size": size, "symbol": symbol}
    if interval:
        ends = column(rows, f"{y}_low"), column(rows, f"{y}_high")
        fields["error_y"] = whiskers(values, *ends, *interval) | {"color": color}
    if hover:
        extra = "" if "<extra>" in hover else f"<extra>{name}</extra>"
        fields |= {"customdata": rows[list(beside)].to_numpy(dtype=float), "hovertemplate": hover + extra}
    elif hover is not None:
        fields["hoverinfo"] = "skip"
    return go.Scatter(fields | more)


def level(
    x: Float[np.ndarray, " point"] | Sequence[float],
    value: float,
    name: str,
    color: str = GREY,
    *,
    width: float = 1.1,
    dash: str = "dot",
    hover: str = "",
    **more: Any,
) -> go.Scatter:
    """A horizontal line from the smallest to the largest x, which the legend does not list; nor the hover without text.

    Args:
        x: What the line reaches over.
        value: Its height.
        name: Of the trace.
        color: Hex.
        width: In pixels.
        dash: Plotly's dash.
        hover: Template of the hover text; empty: the mouse passes over.
        **more: Further fields of the trace.
    """
    line = {"color": color, "width": width, "dash": dash}
    fields = {"x": [float(np.min(x)), float(np.max(x))], "y": [value] * 2, "mode": "lines", "name": name, "line": line}
    said = {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    return go.Scatter(fields | said | {"showlegend": False} | more)


def legend_entry(name: str, *, group: str = "", **look: Any) -> go.Scatter:
    """A trace without data that stands in the legend for a whole group (`legendgroup`)."""
    empty = {"x": [None], "y": [None], "hoverinfo": "skip", "showlegend": True, "legendgroup": group or name}
    return go.Scatter({"name": name, "mode": "lines"} | empty | look)


def stem(
    x: float,
    y: float,
    floor: float,
    name: str,
    color: str,
    symbol: str,
    *,
    size: float,
    group: str,
    hover: str,
    **look: Any,
) -> go.Scatter:
    """A large marker on a curve with a dotted stem down to `floor`; `look` are further fields of the marker."""
    line = {"color": color, "width": 1.2, "dash": "dot"}
    marker = {"symbol": [symbol, "line-ns"], "size": [size, 0], "color": color, "line": {"width": 2}, **look}
    ends = {"x": [x, x], "y": [y, floor], "mode": "lines+markers", "name": name, "line": line, "marker": marker}
    return go.Scatter(
        {**ends, "legendgroup": group, "showlegend": False, "hovertemplate": f"{hover}<extra>{name}</extra>"}
    )


def whiskers(
    values: np.ndarray, low: np.ndarray, high: np.ndarray, thickness: float = 1.3, width: int = 4
) -> dict[str, Any]:
    """Plotly's error bars from an interval; none where the interval is unknown."""
    return {
        "type": "data",
        "symmetric": False,
        "array": np.nan_to_num(high - values),
        "arrayminus": np.nan_to_num(values - low),
        "thickness": thickness,
        "width": width,
    }


def finite(*values: Any) -> Float[np.ndarray, " value"]:
    """All finite numbers of some columns, arrays or curves (their y)."""
    parts = [np.ravel(np.asarray(getattr(one, "y", one), dtype=float)) for one in values]
    joined = np.concatenate(parts) if parts else np.empty(0)
    return joined[np.isfinite(joined)]


def value_range(
    *values: Any, include: Sequence[float] = (0.0,), below: float = 0.06, above: float = 0.06
) -> tuple[float, float]:
    """Lowest and highest of the finite values, with room.

    Args:
        *values: As for `finite`.
        include: Values that are shown in any case.
        below: Room below the lowest, as a share of what is between both ends; of 1 where they are equal.
        above: Room above the highest, likewise.
    """
    found = np.concatenate([finite(*values), np.asarray(include, dtype=float)])
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 0.0)
    span = (high - low) or 1.0
    return low - below * span, high + above * span


def log_range(*values: Any, room: float = 0.06, least: float = 1.03, floor: float = LOSS_FLOOR) -> tuple[float, float]:
    """Lowest and highest of the finite values for a log axis, with room; (0.1, 1.0) where there is none.

    Args:
        *values: As for `finite`.
        room: At both ends, as a share of the decades between them.
        least: The smallest factor that both ends are moved by.
        floor: Values below count as this one.
    """
    found = np.maximum(finite(*values), floor)
    if not len(found):
        return 0.1, 1.0
    low, high = float(found.min()), float(found.max())
    factor = max((high / low) ** room, least)
    return low / factor, high * factor
