"""Where a feature is carried: patching maps of layer x position, and the gradient's estimate beside the exact value."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.lenses.patch.maps import COMPONENTS, PatchMap, cell_name, patch_map
from qfl_interp.plots.maps import axis_title, cells, choices, color_bar, crosses, place_axis, place_text, require_rows
from qfl_interp.plots.slider import AXIS_HEIGHT, add_steps, bottom_margin, shown_steps, step_title
from qfl_interp.plots.theme import DIVERGING, FONT_SIZE, new_figure, short, words
from qfl_interp.tables import column, distinct, select


class _Metric(NamedTuple):
    """A normalised metric: what its button says, and what else a cell tells.

    Attributes:
        name: In words.
        beside: Columns for the hover text, the patched run's own value first.
        number: How that value is written.
    """

    name: str
    beside: tuple[str, ...]
    number: str


_METRICS: Final = {
    "logit_diff_normalised": _Metric(
        "logit difference",
        (
            "logit_diff",
            "logit_diff_clean",
            "logit_diff_corrupted",
            "logit_diff_low",
            "logit_diff_high",
            "attribution",
        ),
        ":.3f",
    ),
    "loss_normalised": _Metric("loss", ("loss",), ":.4f"),
    "exact_normalised": _Metric("exact match", ("exact",), ":.1%"),
}
_KEY: Final = ("step", "component", "layer", "head", "position")
# Values beyond this share the last colour: a few cells that overshoot must not wash out the rest.
WIDEST: Final = 1.5
_ABOVE: Final = 66
_GAP: Final = 26
# A second line under the tokens, with the numbers of at most so many positions.
_NUMBERS: Final = 12
_MOST_NUMBERED: Final = 26
_NO_VALUE: Final = "not patched, or the clean and the corrupted run hardly differ in this metric"


def patch_figure(rows: pd.DataFrame, *, metric: str = "logit_diff_normalised", step: int | None = None) -> go.Figure:
    """How much of the clean run's answer each patch restores, by layer and position, a panel a component.

    0 is the corrupted run, 1 the clean one; below 0 a patch makes things worse. Colours are the same at every step.
    Buttons change the metric, a slider the step. Where every position was patched at once, columns are heads. Cells
    without a value are grey with a cross.

    Args:
        rows: Table "patch", of one feature and label.
        metric: The one shown first: "logit_diff_normalised", "loss_normalised" or "exact_normalised".
        step: The step shown first; None for the last.

    Raises:
        ValueError: No row, several features, labels or rows of a cell, an unknown metric or step.
    """
    require_rows(rows, "patch", ("feature", "label"), _KEY)
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {list(_METRICS)}, got {metric!r}. Choose one of them.")
    steps, first = shown_steps(rows, step, "patch")
    maps = [patch_map(select(rows, component=name)) for name in distinct(rows, "component")]
    contents = {at: _contents(select(rows, step=at), maps) for at in steps}
    titles = {at: _title(select(rows, step=at)) for at in steps}
    below = [_below(one, maps[index + 1 :]) for index, one in enumerate(maps)]
    inner = sum(one.height for one in maps) + sum(below[:-1])
    margin = {"l": 58, "r": 18, "t": 108, "b": bottom_margin(steps, below[-1])}
    figure = new_figure(f"patch_{rows['feature'].iloc[0]}", inner + margin["t"] + margin["b"])
    attributed = bool(np.isfinite(column(rows, "attribution")).any())
    annotations = []
    top = float(inner)
    for index, (one, space) in enumerate(zip(maps, below, strict=True)):
        _add_traces(figure, one, index, contents[first], metric, attributed)
        annotations.extend(_add_axes(figure, one, index, ((top - one.height) / inner, top / inner), space > _GAP))
        top -= one.height + space
    moving = [i for i, trace in enumerate(figure.data) if trace["name"] in _METRICS]
    figure.update_layout(margin=margin, coloraxis=_color_axis(rows, metric), updatemenus=[_buttons(figure)])
    flat = {at: [go.Heatmap(**fields) for fields in contents[at].values()] for at in steps}
    add_steps(figure, flat, moving, titles, first, above=_ABOVE, annotations=annotations, axis_height=below[-1])
    return figure


def _title(rows: pd.DataFrame) -> str:
    """Feature, label, step, compute and the number of pairs."""
    feature, label = words(rows["feature"].iloc[0]), rows["label"].iloc[0]
    return step_title(rows, f"{feature}, label {label}") + f" · {int(column(rows, 'n_pairs').max()):,} pairs"


def _contents(rows: pd.DataFrame, maps: list[PatchMap]) -> dict[tuple[str, str], dict[str, Any]]:
    """Colours and hover numbers of every map and metric at one step, in the order of the traces."""
    found = {}
    for one in maps:
        grid = cells(select(rows, component=one.component), _KEY[2:], one.keys)
        shape = (len(one.rows), len(one.columns))
        for name, metric in _METRICS.items():
            beside = [column(grid, extra) for extra in metric.beside]
            found[one.component, name] = {
                "z": short(column(grid, name).reshape(shape)),
                "customdata": short(np.stack(beside, axis=-1).reshape(*shape, -1)),
            }
    return found


def _below(one: PatchMap, others: list[PatchMap]) -> int:
    """Pixels between a map and the next, or the slider; the axis is written under the last of equal columns."""
    if others and (one.columns, one.tokens) == (others[0].columns, others[0].tokens):
        return _GAP
    return AXIS_HEIGHT + _token_height(one) + (_GAP if others else 0)


def _token_height(one: PatchMap) -> int:
    """Pixels that the columns' names take more than one line of text does: long tokens stand upright."""
    if one.across_heads:
        return 0
    longest = max(map(len, one.tokens))
    return min(6 * longest + 2 * _NUMBERS, 90) if longest > 1 else _NUMBERS


