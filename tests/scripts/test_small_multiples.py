"""The grid of small panels: what is drawn where, and that bad rows are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from figures.small_multiples import small_multiples

from qfl_interp.tables import select


def rows():
    found = []
    for place, setting in enumerate(["one_task", "other"]):
        for line, quantity in enumerate(["loss", "rank"]):
            for kind, curve in (("control", "c0"), ("trained", "t0"), ("trained", "t1")):
                for x in (1e10, 1e11, 1e12):
                    y = (1 + line) * (1 + place) + (line == 0) * x / 1e10 - (curve == "t1")
                    found.append({"row": quantity, "column": setting, "group": kind, "curve": curve, "x": x, "y": y})
    return pd.DataFrame(found)


def drawn(figure):
    """Curves by axis, without those of the legend alone."""
    return [trace for trace in figure.data if not trace.showlegend]


def draw(table, **changes):
    how = {"bands": {"other": (2e10, 3e10)}, "marks": {"one_task": 5e10}, "x": "compute", "filename": "f"}
    return small_multiples(table, **(how | changes))


def test_every_curve_stands_in_the_panel_of_its_row_and_column():
    table = rows()
    figure = draw(table)
    axes = {("loss", "one_task"): "x", ("loss", "other"): "x2", ("rank", "one_task"): "x3", ("rank", "other"): "x4"}
    assert len(drawn(figure)) == 12
    for (quantity, setting), axis in axes.items():
        for trace in (one for one in drawn(figure) if one.xaxis == axis):
            own = select(table, row=quantity, column=setting, curve=trace.name)
            np.testing.assert_array_equal(trace.x, own["x"])
            np.testing.assert_array_equal(trace.y, own["y"])


def test_the_first_group_is_in_front_and_groups_have_one_colour_each():
    figure = draw(rows())
    assert [trace.legendgroup for trace in drawn(figure)][:3] == ["trained", "trained", "control"]
    colors = {(trace.legendgroup, trace.line.color) for trace in figure.data}
    assert len(colors) == 2 == len({color for _, color in colors})
    assert [trace.name for trace in figure.data if trace.showlegend] == ["control", "trained"]


def test_bands_and_marks_stand_in_their_columns():
    figure = draw(rows())
    shapes = [(shape.type, shape.xref, shape.x0, shape.x1) for shape in figure.layout.shapes]
    assert [shape.yref for shape in figure.layout.shapes] == [f"{y} domain" for y in ("y", "y2", "y3", "y4")]
    band, mark = ("rect", 2e10, 3e10), ("line", 5e10, 5e10)
    assert shapes == [
        (kind, x, *ends) for x, (kind, *ends) in zip(("x", "x2", "x3", "x4"), [mark, band] * 2, strict=True)
    ]


def test_a_wide_positive_quantity_has_a_logarithmic_axis():
    figure = draw(rows())
    assert [figure.layout[axis].type for axis in ("yaxis", "yaxis2", "yaxis3")] == ["log", "log", "linear"]
    negative = draw(rows().assign(y=lambda table: table["y"] - 2))
    assert negative.layout.yaxis.type == "linear"


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"without \['group'\]"):
        draw(rows().drop(columns="group"))
    with pytest.raises(ValueError, match="got 0"):
        draw(rows().iloc[:0])
    with pytest.raises(ValueError, match="x must be positive"):
        draw(rows().assign(x=0.0))
