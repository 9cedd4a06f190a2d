from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plotly import graph_objects as go

from qfl_interp.analyses.lenses.ablate.figure import ablation_figure, ablation_over_steps_figure, ablation_panel
from qfl_interp.analyses.lenses.ablate_units.figure import units_figure
from qfl_interp.analyses.lenses.emergence.figure import feature_panels
from qfl_interp.analyses.lenses.interchange.figure import interchange_figure, interchange_panel
from qfl_interp.analyses.lenses.mdl.figure import mdl_figure, mdl_panel
from qfl_interp.analyses.lenses.patch.attribution_figure import attribution_figure
from qfl_interp.analyses.lenses.patch.figure import patch_figure
from qfl_interp.analyses.lenses.patch.panel import patch_panel
from qfl_interp.analyses.lenses.probe.figure import probe_heatmap
from qfl_interp.analyses.lenses.transfer.figure import transfer_figure
from qfl_interp.analyses.pages.timeline_figure import timeline_figure
from qfl_interp.plots import theme
from qfl_interp.plots.legend import ROW_HEIGHT
from qfl_interp.plots.panels import Legend, Panel, stack_panels
from qfl_interp.tables import select
from tests import synthetic_tables as tables

LAST = tables.N_STEPS


def grid(values: Any) -> np.ndarray:
    """A heat map's nested lists as floats; null is NaN."""
    return np.array(values, dtype=float)


def frame(figure: go.Figure, step: int) -> dict[int, Any]:
    """What each moving trace becomes at a step."""
    (found,) = [one for one in figure.frames if one.name == str(step)]
    return dict(zip(found.traces, found.data, strict=True))


def texts(figure: go.Figure) -> list[str]:
    return [note.text for note in figure.layout.annotations]


def shown(figure: go.Figure, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


# Patching


def test_patch_cells_are_the_tables_at_every_step_and_in_every_metric():
    rows = tables.patch()
    figure = patch_figure(rows)
    for metric, (index, component) in itertools.product(
        ("logit_diff_normalised", "loss_normalised", "exact_normalised"), enumerate(("resid_pre", "attn_out"))
    ):
        number = [i for i, trace in enumerate(figure.data) if trace.name == metric][index]
        assert figure.data[number].visible == (metric == "logit_diff_normalised")
        for step in (35, LAST):
            part = select(rows, step=step, component=component)
            expected = part.pivot(index="layer", columns="position", values=metric).to_numpy()
            np.testing.assert_allclose(grid(frame(figure, step)[number].z), expected, rtol=1e-3)
        np.testing.assert_array_equal(grid(figure.data[number].z), grid(frame(figure, LAST)[number].z))


def test_patch_hover_names_token_place_interval_and_attribution():
    rows = tables.patch()
    figure = patch_figure(rows)
    (trace, _) = shown(figure, "logit_diff_normalised")
    assert trace.text[3][7] == "“=” at position 7, layer 3"
    (row,) = select(rows, step=LAST, component="resid_pre", layer=3, position=7).to_dict("records")
    names = ["logit_diff", "logit_diff_clean", "logit_diff_corrupted", "logit_diff_low", "logit_diff_high"]
    np.testing.assert_allclose(trace.customdata[3][7], [row[n] for n in [*names, "attribution"]], rtol=1e-3)
    for piece in ("%{text}", "95 % %{customdata[3]", "to %{customdata[4]", "attribution): %{customdata[5]"):
        assert piece in trace.hovertemplate
    without = patch_figure(rows.assign(attribution=np.nan))
    assert "attribution" not in shown(without, "logit_diff_normalised")[0].hovertemplate


def test_patch_axis_has_the_tokens_once_and_their_positions():
    figure = patch_figure(tables.patch())
    assert figure.layout.xaxis.showticklabels is False
    assert list(figure.layout.xaxis2.tickvals) == list(range(12))
    assert [text.split("<br>")[0] for text in figure.layout.xaxis2.ticktext] == list(tables.PATCH_TOKENS)
    assert figure.layout.xaxis2.ticktext[7] == "=<br><i>7</i>"
    assert list(figure.layout.yaxis.tickvals) == ["0", "1", "2", "3"]
    domains = [figure.layout[f"yaxis{suffix}"].domain for suffix in ("", 2)]
    assert domains[0][1] == 1
    assert domains[0][0] > domains[1][1] > domains[1][0] >= -1e-9
    titles = texts(figure)
    assert titles[0].startswith("<b>carry, label 2</b>  step 716")
    assert titles[0].endswith("200 pairs")
    assert [title.split("  ")[0] for title in titles[1:]] == [
        "<b>resid_pre</b>", "<b>attn_out</b>", "token and its position (·: differs between pairs)",
    ]  # fmt: skip


def test_patch_colours_are_centred_on_the_corrupted_run_with_1_marked():
    figure = patch_figure(tables.patch())
    axis = figure.layout.coloraxis
    assert axis.cmin == -axis.cmax
    assert "<b>1</b>" in axis.colorbar.ticktext
    assert 1 <= axis.cmax <= 1.5
    far = tables.patch()
    far.loc[5, "loss_normalised"] = -40.0
    axis = patch_figure(far).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-1.5, 1.5)
    assert axis.colorbar.ticktext[0] == "≤ −1.5"