def _add_traces(
    figure: go.Figure,
    one: PatchMap,
    index: int,
    contents: dict[tuple[str, str], dict[str, Any]],
    metric: str,
    attributed: bool,
) -> None:
    """One component's crosses and, above them, its cells in each metric."""
    suffix = str(index + 1) if index else ""
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    y = [place_text(place) for place in one.rows]
    names = [[cell_name(one, place, number) for number in range(len(one.columns))] for place in one.rows]
    figure.add_trace(crosses(one.columns, y, axes, _NO_VALUE))
    for name in _METRICS:
        figure.add_trace(
            go.Heatmap(
                **axes,
                **contents[one.component, name],
                name=name,
                x=one.columns,
                y=y,
                text=names,
                xgap=1,
                ygap=1,
                hoverongaps=False,
                coloraxis="coloraxis",
                visible=name == metric,
                hovertemplate=_hover(name, attributed),
            )
        )


def _add_axes(
    figure: go.Figure, one: PatchMap, index: int, domain: tuple[float, float], named: bool
) -> list[dict[str, Any]]:
    """Axes of one component's panel, with its columns written if `named`; returns its titles."""
    suffix = str(index + 1) if index else ""
    x_axis: dict[str, Any] = {
        "anchor": f"y{suffix}",
        "showticklabels": named,
        "ticks": "outside" if named else "",
        "ticklen": 2,
        "tickfont": {"size": FONT_SIZE - 2},
        "tickvals": one.columns,
        "ticktext": one.tokens,
        "tickangle": 0,
        "showgrid": False,
        "showline": False,
    }
    if not one.across_heads:
        stride = math.ceil(len(one.columns) / _MOST_NUMBERED)
        upright = any(len(token) > 1 for token in one.tokens)
        apart = " " if upright else "<br>"
        x_axis["ticktext"] = [
            token if number % stride else f"{token}{apart}<i>{position}</i>"
            for number, (token, position) in enumerate(zip(one.tokens, one.columns, strict=True))
        ]
        x_axis["tickangle"] = -90 if upright else 0
    y_axis = place_axis(one.rows) | {"anchor": f"x{suffix}", "domain": domain}
    figure.update_layout({f"xaxis{suffix}": x_axis, f"yaxis{suffix}": y_axis})
    place = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": domain[1], "yanchor": "bottom"}
    notes = [place | {"text": f"<b>{one.component}</b>  {COMPONENTS.get(one.component, '')}", "yshift": 2}]
    if named:
        title = "head" if one.across_heads else "token and its position (·: differs between pairs)"
        notes.append(axis_title(title, domain[0], 22 + _token_height(one)))
    return notes


def _hover(name: str, attributed: bool) -> str:
    """What a cell says: place, normalised value, the patched run's own, and the gradient's estimate."""
    metric = _METRICS[name]
    of_all = len(metric.beside) > 1
    text = f"%{{text}}<br>{metric.name}, normalised: <b>%{{z:.3f}}</b>"
    text += " (95 % %{customdata[3]:.3f} to %{customdata[4]:.3f})" if of_all else ""
    text += "<br>by gradient (attribution): %{customdata[5]:.3f}" if of_all and attributed else ""
    text += f"<br>patched run: %{{customdata[0]{metric.number}}}"
    text += " (clean %{customdata[1]:.3f}, corrupted %{customdata[2]:.3f})" if of_all else ""
    return text + "<extra></extra>"


def _color_axis(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Colours around 0, the same for every metric and step, with 1 marked."""
    values = np.concatenate([column(rows, name) for name in _METRICS])
    highest = float(np.abs(values[np.isfinite(values)]).max(initial=1.0))
    end = min(highest, WIDEST)
    ticks, texts = [-1.0, -0.5, 0.0, 0.5, 1.0], ["−1", "−0.5", "0", "0.5", "<b>1</b>"]
    if highest > WIDEST:
        ticks, texts = [-WIDEST, *ticks, WIDEST], [f"≤ −{WIDEST}", *texts, f"≥ {WIDEST}"]
    bar = color_bar(_bar_title(metric), 0.5, 1.0) | {"tickvals": ticks, "ticktext": texts}
    return {"colorscale": DIVERGING, "cmin": -end, "cmax": end, "colorbar": bar}


def _bar_title(metric: str) -> str:
    """What the colours mean."""
    return f"{_METRICS[metric].name} (0: corrupted run, 1: clean run)"


def _buttons(figure: go.Figure) -> dict[str, Any]:
    """One button a metric."""
    names = [trace["name"] for trace in figure.data]
    updates = [
        [
            {"visible": [name is None or name == shown for name in names]},
            {"coloraxis.colorbar.title.text": _bar_title(shown)},
        ]
        for shown in _METRICS
    ]
    return choices([one.name for one in _METRICS.values()], updates, 58)
