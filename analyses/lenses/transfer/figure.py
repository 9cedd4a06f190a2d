"""The carry-forward test: probes fitted at one step, evaluated at every other."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.maps import axis_title, cells, choices, color_bar, crosses, require_rows
from qfl_interp.plots.slider import heading
from qfl_interp.plots.theme import FONT_SIZE, GREY, log_ticks, new_figure, short, words
from qfl_interp.tables import column, distinct

_SIDE: Final = 510
_MOST_TICKS: Final = 14
_LOSS_FLOOR: Final = 1e-6
_SCORES: Final = {
    "log_loss": ("test log loss (nats)", "test accuracy", ".0%"),
    "mse": ("test mean squared error", "test R²", ".2f"),
}
_HOVER: Final = ("test_loss", "refit_loss", "test_score", "cosine", "n_labels")


class _View(NamedTuple):
    """One of the matrices: its column, what its button and its colour bar say, and its colours."""

    column: str
    button: str
    title: str
    colorscale: str
    number: str
    logarithmic: bool = False


def transfer_figure(rows: pd.DataFrame) -> go.Figure:
    """Loss, score and cosine of probes fitted at one step (rows) and evaluated at another (columns).

    The diagonal is outlined: probes at the step they were fitted at. Brighter is better in every view; the loss's
    colour is logarithmic. Buttons change the view.

    Args:
        rows: Table "transfer" of one feature.

    Raises:
        ValueError: No row, several features or metrics, or several rows of one pair of steps.
    """
    require_rows(rows, "transfer", ("feature", "metric"), ("fit_step", "eval_step"))
    fitted, evaluated = (sorted(int(v) for v in distinct(rows, name)) for name in ("fit_step", "eval_step"))
    loss, score, number = _SCORES[str(rows["metric"].iloc[0])]
    views = (
        _View("test_loss", "loss", loss, "Viridis_r", ".4f", True),
        _View("test_score", "score", score, "Viridis", number),
        _View("cosine", "cosine", "mean |cosine| between the two steps' directions", "Viridis", ".2f"),
    )
    grid = cells(rows, ("fit_step", "eval_step"), [(fit, at) for fit in fitted for at in evaluated])
    feature = str(rows["feature"].iloc[0])
    figure = new_figure(f"transfer_{feature}", _SIDE + 172)
    x, y = list(range(len(evaluated))), list(range(len(fitted)))
    figure.add_trace(crosses(x, y, {"xaxis": "x", "yaxis": "y"}, "not evaluated"))
    figure.add_traces([_matrix(view, grid, fitted, evaluated, view is views[0]) for view in views])
    axes = [_color_axis(view, column(rows, view.column)) for view in views]
    n_labels = int(column(rows, "n_labels").max())
    title = f"<b>{words(feature)}</b>  probes carried from step to step · {n_labels} labels"
    figure.update_layout(
        margin={"l": 70, "r": 18, "t": 112, "b": 60},
        annotations=[heading(title, 70), axis_title("evaluated at step", 0)],
        coloraxis=axes[0],
        shapes=_outline(fitted, evaluated),
        updatemenus=[_buttons(views, axes)],
        xaxis=_step_axis(evaluated, "") | {"constrain": "domain", "constraintoward": "left"},
        yaxis=_step_axis(fitted, "fitted at step") | {"constrain": "domain", "scaleanchor": "x"},
    )
    return figure


def _matrix(view: _View, grid: pd.DataFrame, fitted: list[int], evaluated: list[int], shown: bool) -> go.Heatmap:
    """One view's cells."""
    shape = (len(fitted), len(evaluated))
    values = column(grid, view.column)
    hover = np.stack([column(grid, name) for name in _HOVER], axis=-1).reshape(*shape, -1)
    return go.Heatmap(
        name=view.column,
        z=short((np.log10(np.maximum(values, _LOSS_FLOOR)) if view.logarithmic else values).reshape(shape)),
        customdata=short(hover),
        text=[[f"fitted at step {fit:,}, evaluated at step {at:,}" for at in evaluated] for fit in fitted],
        xgap=0.5,
        ygap=0.5,
        hoverongaps=False,
        coloraxis="coloraxis",
        visible=shown,
        hovertemplate="%{text}<br>test loss <b>%{customdata[0]:.4f}</b> (fitted there: %{customdata[1]:.4f})<br>"
        "test score <b>%{customdata[2]:.4f}</b><br>|cosine| with the directions fitted there: "
        "<b>%{customdata[3]:.3f}</b><br>n = %{customdata[4]} labels<extra></extra>",
    )


def _color_axis(view: _View, values: np.ndarray) -> dict[str, Any]:
    """Colours of a view and their bar."""
    known = values[np.isfinite(values)]
    bar = color_bar(view.title, 0.0, 0.88)
    if view.logarithmic:
        low = max(float(known.min(initial=np.inf)), _LOSS_FLOOR) if len(known) else 0.1
        high = max(float(known.max(initial=0.0)), 1.05 * low)
        ticks, texts = log_ticks(low, high)
        bar |= {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": texts, "tickformat": None}
        low, high = math.log10(low), math.log10(high)
    else:
        # R2 has no lower bound; below 0 the mean would do better.
        low, high = (max(min(float(known.min(initial=1.0)), 0.99), 0.0), 1.0) if view.column == "test_score" else (0, 1)
        bar |= {"tickformat": view.number, "nticks": 5, "tickvals": None, "ticktext": None}
    return {"colorscale": view.colorscale, "cmin": low, "cmax": high, "colorbar": bar}


def _buttons(views: tuple[_View, ...], axes: list[dict[str, Any]]) -> dict[str, Any]:
    """One button a view, which also changes the colours."""
    updates = [
        [{"visible": [True, *(other is view for other in views)]}, {"coloraxis": axis}]
        for view, axis in zip(views, axes, strict=True)
    ]
    return choices([view.button for view in views], updates, 62)


def _step_axis(steps: list[int], title: str) -> dict[str, Any]:
    """Steps side by side, however far apart; where there are many, only some are written."""
    stride = math.ceil(len(steps) / _MOST_TICKS)
    shown = list(range(0, len(steps), stride))
    return {
        "range": [-0.5, len(steps) - 0.5],
        "tickvals": shown,
        "ticktext": [f"{steps[at]:,}" for at in shown],
        "tickfont": {"size": FONT_SIZE - 2},
        "title": {"text": title},
        "showgrid": False,
        "showline": False,
    }


def _outline(fitted: list[int], evaluated: list[int]) -> list[dict[str, Any]]:
    """One path around every cell on the diagonal."""
    cells_on = [(evaluated.index(step), row) for row, step in enumerate(fitted) if step in evaluated]
    squares = [
        f"M{x - 0.5},{y - 0.5}L{x + 0.5},{y - 0.5}L{x + 0.5},{y + 0.5}L{x - 0.5},{y + 0.5}Z" for x, y in cells_on
    ]
    line = {"color": GREY, "width": 1.5}
    return [{"type": "path", "name": "diagonal", "path": "".join(squares), "line": line}] if squares else []