def test_patch_buttons_show_one_metric_of_every_component_over_the_crosses():
    figure = patch_figure(tables.patch(), metric="loss_normalised")
    assert [t.name for t in figure.data if t.visible is not False] == [None] * 2 + ["loss_normalised"] * 2
    (menu,) = [menu for menu in figure.layout.updatemenus if len(menu.buttons) == 3]
    assert [button.label for button in menu.buttons] == ["logit difference", "loss", "exact match"]
    change, layout = menu.buttons[2].args
    assert [t.name for t, on in zip(figure.data, change["visible"], strict=True) if on] == [
        None, None, "exact_normalised", "exact_normalised",
    ]  # fmt: skip
    assert layout["coloraxis.colorbar.title.text"] == "exact match (0: corrupted run, 1: clean run)"


def test_patch_cells_without_a_value_are_open_over_a_cross():
    figure = patch_figure(tables.patch(), step=0)
    assert np.isnan(grid(shown(figure, "logit_diff_normalised")[0].z)).all()
    crosses = figure.data[0]
    assert grid(crosses.z).shape == (4, 12)
    assert {text for row in crosses.text for text in row} == {"×"}
    assert "hardly differ" in crosses.hovertemplate
    assert "initial model" in texts(figure)[0]
    lacking = tables.patch(("resid_pre",), (LAST,)).drop(index=17)
    z = grid(shown(patch_figure(lacking), "logit_diff_normalised")[0].z)
    assert [tuple(where) for where in np.argwhere(np.isnan(z))] == [(1, 5)]


def test_patch_heads_have_a_row_each_and_columns_when_patched_at_every_position():
    rows = tables.patch(("z",), (LAST,))
    (trace,) = shown(patch_figure(rows), "logit_diff_normalised")
    assert list(trace.y) == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1", "3.0", "3.1"]
    expected = select(rows, layer=2, head=1)["logit_diff_normalised"]
    np.testing.assert_allclose(grid(trace.z)[5], expected, rtol=1e-3)
    assert trace.text[5][7] == "“=” at position 7, layer 2, head 1"
    whole = select(rows, position=7).assign(position=-1, token="")
    figure = patch_figure(whole)
    (trace,) = shown(figure, "logit_diff_normalised")
    np.testing.assert_allclose(
        grid(trace.z), whole.pivot(index="layer", columns="head", values="logit_diff_normalised"), rtol=1e-3
    )
    assert list(figure.layout.xaxis.ticktext) == ["0", "1"]
    assert trace.text[3][1] == "layer 3, head 1, at every position"


def test_patch_tokens_are_safe_visible_and_upright_when_long():
    rows = tables.patch(("resid_pre",), (LAST,))
    rows["token"] = rows["token"].replace({"1": "<b> the", "+": "\n"})
    axis = patch_figure(rows).layout.xaxis
    assert axis.ticktext[2].startswith("&lt;b&gt;␣the")
    assert axis.ticktext[3].startswith("↵")
    assert axis.tickangle == -90


@pytest.mark.parametrize(
    ("rows", "options", "match"),
    [
        (pd.DataFrame(), {}, "patch table must have rows, got none. Run `qfl patch`"),
        (tables.patch().assign(label=[0, 1] * 240), {}, r"shows one label, got \[0, 1\]"),
        (pd.concat([tables.patch()] * 2), {}, "one row a step, component, layer, head, position"),
        (tables.patch(), {"metric": "logit_diff"}, "metric must be one of .*'logit_diff'"),
        (tables.patch(), {"step": 7}, "must be in the patch table, got 7"),
    ],
    ids=["none", "labels", "twice", "metric", "step"],
)
def test_patch_refuses(rows, options, match):
    with pytest.raises(ValueError, match=match):
        patch_figure(rows, **options)


