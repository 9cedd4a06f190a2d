"""The carry-forward test: probes fitted at one step, evaluated at every other."""

from __future__ import annotations

import math
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.analyses.lenses.probe.views import SCORES, View
from qfl_interp.plots.maps import BARE, CellMap, axis_title, choices, require_rows
from qfl_interp.plots.slider import heading, heading_height
from qfl_interp.plots.theme import FONT_SIZE, GREY, VERMILLION, new_figure, page_width, words
from qfl_interp.tables import column, distinct

_SIDE: Final = 510
_MOST_TICKS: Final = 14
_LOSS_FLOOR: Final = 1e-6
_BESIDE: Final = ("test_loss", "refit_loss", "test_score", "cosine", "n_labels")
_HOVER: Final = (
    "%{text}<br>test loss <b>%{customdata[0]:.4f}</b> (fitted there: %{customdata[1]:.4f})<br>"
    "test score <b>%{customdata[2]:.4f}</b><br>|cosine| with the directions fitted there: "
    "<b>%{customdata[3]:.3f}</b><br>n = %{customdata[4]} labels"
)


def transfer_figure(rows: pd.DataFrame, *, step: int | None = None) -> go.Figure:
    """Loss, score and cosine of probes fitted at one step (rows) and evaluated at another (columns).

    The diagonal is outlined: probes at the step they were fitted at. Brighter is better in every view; the loss's
    colour is logarithmic. Buttons change the view.

    Args:
        rows: Table "transfer" of one feature.
        step: A step whose row and column are marked; None for none.

    Raises:
        ValueError: No row, several features or metrics, or several rows of one pair of steps.
    """
    require_rows(rows, "transfer", ("feature", "metric"), ("fit_step", "eval_step"))
    fitted, evaluated = (sorted(int(v) for v in distinct(rows, name)) for name in ("fit_step", "eval_step"))
    names = SCORES[str(rows["metric"].iloc[0])]
    views = (
        View("test_loss", names.loss_title, floor=_LOSS_FLOOR),
        View("test_score", names.score, names.number),
        View("cosine", "mean |cosine| between the two steps' directions", ".2f"),
    )
    # Steps stand side by side, however far apart they are.
    places = list(range(len(evaluated))), list(range(len(fitted)))
    cells = CellMap(("fit_step", "eval_step"), [(step,) for step in fitted], evaluated, places[1])
    names = [[f"fitted at step {fit:,}, evaluated at step {at:,}" for at in evaluated] for fit in fitted]
    feature = str(rows["feature"].iloc[0])
    margin = {"l": 70, "r": 18, "t": 112, "b": 60}
    # The map is square: a higher plot area than wide would part it from the title of its axis.
    side = min(_SIDE, page_width() - margin["l"] - margin["r"])
    n_labels = int(column(rows, "n_labels").max())
    title = f"<b>{words(feature)}</b>  probes carried from step to step · {n_labels} labels"
    margin["t"] += heading_height(title)
    figure = new_figure(f"transfer_{feature}", side, margin)
    figure.add_trace(cells.crosses("not evaluated").update(x=places[0]))
    for view in views:
        look = {"x": places[0], "xgap": 0.5, "ygap": 0.5, "text": names, "visible": view is views[0]}
        look |= {"name": view.column, "floor": view.floor}
        figure.add_trace(cells.heat(rows, view.column, _HOVER, beside=_BESIDE, **look))
    axes = [view.axis(view.ends(rows), (0.0, 0.88)) for view in views]
    updates = [
        [{"visible": [True, *(other is view for other in views)]}, {"coloraxis": axis}]
        for view, axis in zip(views, axes, strict=True)
    ]
    figure.update_layout(
        annotations=[heading(title, 70), axis_title("evaluated at step", 0)],
        coloraxis=axes[0],
        shapes=_outline(fitted, evaluated) + _marked(fitted, evaluated, step),
        updatemenus=[choices(["loss", "score", "cosine"], updates, 62)],
        xaxis=_step_axis(evaluated, "") | {"constrain": "domain", "constraintoward": "left"},
        yaxis=_step_axis(fitted, "fitted at step") | {"constrain": "domain", "scaleanchor": "x"},
    )
    return figure


def _step_axis(steps: list[int], title: str) -> dict[str, Any]:
    """Steps side by side; where there are many, only some are written."""
    shown = list(range(0, len(steps), math.ceil(len(steps) / _MOST_TICKS)))
    ticks = {"tickvals": shown, "ticktext": [f"{steps[at]:,}" for at in shown], "tickfont": {"size": FONT_SIZE - 2}}
    return {"range": [-0.5, len(steps) - 0.5], "title": {"text": title}, **ticks, **BARE}


def _marked(fitted: list[int], evaluated: list[int], step: int | None) -> list[dict[str, Any]]:
    """Frames around the row and the column of a step."""
    look = {"type": "rect", "name": "step", "line": {"color": VERMILLION, "width": 2}}
    wide, high = (-0.5, len(evaluated) - 0.5), (-0.5, len(fitted) - 0.5)
    shapes = []
    for steps, along in ((fitted, "y"), (evaluated, "x")):
        if step in steps:
            own = steps.index(step) - 0.5, steps.index(step) + 0.5
            (x0, x1), (y0, y1) = (own, high) if along == "x" else (wide, own)
            shapes.append({**look, "x0": x0, "x1": x1, "y0": y0, "y1": y1})
    return shapes


def _outline(fitted: list[int], evaluated: list[int]) -> list[dict[str, Any]]:
    """One path around every cell on the diagonal."""
    cells_on = [(evaluated.index(step), row) for row, step in enumerate(fitted) if step in evaluated]
    squares = [
        f"M{x - 0.5},{y - 0.5}L{x + 0.5},{y - 0.5}L{x + 0.5},{y + 0.5}L{x - 0.5},{y + 0.5}Z" for x, y in cells_on
    ]
    line = {"color": GREY, "width": 1.5}
    return [{"type": "path", "name": "diagonal", "path": "".join(squares), "line": line}] if squares else []
