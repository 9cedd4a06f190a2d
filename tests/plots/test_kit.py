"""The parts figures are made of: curves, ranges, grids, maps of cells, frames over steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from plotly import graph_objects as go

from qfl_interp.plots.axes import labels_with_room, log_axis, names_axis, names_below
from qfl_interp.plots.grid import Cell, Grid, LegendRow, PaperGrid, stack_cells
from qfl_interp.plots.legend import ROW_HEIGHT
from qfl_interp.plots.lines import curve, finite, legend_entry, level, log_range, over_training, value_range
from qfl_interp.plots.maps import CellMap, color_axis
from qfl_interp.plots.panels import Shade, line_panel, stack_panels
from qfl_interp.plots.slider import AXIS_HEIGHT, SLIDER_HEIGHT, over_steps
from qfl_interp.plots.text import text_width
from qfl_interp.plots.theme import PAPER_WIDTH, drawn_at, new_figure

MARGIN = {"l": 50, "r": 20, "t": 90, "b": AXIS_HEIGHT}


def points() -> pd.DataFrame:
    """Two layers at three steps, the first without compute."""
    table = {"step": [0, 1, 10] * 2, "flops": [0.0, 1e9, 1e10] * 2, "layer": [1] * 3 + [0] * 3}
    values = [0.0, 3.0, -1.0, 9.0, np.nan, 2.0]
    return pd.DataFrame({**table, "value": values, "value_low": values, "value_high": 5.0})


# Lines


def test_over_training_orders_rows_and_leaves_out_step_0():
    assert over_training(points().iloc[::-1])["step"].tolist() == [1, 1, 10, 10]


@pytest.mark.parametrize(
    ("changes", "name", "title"),
    [
        pytest.param({}, "flops", "training compute (FLOPs, nominal)", id="FLOPs"),
        pytest.param({"tokens": 7.0}, "flops", "training compute (FLOPs, nominal)", id="FLOPs before tokens"),
        pytest.param({"flops": np.nan, "tokens": 7.0}, "tokens", "training tokens", id="tokens"),
        pytest.param({"flops": [np.nan, 1, 2, 3, 4, 5]}, "step", "training step", id="a gap"),
        pytest.param({"flops": np.nan, "tokens": np.nan}, "step", "training step", id="steps"),
    ],
)
def test_a_figure_is_over_what_is_known_and_says_so(changes, name, title):
    rows = points().assign(**changes)
    panel = line_panel(rows, "value", by="layer", title="t", y_title="y")
    (of_first, *_) = panel.traces
    assert panel.axis is not None
    assert panel.axis.column == name
    assert set(of_first.x) <= set(rows.loc[rows["step"] > 0, name])
    assert stack_panels([panel], None, filename="f").layout.xaxis.title.text == title


def test_panels_over_different_quantities_do_not_stand_on_one_axis():
    how = {"by": "layer", "y_title": "y"}
    panels = [line_panel(points(), "value", title="known", **how)]
    panels.append(line_panel(points().assign(flops=np.nan), "value", title="unknown", **how))
    with pytest.raises(ValueError, match="'known' over flops, 'unknown' over step"):
        stack_panels(panels, None, filename="f")


def test_a_shaded_stretch_is_named_in_the_unit_of_the_axis():
    panel = line_panel(points().assign(flops=np.nan), "value", by="layer", title="t", y_title="y")
    figure = stack_panels([panel], Shade(2, 9, "it falls"), filename="f")
    assert "2 – 9 steps" in " ".join(note.text for note in figure.layout.annotations)


def test_a_curve_says_its_columns_and_stays_above_its_floor():
    rows = points().head(3)
    hover = "%{y} at %{customdata[1]}"
    trace = curve(rows, "value", "it", "#123456", beside=("step", "layer"), hover=hover, floor=0.5, interval=(1, 2))
    np.testing.assert_array_equal(trace.x, rows["flops"])
    np.testing.assert_array_equal(trace.y, [0.5, 3.0, 0.5])
    np.testing.assert_array_equal(trace.customdata, rows[["step", "layer"]])
    assert trace.hovertemplate == hover + "<extra>it</extra>"
    assert (trace.mode, trace.legendgroup, trace.hoverinfo) == ("lines", "it", None)
    np.testing.assert_array_equal(trace.error_y.array, [5.0, 2.0, 6.0])
    silent = curve(rows, "value", "it", "#123456", width=0, size=4, legendgroup="all")
    assert (silent.mode, silent.hoverinfo, silent.customdata, silent.legendgroup) == ("markers", "skip", None, "all")


def test_a_level_reaches_from_end_to_end_and_is_not_listed():
    line = level([3.0, 1.0, 2.0], 0.7, "chance")
    assert (tuple(line.x), tuple(line.y)) == ((1.0, 3.0), (0.7, 0.7))
    assert (line.showlegend, line.hoverinfo) == (False, "skip")
    assert level([1.0], 0.7, "chance", hover="%{y}").hovertemplate == "%{y}<extra></extra>"
    entry = legend_entry("chance", group="levels")
    assert (entry.x, entry.showlegend, entry.legendgroup) == ((None,), True, "levels")


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([2.0, 4.0, np.nan], {"include": (), "below": 0.5, "above": 0.25}, (1.0, 4.5)),
        ([2.0, 4.0], {"below": 0.0, "above": 0.5}, (0.0, 6.0)),
        ([], {"below": 0.1, "above": 0.2}, (-0.1, 0.2)),
        ([3.0], {"include": (), "below": 0.1, "above": 0.1}, (2.9, 3.1)),
    ],
    ids=["room", "with 0", "nothing", "one value"],
)
def test_value_range(values, options, expected):
    assert value_range(values, **options) == pytest.approx(expected)


def test_log_range_has_room_in_decades_and_a_floor():
    assert log_range([1.0, 100.0, np.inf], room=0.5) == pytest.approx((0.1, 1000.0))
    assert log_range([1.0, 1.0], least=2.0) == pytest.approx((0.5, 2.0))
    assert log_range([0.0, 1.0], room=0.0, least=1.0, floor=1e-3) == pytest.approx((1e-3, 1.0))
    assert log_range([np.nan]) == (0.1, 1.0)
    np.testing.assert_array_equal(finite([1.0, np.nan], go.Scatter(y=[2.0, np.inf])), [1.0, 2.0])


def test_axes_have_readable_ticks():
    wide, narrow = log_axis(1e-4, 1e3, few_beyond=3), log_axis(0.02, 0.3, few_beyond=3)
    assert (wide["dtick"], wide["exponentformat"]) == (2, "power")
    assert narrow["ticktext"] == ["0.02", "0.05", "0.1", "0.2"]
    assert narrow["range"] == pytest.approx([np.log10(0.02), np.log10(0.3)])
    assert names_axis(["a", "b"])["range"] == [-0.5, 1.5]


def test_a_line_panel_has_a_curve_a_value_in_their_order():
    panel = line_panel(points(), "value", by="layer", title="Norm", y_title="|θ|")
    assert [trace.name for trace in panel.traces] == ["layer 0", "layer 1"]
    np.testing.assert_array_equal(panel.traces[1].x, [1e9, 1e10])
    np.testing.assert_array_equal(panel.traces[1].y, [3.0, -1.0])
    assert panel.y_range == pytest.approx((-1 - 0.04 * 4, 3 + 0.06 * 4))
    named = line_panel(points(), "value", by="layer", title="Norm", y_title="|θ|", names={0: "first", 1: "last"})
    assert [trace.name for trace in named.traces] == ["first", "last"]
    listed = [trace.name for trace in stack_panels([panel, panel], None, filename="x").data if trace.showlegend is None]
    assert listed == ["layer 0", "layer 1"], "panels of one legend are listed once"


# Grids


def boxes(cells: list[Cell]) -> list[tuple[float, ...]]:
    return [(*cell.x_domain, *cell.y_domain) for cell in cells]


def apart(found: list[tuple[float, ...]]) -> bool:
    pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]
    return all(a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] + 1e-9 or b[3] <= a[2] + 1e-9 for a, b in pairs)


def test_a_grid_has_panels_of_the_height_asked_for_that_do_not_overlap():
    grid = Grid([60, 100], 5, 2, gap=0.1, head=20, between=10, foot=30, above=40, first=3)
    assert grid.height == 40 + 3 * (20 + 60 + 10 + 100) + 2 * 30
    cells = [grid.cell(index, row) for index in range(5) for row in (0, 1)]
    assert [cell.number for cell in cells] == list(range(3, 13))
    for cell, height in zip(cells, [60, 100] * 5, strict=True):
        assert (cell.y_domain[1] - cell.y_domain[0]) * grid.height == pytest.approx(height)
    assert cells[0].x_domain == pytest.approx((0.0, 0.45))
    assert cells[2].x_domain == pytest.approx((0.55, 1.0))
    assert (1 - cells[0].y_domain[1]) * grid.height == pytest.approx(40 + 20)
    assert apart(boxes(cells))
    assert [grid.is_first(index) for index in range(5)] == [True, False, True, False, True]
    assert [grid.is_last(index) for index in range(5)] == [False, False, False, True, True]
    assert cells[-1].y_domain[0] == pytest.approx(0.0)


def test_panels_of_a_stack_keep_their_heights_and_distances():
    inner, cells = stack_cells([100, 50], [30, 99])
    assert inner == 180
    assert [cell.axes["yaxis"] for cell in cells] == ["y", "y2"]
    assert cells[0].y_domain == pytest.approx((80 / 180, 1.0))
    assert cells[1].y_domain == pytest.approx((0.0, 50 / 180))


def test_a_paper_grid_fills_its_legends_line_by_line():
    grid = PaperGrid([80], 3, 3, 40)
    few, many = ([legend_entry(f"an entry of many letters {k}") for k in range(n)] for n in (2, 7))
    heights = [grid.figure("x", [LegendRow("", entries)]).layout.height for entries in (few, many)]
    assert heights[1] - heights[0] == 2 * ROW_HEIGHT
    figure = grid.figure("x", [LegendRow("kinds: ", many)])
    assert {trace.legend for trace in figure.data} == {"legend", "legend2", "legend3"}
    assert figure.layout.legend.title.text == "kinds: "
    assert apart(boxes([grid.cell(index) for index in range(3)]))
    assert grid.cell(2).x_domain[1] == pytest.approx(1 - 10 / PAPER_WIDTH)


# Maps


def cells_of(rows: pd.DataFrame) -> CellMap:
    return CellMap.by_place(rows, "label")


def table() -> pd.DataFrame:
    """Loss 10^(layer + label) of two layers and three labels, in no order; one label is missing, one is NaN."""
    found = [(layer, label, 10.0 ** (layer + label)) for label in (2, 0, 1) for layer in (1, 0)]
    rows = pd.DataFrame(found, columns=["layer", "label", "loss"]).assign(n=lambda t: 100 * t["label"] + t["layer"])
    rows.loc[(rows["layer"] == 1) & (rows["label"] == 2), "loss"] = np.nan
    return rows[(rows["layer"] != 0) | (rows["label"] != 0)]


def test_cells_stand_in_order_and_are_open_without_a_value():
    cells = cells_of(table())
    assert (cells.y, cells.across) == (["0", "1"], [0, 1, 2])
    trace = cells.heat(table(), "loss", "%{z}", beside=("n",), floor=1e-3)
    assert [list(row) for row in trace["z"]] == [[None, 1.0, 2.0], [1.0, 2.0, None]]
    np.testing.assert_array_equal(
        np.array(trace["customdata"], dtype=float)[..., 0], [[np.nan, 100, 200], [1, 101, 201]]
    )
    crosses = cells.crosses("no value")
    assert np.array(crosses.text).tolist() == [["×"] * 3] * 2
    assert crosses.hovertemplate == "no value<extra></extra>"
    floored = cells.heat(table(), "loss", "", floor=100.0)
    assert floored["z"][0][1] == 2.0


def test_a_map_of_heads_names_them_and_a_deep_one_some_layers_only():
    heads = pd.concat([table().assign(head=head) for head in (0, 1)])
    assert cells_of(heads).y == ["0.0", "0.1", "1.0", "1.1"]
    assert cells_of(heads).layout(Cell(1, (0, 1), (0, 1)))["yaxis"]["title"]["text"] == "layer.head"
    deep = cells_of(pd.DataFrame({"layer": range(50), "label": 0}))
    axes = deep.layout(Cell(2, (0.0, 1.0), (0.0, 0.5)), dtick=7)
    assert axes["yaxis2"]["tickvals"] == [str(layer) for layer in range(0, 50, 3)]
    assert axes["yaxis2"]["domain"] == (0.0, 0.5)
    assert axes["xaxis2"]["dtick"] == 7


def test_names_below_an_axis_stand_in_lines_or_all_upright():
    axis, more = names_below(["carry", "carry without next token"], 180)
    assert (axis["ticktext"], axis["tickangle"]) == (["carry", "carry without<br>next token"], 0)
    assert more == round(1.3 * 11)
    axis, more = names_below(["carry", "carry without next token"], 80)
    assert (axis["ticktext"], axis["tickangle"]) == (["carry", "carry without next token"], -90)
    assert more == pytest.approx(text_width("carry without next token", 11) - 1.3 * 11, abs=0.5)
    assert names_below(["carry"], 180)[1] == 0


def test_labels_side_by_side_are_written_where_there_is_room_the_lesser_ones_last():
    assert labels_with_room([4, 4, 4], 5, [False] * 3) == [True] * 3
    assert labels_with_room([8, 8, 8, 8], 5, [False] * 4) == [True, False, True, False]
    assert labels_with_room([8, 8, 8, 8], 5, [True, False, True, True]) == [False, True, False, True]


def test_colours_are_logarithms_where_they_are_said_to_be():
    axis = color_axis("loss", 0.02, 0.3, log=True)
    assert (axis["cmin"], axis["cmax"]) == pytest.approx((np.log10(0.02), np.log10(0.3)))
    assert axis["colorbar"]["ticktext"] == ["0.02", "0.05", "0.1", "0.2"]
    assert 10 ** axis["colorbar"]["tickvals"][0] == pytest.approx(0.02)
    with drawn_at(317):  # of six numbers, 0.0003 to 0.1, the powers of ten have room
        half = color_axis("loss", 2.5e-4, 0.12, log=True, span=(0.0, 0.48))
    assert half["colorbar"]["ticktext"] == ["0.001", "0.01", "0.1"]
    assert half["colorbar"]["tickvals"] == pytest.approx([-3, -2, -1])
    plain = color_axis("score", 0.0, 1.0, span=(0.5, 1.0), nticks=5)
    assert (plain["cmin"], plain["cmax"], plain["colorbar"]["nticks"]) == (0.0, 1.0, 5)
    assert (plain["colorbar"]["x"], plain["colorbar"]["len"]) == (0.5, 0.5)


# Steps


def stepped(rows: pd.DataFrame, **options) -> go.Figure:
    """A fixed trace, then one that moves and one that stays."""
    figure = new_figure("x", 100, MARGIN)
    figure.add_scatter(x=[0], y=[0], name="fixed")
    figure.add_annotation(text="stays")

    def draw(part: pd.DataFrame) -> list[go.Scatter]:
        x = [1.0, 2.0, 3.0]
        return [go.Scatter(x=x, y=x, name="still"), go.Scatter(x=x, y=part["value"].to_list() * 3, name="moving")]

    over_steps(figure, rows, draw, table="lens", title="It", above=10, **options)
    return figure


def of_steps() -> pd.DataFrame:
    return pd.DataFrame({"step": [10, 0, 5], "flops": [1e9, 0.0, 5e8], "value": [3.0, 1.0, 2.0]})


def test_frames_hold_what_differs_between_steps_and_nothing_else():
    figure = stepped(of_steps())
    assert [frame.name for frame in figure.frames] == ["0", "5", "10"]
    for frame, value in zip(figure.frames, (1.0, 2.0, 3.0), strict=True):
        assert frame.traces == (2,)
        assert frame.data[0].to_plotly_json() == {"type": "scatter", "y": [value] * 3}
        assert [note.text for note in frame.layout.annotations][1:] == ["stays"]
    assert "initial model" in figure.frames[0].layout.annotations[0].text
    assert list(figure.data[2].y) == [3.0] * 3, "the last step is shown first"
    assert [note.text.split("  ")[0] for note in figure.layout.annotations] == ["<b>It</b>", "stays"]


def test_the_slider_starts_at_the_step_asked_for_below_the_axis():
    figure = stepped(of_steps(), step=5)
    (slider,) = figure.layout.sliders
    assert (slider.active, [one.label for one in slider.steps]) == (1, ["0", "5", "10"])
    assert slider.pad.t == AXIS_HEIGHT
    assert figure.layout.margin.b == AXIS_HEIGHT + SLIDER_HEIGHT
    assert figure.layout.height == 100 + MARGIN["t"] + AXIS_HEIGHT + SLIDER_HEIGHT == figure.layout.meta["height"]
    assert list(figure.data[2].y) == [2.0] * 3
    with pytest.raises(ValueError, match=r"must be in the lens table, got 7, which is not among \[0, 5, 10\]"):
        stepped(of_steps(), step=7)


def test_one_step_has_no_slider_and_no_room_for_it():
    figure = stepped(of_steps().head(1))
    assert not figure.layout.sliders
    assert not figure.frames
    assert figure.layout.height == 100 + MARGIN["t"] + AXIS_HEIGHT


def test_what_a_step_brings_to_the_layout_is_in_its_frame():
    figure = stepped(of_steps(), layout=lambda part: {"xaxis": {"title": {"text": f"{part['step'].iloc[0]}"}}})
    assert figure.layout.xaxis.title.text == "10"
    assert [frame.layout.xaxis.title.text for frame in figure.frames] == ["0", "5", "10"]