def test_attribution_points_are_the_tables_with_r_and_the_diagonal():
    rows = tables.patch()
    figure = attribution_figure(rows)
    diagonal, resid, attn = figure.data
    assert tuple(diagonal.x) == tuple(diagonal.y)
    assert [resid.name, attn.name] == ["resid_pre, r = 0.971 over 48", "attn_out, r = 0.893 over 48"]
    part = select(rows, step=LAST, component="attn_out")
    np.testing.assert_allclose(attn.x, part["logit_diff_normalised"], rtol=1e-3)
    np.testing.assert_allclose(attn.y, part["attribution"], rtol=1e-3)
    assert attn.text[7] == "“=” at position 7, layer 0"
    assert [one.name for one in figure.frames] == ["35", "110", "210", "716"], "step 0 has no attribution"
    np.testing.assert_allclose(
        frame(figure, 35)[1].y, select(rows, step=35, component="resid_pre")["attribution"], rtol=1e-3
    )
    assert diagonal.x[0] < min(rows["attribution"].min(), 0)
    with pytest.raises(ValueError, match="must have attributions to compare, got none in 480 rows"):
        attribution_figure(rows.assign(attribution=np.nan))


def test_patch_panel_follows_each_layers_best_position():
    rows = tables.patch()
    panel = patch_panel(rows, "carry", 2)
    assert [trace.name for trace in panel.traces] == [f"layer {k}" for k in range(4)]
    for layer, trace in enumerate(panel.traces):
        for number, step in enumerate((35, 110, 210, LAST)):
            part = select(rows, component="resid_pre", layer=layer, step=step)
            best = part.loc[part["logit_diff_normalised"].idxmax()]
            assert (trace.x[number], trace.y[number]) == (best["flops"], best["logit_diff_normalised"])
            assert tuple(trace.customdata[number]) == (step, best["position"])
            assert trace.text[number] == best["token"]
    assert len({trace.line.color for trace in panel.traces}) == 4
    with pytest.raises(ValueError, match=r"label 3 and component 'resid_pre'.*'attn_out'"):
        patch_panel(rows, "carry", 3)


# Interchange


def test_interchange_points_and_whiskers_are_the_tables():
    rows = tables.interchange()
    figure = interchange_figure(rows)
    names = {"none": "nothing swapped", "feature": "probe's directions", "mean_shift": "class means' difference"}
    for panel, label in enumerate((1, 2)):
        for condition, name in (names | {"random": "random directions", "whole": "whole activation"}).items():
            trace = shown(figure, name)[panel]
            part = select(rows, step=LAST, label=label, condition=condition)
            np.testing.assert_array_equal(trace.y, part["flipped"])
            np.testing.assert_allclose(trace.y + trace.error_y.array, part["flipped_high"])
            np.testing.assert_allclose(trace.y - trace.error_y.arrayminus, part["flipped_low"])
            np.testing.assert_array_equal(np.round(trace.x), range(4))
            assert trace.yaxis == ("y", "y2")[panel]
            assert trace.showlegend is (panel == 0)
    number = next(i for i, t in enumerate(figure.data) if t.name == "probe's directions" and t.yaxis == "y2")
    np.testing.assert_array_equal(
        frame(figure, 210)[number].y, select(rows, step=210, label=2, condition="feature")["flipped"]
    )
    feature = shown(figure, "probe's directions")[0]
    assert feature.text[0] == "<br>against random: p = 0.004 (Holm-corrected)"
    assert shown(figure, "whole activation")[0].text[0] == ""
    assert [tuple(figure.layout[f"yaxis{n}"].range) for n in ("", 2)] == [(-0.04, 1.04)] * 2
    assert texts(figure)[1:] == ["<b>label 1</b>", "<b>label 2</b>"]


