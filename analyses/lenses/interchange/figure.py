"""Whether swapping a feature's directions moves the answer: interchange accuracy by layer and over compute."""

from __future__ import annotations

import itertools
from typing import Any, Final

import pandas as pd
import plotly.graph_objects as go

from qfl_interp.plots.axes import names_axis
from qfl_interp.plots.conditions import INTERCHANGE, curves, present
from qfl_interp.plots.grid import Grid
from qfl_interp.plots.legend import ROW_HEIGHT, in_rows, legend_layout, legends_of
from qfl_interp.plots.lines import curve
from qfl_interp.plots.maps import require_rows
from qfl_interp.plots.panels import Legend, Panel
from qfl_interp.plots.slider import AXIS_HEIGHT, over_steps
from qfl_interp.plots.theme import holm_line, new_figure, page_width, words
from qfl_interp.tables import column, distinct, records, select

_COLUMNS: Final = 3
_CELL_HEIGHT: Final = 170
_GAP: Final = 44
_OFFSET: Final = 0.14
_BESIDE: Final = ("layer", "flipped_low", "flipped_high", "logit_diff_normalised", "n_directions", "n_pairs")
_HOVER: Final = (
    "layer %{customdata[0]}: <b>%{y:.1%}</b> of answers flipped "
    "(95 % %{customdata[1]:.1%} to %{customdata[2]:.1%})<br>"
    "logit difference, normalised: %{customdata[3]:.3f}<br>"
    "%{customdata[4]} direction(s), %{customdata[5]:,} pairs%{text}"
)


def interchange_figure(rows: pd.DataFrame, *, step: int | None = None, slider: bool = True) -> go.Figure:
    """By layer, the fraction of pairs whose answer becomes the clean one, under each swap; a panel a label.

    Whiskers are the table's 95 % intervals. A slider changes the step.

    Args:
        rows: Table "interchange" of one feature.
        step: The step shown first; None for the last.
        slider: Whether the figure goes through all steps; without it, it shows this one, in the colours of all.

    Raises:
        ValueError: No row, several features, several rows of one point, or an unknown step or condition.
    """
    require_rows(rows, "interchange", ("feature",), ("step", "label", "layer", "condition"))
    labels, layers = (sorted(int(v) for v in distinct(rows, name)) for name in ("label", "layer"))
    conditions = present(rows, INTERCHANGE)
    grid = Grid([_CELL_HEIGHT], len(labels), _COLUMNS, foot=_GAP)
    margin = {"l": 62, "r": 18, "t": 94, "b": AXIS_HEIGHT}
    rows_of = in_rows([INTERCHANGE[name].name for name in conditions], page_width() - margin["l"] - margin["r"])
    listed, above = legends_of(rows_of), ROW_HEIGHT * (len(rows_of) - 1)
    margin["t"] += above
    figure = new_figure(f"interchange_{rows['feature'].iloc[0]}", grid.height, margin)
    # Room for the panels' titles between the legend and the plot area.
    figure.update_layout(legend_layout(listed, grid.height, above=20, traceorder="normal"))
    cells = [(label, grid.cell(index)) for index, label in enumerate(labels)]
    for index, (label, cell) in enumerate(cells):
        first, last = grid.is_first(index), grid.is_last(index)
        x_axis = names_axis([str(layer) for layer in layers]) | {"title": {"text": "layer" if last else ""}}
        y_axis = {
            "range": [-0.04, 1.04],
            "tickvals": [0, 0.25, 0.5, 0.75, 1],
            "showticklabels": first,
            "title": {"text": "answers flipped" if first else ""},
        }
        figure.update_layout(cell.layout(x_axis, y_axis))
        figure.add_annotation(cell.title(f"<b>label {label}</b>", 0))

    def draw(part: pd.DataFrame) -> list[go.Scatter]:
        traces = []
        for (label, cell), (index, condition) in itertools.product(cells, enumerate(conditions)):
            style, shown = INTERCHANGE[condition], select(part, label=label, condition=condition)
            shown = shown.sort_values("layer", kind="stable")
            # Beside the points of the other conditions.
            offset = (index - (len(conditions) - 1) / 2) * _OFFSET
            shown = shown.assign(place=[layers.index(int(layer)) + offset for layer in shown["layer"]])
            look: dict[str, Any] = {"width": 0, "size": 8, "symbol": style.symbol, "interval": (1.3, 3), **cell.axes}
            look |= {"text": [holm_line(p_value, "against random: ") for p_value in column(shown, "p_value_holm")]}
            look |= {"hover": _HOVER, "beside": _BESIDE, "legendgroup": condition}
            look |= {"showlegend": cell.number == 1, "legend": listed[style.name]}
            traces.append(curve(shown, "flipped", style.name, style.color, x="place", **look))
        return traces

    title = words(rows["feature"].iloc[0])
    return over_steps(figure, rows, draw, table="interchange", title=title, above=54 + above, step=step, slider=slider)


def interchange_panel(rows: pd.DataFrame, feature: str, label: int) -> Panel:
    """Over compute, the fraction of pairs whose answer becomes the clean one, under each swap at one layer.

    The layer is the one at which swapping the feature's directions flips most at the last step.

    Args:
        rows: Table "interchange".
        feature: Which feature's directions.
        label: Which label's.

    Raises:
        ValueError: The table has no such row, or several of one step and condition.
    """
    chosen = select(rows, feature=feature, label=label)
    require_rows(chosen, "interchange", (), ("step", "layer", "condition"))
    swapped = select(chosen, condition="feature")
    at_last = records(select(swapped, step=max(distinct(swapped, "step"))))
    layer = int(max(at_last, key=lambda row: row["flipped"])["layer"])
    return Panel(
        title=f"Swapping {words(feature)}",
        subtitle=f"label {label}, layer {layer}: pairs whose answer becomes the clean one",
        traces=curves(select(chosen, layer=layer), INTERCHANGE, "flipped", "interchange"),
        y_title="answers flipped",
        y_range=(-0.04, 1.04),
        height=140,
        legend=Legend("interchange"),
    )