def test_interchange_wraps_its_panels_and_names_an_unknown_condition():
    figure = interchange_figure(tables.interchange(labels=(0, 1, 2, 3)))
    domains = [(figure.layout[f"xaxis{n}"].domain[0], figure.layout[f"yaxis{n}"].domain) for n in ("", 2, 3, 4)]
    assert domains[0][0] == domains[3][0] < domains[1][0] < domains[2][0]
    assert domains[0][1] == domains[2][1]
    assert domains[3][1][1] < domains[0][1][0]
    with pytest.raises(ValueError, match=r"condition must be one of .* got 'half'"):
        interchange_figure(tables.interchange().replace({"condition": {"whole": "half"}}))
    with pytest.raises(ValueError, match="interchange table must have rows"):
        interchange_figure(tables.interchange().iloc[:0])


def test_interchange_panel_stays_at_the_layer_that_flips_most_at_the_end():
    rows = tables.interchange()
    rows.loc[(rows["step"] < LAST) & (rows["layer"] == 0) & (rows["condition"] == "feature"), "flipped"] = 0.99
    panel = interchange_panel(rows, "carry", 1)
    assert "label 1, layer 3" in panel.subtitle
    (trace,) = [t for t in panel.traces if t.name == "probe's directions"]
    part = select(rows, label=1, layer=3, condition="feature").iloc[1:]
    np.testing.assert_array_equal(trace.x, part["flops"])
    np.testing.assert_array_equal(trace.y, part["flipped"])
    np.testing.assert_allclose(trace.customdata[:, 1:], part[["flipped_low", "flipped_high"]])


# Carry-forward


def test_transfer_cells_are_the_tables_with_fit_steps_as_rows():
    rows = tables.transfer()
    figure = transfer_figure(rows)
    for name in ("test_loss", "test_score", "cosine"):
        (trace,) = shown(figure, name)
        expected = rows.pivot(index="fit_step", columns="eval_step", values=name).to_numpy()
        found = 10 ** grid(trace.z) if name == "test_loss" else grid(trace.z)
        np.testing.assert_allclose(found, expected, rtol=1e-2 if name == "test_loss" else 1e-3)
        assert trace.visible == (name == "test_loss")
    steps = sorted(set(rows["fit_step"]))
    assert trace.text[2][5] == f"fitted at step {steps[2]}, evaluated at step {steps[5]}"
    own = select(rows, fit_step=steps[2], eval_step=steps[5]).iloc[0]
    names = ["test_loss", "refit_loss", "test_score", "cosine", "n_labels"]
    np.testing.assert_allclose(trace.customdata[2][5], own[names].astype(float), rtol=1e-3)


def test_transfer_outlines_the_diagonal_and_thins_its_ticks():
    figure = transfer_figure(tables.transfer(steps=(0, 10, 100)))
    (shape,) = figure.layout.shapes
    assert shape.path.count("Z") == 3
    assert "M1.5,1.5L2.5,1.5L2.5,2.5L1.5,2.5Z" in shape.path
    assert list(figure.layout.xaxis.ticktext) == ["0", "10", "100"]
    many = transfer_figure(tables.transfer(steps=tuple(range(0, 2000, 50))))
    assert len(many.layout.yaxis.ticktext) <= 14
    assert many.layout.yaxis.ticktext[1] == "150"
    assert many.layout.yaxis.tickvals[1] == 3
    rows = tables.transfer(steps=(0, 10, 100))
    (shape,) = transfer_figure(rows[rows["eval_step"] > 0]).layout.shapes
    assert shape.path.startswith("M-0.5,0.5L"), "step 10 is the second row and the first column"
    assert shape.path.count("Z") == 2


def test_transfer_buttons_change_view_and_colours():
    figure = transfer_figure(tables.transfer(metric="mse").assign(test_score=-3.0))
    (menu,) = figure.layout.updatemenus
    assert [button.label for button in menu.buttons] == ["loss", "score", "cosine"]
    change, layout = menu.buttons[1].args
    assert list(change["visible"]) == [True, False, True, False]
    assert layout["coloraxis"]["colorbar"]["title"]["text"] == "test R²"
    assert layout["coloraxis"]["cmin"] == 0.0
    assert figure.layout.coloraxis.colorbar.title.text == "test mean squared error"
    assert menu.buttons[2].args[1]["coloraxis"]["cmax"] == 1


def test_transfer_of_a_part_of_the_steps_and_of_nothing():
    rows = tables.transfer(steps=(0, 10, 100)).drop(index=4)
    (trace,) = shown(transfer_figure(rows), "cosine")
    assert np.argwhere(np.isnan(grid(trace.z))).tolist() == [[1, 1]]
    assert len(transfer_figure(tables.transfer(steps=(10,))).data) == 4
    with pytest.raises(ValueError, match="transfer table must have rows, got none"):
        transfer_figure(rows.iloc[:0])
    with pytest.raises(ValueError, match=r"shows one feature, got \['carry', 'queue'\]"):
        transfer_figure(pd.concat([rows, rows.assign(feature="queue")]))


# Description length


def best_compression(rows: pd.DataFrame) -> float:
    """By plain loops: the best layer of each coded label, then the mean over labels."""
    by_label: dict[int, list[float]] = {}
    for row in rows.to_dict("records"):
        if not math.isnan(row["compression"]):
            by_label.setdefault(row["label"], []).append(row["compression"])
    return sum(max(values) for values in by_label.values()) / len(by_label)


def test_mdl_curves_are_means_of_each_labels_best_layer():
    rows = tables.mdl()
    figure = mdl_figure(rows)
    for feature, name in (("carry", "carry"), ("first_operand", "first operand")):
        of_feature = select(rows, feature=feature)
        (curve,) = [trace for trace in shown(figure, name) if trace.type == "scatter"]
        steps = [35, 110, 210, LAST]
        np.testing.assert_array_equal(curve.x, [step * tables.FLOPS_PER_STEP for step in steps])
        trained = [best_compression(select(of_feature, source="trained", step=step)) for step in steps]
        np.testing.assert_allclose(curve.y, trained, rtol=1e-12)
        (level,) = shown(figure, f"{name}, untrained models")
        untrained = np.mean([best_compression(select(of_feature, model_seed=seed)) for seed in (11, 12)])
        np.testing.assert_allclose(level.y, [untrained] * 2, rtol=1e-12)
        assert level.line.dash == "dot"
        assert list(np.array(curve.customdata)[:, 2]) == [7] * 4, "one label is not coded"


def test_mdl_map_is_the_last_step_with_uncoded_labels_open():
    rows = tables.mdl()
    figure = mdl_figure(rows)
    for feature, axis in (("carry", "y2"), ("first_operand", "y3")):
        (trace,) = [t for t in shown(figure, feature) if t.type == "heatmap"]
        part = select(rows, feature=feature, source="trained", step=LAST)
        expected = part.pivot(index="layer", columns="label", values="compression").to_numpy()
        np.testing.assert_allclose(10 ** grid(trace.z), expected, rtol=2e-3)
        assert np.isnan(grid(trace.z)[:, tables.UNFITTED_LABEL]).all()
        assert trace.yaxis == axis
        assert trace.text[1][3] == "layer 1, label 3"
        bits = part.pivot(index="layer", columns="label", values="codelength_bits").to_numpy()
        np.testing.assert_allclose(grid(trace.customdata)[..., 1], bits, rtol=1e-3)
    assert any("step 716" in text for text in texts(figure))


def test_mdl_of_one_step_no_control_and_nothing():
    one = select(tables.mdl(("carry",)), source="trained", step=LAST)
    (curve,) = shown(mdl_figure(one), "carry")[:1]
    assert len(curve.x) == 1
    assert math.isnan(shown(mdl_figure(one), "carry, untrained models")[0].y[0])
    with pytest.raises(ValueError, match="mdl table must have rows, got none"):
        mdl_figure(one.iloc[:0])
    with pytest.raises(ValueError, match="after step 0, got none"):
        mdl_figure(select(tables.mdl(), step=0))


def test_mdl_panel_lists_curve_and_control():
    rows = tables.mdl()
    panel = mdl_panel(rows, "carry")
    untrained, curve = panel.traces
    assert curve.y[-1] == pytest.approx(best_compression(select(rows, feature="carry", source="trained", step=LAST)))
    assert untrained.line.dash == "dot"
    assert untrained.legendgroup != curve.legendgroup, "entries of one group stand below each other"
    assert panel.y_range[1] > max(curve.y)
    with pytest.raises(ValueError, match="mdl table must have rows"):
        mdl_panel(rows, "queue")


# Ablation


@pytest.mark.parametrize(
    "conditions",
    [("intact", "ablated"), ("intact", "ablated", "random", "random_feature", "same_norm"), ("ablated", "same_norm")],
    ids=["two", "five", "without random"],
)
def test_ablation_shows_the_conditions_there_are_side_by_side(conditions):
    rows = select(tables.ablate_over_steps(conditions), step=LAST)
    figure = ablation_figure(rows, loss_scale="linear")
    bars = figure.data[: len(conditions)]
    for trace, condition in zip(bars, conditions, strict=True):
        np.testing.assert_array_equal(trace.y, select(rows, condition=condition)["exact_answer"])
        np.testing.assert_allclose(np.diff(trace.x), 1)
    places = [trace.x[0] for trace in bars]
    assert all(right - left >= bars[0].width for left, right in itertools.pairwise(places))
    assert sum(places) == pytest.approx(0, abs=1e-12)
    assert len({trace.marker.color for trace in bars}) == len(conditions)
    assert len(figure.layout.shapes) == 2 * ("random" in conditions), "a bracket needs the random control"
    assert "written, top 1 layer(s), strength 1, label by label" in bars[0].hovertext[0]


def test_ablation_refuses_two_settings_and_an_unknown_condition():
    rows = tables.ablate()
    with pytest.raises(ValueError, match="one row a feature, condition"):
        ablation_figure(pd.concat([rows, rows.assign(epsilon=0.5)]))
    with pytest.raises(ValueError, match=r"condition must be one of \['intact'.* got 'shuffled'"):
        ablation_figure(rows.replace({"condition": {"random": "shuffled"}}))


def test_ablation_over_steps_is_the_table_a_panel_a_feature():
    rows = tables.ablate_over_steps()
    figure = ablation_over_steps_figure(rows)
    for panel, feature in enumerate(("first_operand", "carry")):
        for condition, name in (("ablated", "feature removed"), ("same_norm", "same size")):
            trace = shown(figure, name)[panel]
            part = select(rows, feature=feature, condition=condition).sort_values("step").iloc[1:]
            np.testing.assert_array_equal(trace.x, part["flops"])
            np.testing.assert_array_equal(trace.y, part["exact_answer"])
            np.testing.assert_allclose(trace.y - trace.error_y.arrayminus, part["exact_answer_low"], atol=1e-12)
            assert trace.yaxis == ("y", "y2")[panel]
    listed = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert listed == ["intact", "feature removed", "random directions", "another feature", "same size"]
    with pytest.raises(ValueError, match="more than 0 FLOPs, got none"):
        ablation_over_steps_figure(select(rows, step=0))
    with pytest.raises(ValueError, match="ablate table must have rows"):
        ablation_panel(rows, "queue")


def test_one_analysed_step_is_a_point_in_the_timeline():
    panel = ablation_panel(tables.ablate(), "carry")
    (trace,) = [t for t in panel.traces if t.name == "feature removed"]
    assert "markers" in trace.mode
    assert len(trace.x) == 1
    lenses = [
        panel,
        patch_panel(tables.patch(), "carry", 2),
        interchange_panel(tables.interchange(), "carry", 2),
        mdl_panel(tables.mdl(), "carry"),
    ]
    figure = timeline_figure(tables.metrics(), [*feature_panels(tables.emergence_curve(), tables.emergence()), *lenses])
    assert {trace.xaxis for trace in figure.data} == {"x"}
    titles = [text for text in texts(figure) if text.startswith("<b>") and "transition" not in text]
    assert [title.split("</b>")[0] for title in titles[-4:]] == [
        "<b>Ablating carry", "<b>Patching resid_pre", "<b>Swapping carry", "<b>Description length of carry",
    ]  # fmt: skip
    listed = [trace.name for trace in figure.data if trace.showlegend is not False and trace.yaxis == "y5"]
    assert listed == ["intact", "feature removed", "random directions"]


def test_a_legend_too_long_for_a_line_gets_room():
    curves = tuple(go.Scatter(x=[1e10, 1e12], y=[0, 1], name=f"a curve with a name {k}") for k in range(9))
    heights = []
    for some in (curves[:2], curves):
        panel = Panel("A lens", some, "y", (0, 1), legend=Legend("lens"))
        heights.append(stack_panels([panel], None, filename="x").layout.height)
    assert heights[1] - heights[0] == 2 * ROW_HEIGHT


# Heads and neurons


def test_units_map_is_the_table_with_significant_heads_marked():
    rows = tables.ablate_units()
    figure = units_figure(rows)
    trace = figure.data[1]
    for step in (210, LAST):
        expected = select(rows, step=step).pivot(index="layer", columns="unit", values="loss_increase").to_numpy()
        np.testing.assert_allclose(grid(frame(figure, step)[1].z), expected, rtol=1e-3)
    assert trace.text[2][1] == ["1.43*", "<br>p = 0.003 (Holm-corrected)"]
    assert trace.text[1][3] == ["0.01", "<br>p = 0.4 (Holm-corrected)"]
    row = select(rows, step=LAST, layer=2, unit=1).iloc[0]
    names = ["loss_increase_low", "loss_increase_high", "loss_answer", "exact_answer"]
    np.testing.assert_allclose(trace.customdata[2][1], row[names].astype(float), rtol=1e-3)
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == pytest.approx((-rows["loss_increase"].max(), rows["loss_increase"].max()))
    assert "attention heads, mean ablation" in texts(figure)[0]


def test_units_bars_are_the_thirty_largest_at_each_step():
    rows = tables.ablate_units("mlp_post")
    rows.loc[(rows["step"] == 210) & (rows["layer"] == 0) & (rows["unit"] == 60), "loss_increase"] = 9.0
    figure = units_figure(rows)
    for step, at in zip((210, LAST), figure.frames, strict=True):
        part = select(rows, step=step).sort_values("loss_increase", ascending=False, kind="stable").head(30)
        (bar,) = at.data
        np.testing.assert_array_equal(bar.x, part["loss_increase"])
        named = [f"{row.layer}.{row.unit}" for row in part.itertuples()]
        assert [text.rstrip("*") for text in at.layout.yaxis.ticktext] == named
        assert bar.text[0] == f"layer {part['layer'].iloc[0]}, neuron {part['unit'].iloc[0]}"
        np.testing.assert_allclose(bar.x + bar.error_x.array, part["loss_increase_high"], atol=9)
    assert figure.frames[0].layout.yaxis.ticktext[0] == "0.60"
    assert figure.layout.yaxis.ticktext[0] == "2.1*"


def test_units_leave_what_is_unknown_open_and_refuse_a_mixture():
    rows = tables.ablate_units(steps=(LAST,))
    rows.loc[3, ["loss_increase", "p_value_holm"]] = np.nan
    trace = units_figure(rows).data[1]
    assert math.isnan(grid(trace.z)[0, 3])
    assert trace.text[0][3] == ["", ""]
    both = pd.concat([tables.ablate_units(), tables.ablate_units("mlp_post")])
    with pytest.raises(ValueError, match=r"shows one name, got \['z', 'mlp_post'\]"):
        units_figure(both)
    with pytest.raises(ValueError, match="ablate_units table must have rows"):
        units_figure(rows.iloc[:0])


# What all share


def test_probe_heatmap_has_a_row_a_head_where_the_site_has_heads():
    rows = pd.concat([select(tables.probe(), step=LAST).assign(head=head) for head in (0, 1)])
    rows.loc[rows["head"] == 1, "test_score"] *= 0.5
    figure = probe_heatmap(rows, "carry")
    assert list(figure.data[0].y) == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1", "3.0", "3.1"]
    expected = select(rows, source="trained", step=LAST, layer=2, head=1)["test_score"].to_numpy()
    np.testing.assert_allclose(grid(figure.data[3].z)[5], expected, rtol=1e-3)
    assert figure.layout.yaxis.title.text == "layer.head"


def all_figures() -> dict[str, go.Figure]:
    return {
        "patch": patch_figure(tables.patch()),
        "attribution": attribution_figure(tables.patch()),
        "interchange": interchange_figure(tables.interchange()),
        "transfer": transfer_figure(tables.transfer(steps=(0, 35, 110, LAST))),
        "mdl": mdl_figure(tables.mdl()),
        "ablation": ablation_over_steps_figure(tables.ablate_over_steps()),
        "heads": units_figure(tables.ablate_units()),
        "neurons": units_figure(tables.ablate_units("mlp_post")),
    }


def test_text_and_background_come_from_the_template_alone_and_figures_are_small():
    for name, figure in all_figures().items():
        spec = theme.figure_json(figure)
        assert "paper_bgcolor" not in spec, name
        assert "NaN" not in spec, name
        assert len(spec) < 400_000, name
        assert figure.layout.meta["filename"], name
        assert figure.layout.height == figure.layout.meta["height"], name
