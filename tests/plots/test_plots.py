from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from figures.overview import leads_figure, losses_figure
from plotly import graph_objects as go

from qfl_interp.analyses.lenses.ablate.figure import ablation_figure
from qfl_interp.analyses.lenses.emergence.figure import emergence_figure, feature_panel, feature_panels, shading
from qfl_interp.analyses.lenses.probe.figure import probe_heatmap
from qfl_interp.analyses.pages.timeline_figure import timeline_figure
from qfl_interp.plots import theme
from qfl_interp.plots.axes import log_ticks
from qfl_interp.plots.panels import Panel
from qfl_interp.plots.theme import figure_config
from qfl_interp.tables import select
from tests import synthetic_tables as tables


def timeline(**changes: pd.DataFrame) -> go.Figure:
    given = {
        "metrics": tables.metrics(),
        "emergence_curves": tables.emergence_curve(),
        "emergence": tables.emergence(),
    }
    return emergence_figure(**(given | changes))


def named(figure: go.Figure, name: str) -> list:
    """Traces of this name that have data."""
    return [trace for trace in figure.data if trace.name == name and trace.x[0] is not None]


def test_timeline_curves_are_the_tables_without_step_0():
    figure, metrics = timeline(), tables.metrics()
    logged = metrics[metrics["val_loss_answer"].notna() & (metrics["step"] > 0)]
    for label, loss, exact in [
        ("over the answer alone", "val_loss_answer", "val_exact_answer"),
        ("as the paper counts (= scored)", "val_loss", "val_exact"),
    ]:
        for trace, column in zip(named(figure, label), (loss, exact), strict=True):
            np.testing.assert_array_equal(trace.x, logged["flops"])
            np.testing.assert_array_equal(trace.y, logged[column])
            np.testing.assert_array_equal(np.ravel(trace.customdata), logged["step"])


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_timeline_shows_each_third_with_its_own_controls(mean):
    figure = emergence_figure(tables.metrics(), tables.emergence_curve(), tables.emergence(), mean=mean)
    for third in ("beginning", "middle", "end"):
        for panel, feature in enumerate(("first_operand", "carry")):
            rows = select(tables.emergence_curve(), feature=feature, third=third)
            rows = rows[rows["flops"] > 0]
            for name, column in [
                (third, mean),
                (f"{third}, untrained model", f"baseline_{mean}"),
                (f"{third}, shuffled labels", "shuffled_geometric"),
            ]:
                trace = named(figure, name)[panel]
                assert trace.yaxis == f"y{panel + 3}"
                np.testing.assert_array_equal(trace.x, rows["flops"])
                np.testing.assert_array_equal(trace.y, rows[column])


def test_thirds_look_as_in_the_paper():
    figure = timeline()
    looks = {third: named(figure, third)[0].marker.symbol for third in ("beginning", "middle", "end")}
    assert looks == {"beginning": "circle", "middle": "square", "end": "triangle-up"}
    dotted = named(figure, "middle, untrained model")[0].line
    assert (dotted.dash, dotted.color) == ("dot", named(figure, "middle")[0].line.color)


def test_all_panels_share_one_log_axis_and_do_not_overlap():
    figure = timeline()
    assert {trace.xaxis for trace in figure.data} == {"x"}
    assert figure.layout.xaxis.type == "log"
    domains = [figure.layout[f"yaxis{i}"].domain for i in ("", 2, 3, 4)]
    for above, below in itertools.pairwise(domains):
        assert above[1] > above[0] > below[1] > below[0] >= -1e-9
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis2.type is None
    assert figure.layout.yaxis3.type == "log"


def test_band_is_the_tables_transition_across_all_panels():
    figure = timeline()
    (band,) = figure.layout.shapes
    start, end = (step * tables.FLOPS_PER_STEP for step in tables.TRANSITION_STEPS)
    assert (band.x0, band.x1) == pytest.approx((start, end))
    assert (band.xref, band.yref, band.y0, band.y1) == ("x", "paper", 0, 1)
    labels = [note for note in figure.layout.annotations if "loss transition" in note.text]
    assert len(labels) == 1
    assert math.log10(start) <= labels[0].x <= math.log10(end)


def test_onsets_stand_at_the_tables_flops_on_their_curve():
    figure = timeline()
    onsets = {(t.yaxis, t.name): t for t in figure.data if t.name.endswith(", onset")}
    assert set(onsets) == {
        ("y3", "beginning, onset"),
        ("y3", "middle, onset"),
        ("y4", "beginning, onset"),
        ("y4", "middle, onset"),
        ("y4", "end, onset"),
    }
    onset = onsets["y4", "middle, onset"]
    assert onset.x[0] == pytest.approx(81 * tables.FLOPS_PER_STEP)
    curve = named(figure, "middle")[1]
    after = int(np.searchsorted(curve.x, onset.x[0]))
    assert curve.y[after] < onset.y[0] < curve.y[after - 1]
    assert "quiet" in onset.hovertemplate
    assert "0.15 to 0.28" in onset.hovertemplate


def test_verdicts_are_told_above_their_panel():
    texts = [note.text for note in timeline().layout.annotations]
    (carry,) = [text for text in texts if text.count("quiet") == 3]
    assert "0.19 decades before" in carry
    (operand,) = [text for text in texts if text.count("loud") == 2]
    assert "(uncertain) 0.05 decades after" in operand
    assert "not learned" in operand


def test_without_a_transition_there_is_a_note_and_no_band():
    figure = timeline(emergence=tables.emergence(found=False))
    assert not figure.layout.shapes
    texts = " ".join(note.text for note in figure.layout.annotations)
    assert "no loss transition found: the loss fell by less" in texts
    assert "plateau" not in texts.replace("half of its plateau", "")


def test_verdicts_may_be_missing():
    figure = timeline(emergence=pd.DataFrame())
    assert not figure.layout.shapes
    assert len(named(figure, "beginning")) == 2


def test_each_legend_entry_appears_once_and_toggles_all_panels():
    figure = timeline()
    listed = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert len(listed) == len(set(listed))
    assert {"beginning", "middle", "end", "untrained model", "shuffled labels", "onset"} <= set(listed)
    assert {trace.legendgroup for trace in named(figure, "end")} == {"end"}
    assert {trace.yaxis for trace in figure.data if trace.legendgroup == "untrained"} == {"y3", "y4"}


@pytest.mark.parametrize("n_features", [1, 8])
def test_height_grows_so_that_panels_keep_theirs(n_features):
    part = select(tables.emergence_curve(), feature="carry")
    curves = pd.concat([part.assign(feature=f"feature_{k}") for k in range(n_features)])
    figure = timeline(emergence_curves=curves, emergence=pd.DataFrame())
    inner = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    last = figure.layout[f"yaxis{2 + n_features}"].domain
    assert (last[1] - last[0]) * inner == pytest.approx(170)
    assert figure.layout.xaxis.anchor == f"y{2 + n_features}"


def test_a_new_lens_adds_a_panel():
    curve = go.Scatter(x=[1e10, 1e12], y=[3.0, 40.0], name="sharpness")
    panel = Panel("Sharpness", (curve,), y_title="largest eigenvalue", y_range=(0.0, 50.0))
    features = feature_panels(tables.emergence_curve(), tables.emergence())
    figure = timeline_figure(tables.metrics(), [*features, panel], shading(tables.emergence()))
    (drawn,) = named(figure, "sharpness")
    assert (drawn.xaxis, drawn.yaxis) == ("x", "y5")
    assert tuple(figure.layout.yaxis5.range) == (0, 50)


def test_names_from_a_run_cannot_carry_markup():
    curves = tables.emergence_curve(("carry",)).assign(feature="<a href='http://x'>evil</a>")
    figure = timeline(emergence_curves=curves, emergence=pd.DataFrame())
    texts = " ".join(note.text for note in figure.layout.annotations)
    assert "<a" not in texts
    assert "&lt;a href" in texts


def test_only_step_0_is_an_error():
    metrics = select(tables.metrics(), step=0)
    with pytest.raises(ValueError, match="more than 0 FLOPs, got none"):
        timeline_figure(metrics)


def heat(figure: go.Figure, step: int) -> list:
    """The loss map and the second map of one step."""
    (frame,) = [frame for frame in figure.frames if frame.name == str(step)]
    return list(frame.data)


def test_heatmap_cells_are_the_tables_at_each_step():
    probe = pd.concat([tables.probe("first_operand"), tables.probe("carry")])
    figure = probe_heatmap(probe, "carry")
    assert [frame.name for frame in figure.frames] == [str(step) for step in tables.checkpoint_steps()]
    for step in (0, 110, 716):
        rows = select(probe, feature="carry", source="trained", step=step)
        grid = rows.pivot(index="layer", columns="label", values="test_loss").to_numpy()
        loss, accuracy = heat(figure, step)
        np.testing.assert_allclose(10 ** np.array(loss.z, dtype=float), grid, rtol=2e-3)
        grid = rows.pivot(index="layer", columns="label", values="test_score").to_numpy()
        np.testing.assert_allclose(np.array(accuracy.z, dtype=float), grid, rtol=1e-3)
        hover = np.array(loss.customdata, dtype=float)
        expected = rows.pivot(index="layer", columns="label", values="shuffled_test_loss").to_numpy()
        np.testing.assert_allclose(hover[..., 2], expected, rtol=1e-3)


def test_heatmap_colours_span_all_steps_and_unfitted_cells_are_crossed():
    probe = tables.probe()
    figure = probe_heatmap(probe, "carry", step=110)
    fitted = select(probe, source="trained", fitted=True)["test_loss"]
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == pytest.approx((np.log10(fitted.min()), np.log10(fitted.max())))
    crosses, loss = figure.data[0], figure.data[2]
    assert (np.array(crosses.text) == "×").all()
    empty = np.array([[cell is None for cell in row] for row in loss.z])
    assert empty[:, tables.UNFITTED_LABEL].all()
    assert not np.delete(empty, tables.UNFITTED_LABEL, axis=1).any()
    assert figure.layout.sliders[0].active == tables.checkpoint_steps().index(110)
    assert "step 110" in figure.layout.annotations[0].text


def test_heatmap_beside_shuffled_labels_shares_the_colours():
    figure = probe_heatmap(tables.probe(), "carry", beside="shuffled")
    rows = select(tables.probe(), source="trained", step=716)
    grid = rows.pivot(index="layer", columns="label", values="shuffled_test_loss").to_numpy()
    np.testing.assert_allclose(10 ** np.array(figure.data[3].z, dtype=float), grid, rtol=2e-3)


@pytest.mark.slow
def test_heatmap_is_small():
    assert len(theme.figure_json(probe_heatmap(tables.probe(), "carry"))) < 500_000


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"feature": "queue"}, "must have rows of feature 'queue'.*'carry'"),
        ({"feature": "carry", "step": 111}, "must be in the probe table, got 111"),
    ],
)
def test_heatmap_names_what_is_missing(change, match):
    with pytest.raises(ValueError, match=match):
        probe_heatmap(tables.probe(), **change)


def test_heatmap_refuses_two_settings_at_once():
    twice = pd.concat([tables.probe(), tables.probe().assign(settings="other")])
    with pytest.raises(ValueError, match="one row a step, layer, head, label"):
        probe_heatmap(twice, "carry")


@pytest.mark.parametrize(("count", "suffix"), [("answer", "_answer"), ("paper", "")])
def test_ablation_bars_and_whiskers_are_the_tables(count, suffix):
    ablate = tables.ablate()
    figure = ablation_figure(ablate, counts=[count], loss_scale="linear")
    assert [trace.type for trace in figure.data] == ["bar"] * 6
    for index, name in enumerate([f"exact{suffix}", f"loss{suffix}"]):
        for trace, condition in zip(figure.data[3 * index :], ["intact", "ablated", "random"], strict=False):
            rows = select(ablate, condition=condition)
            np.testing.assert_array_equal(trace.y, rows[name])
            np.testing.assert_allclose(trace.y + trace.error_y.array, rows[f"{name}_high"])
            np.testing.assert_allclose(trace.y - trace.error_y.arrayminus, rows[f"{name}_low"])


def test_ablation_loss_is_logarithmic_where_it_spans_far():
    figure = ablation_figure(tables.ablate())
    assert "<b>Features ablated</b>  step 716 · 3.0×10¹² FLOPs" in [note.text for note in figure.layout.annotations]
    assert [trace.type for trace in figure.data] == ["bar"] * 3 + ["scatter"] * 3
    assert (figure.layout.yaxis.type, figure.layout.yaxis2.type) == (None, "log")
    near = tables.ablate()
    columns = ["loss_answer", "loss_answer_low", "loss_answer_high"]
    near[columns] = near[columns] * 0.01 + 0.5
    assert ablation_figure(near).layout.yaxis2.type is None


def test_ablation_annotates_holm_p_values_on_the_tested_quantity_only():
    figure = ablation_figure(tables.ablate(), counts=["answer", "paper"])
    marks = [(note.text, note.yref) for note in figure.layout.annotations if note.text.startswith("p ")]
    assert marks == [("p < 0.001", "y"), ("p = 0.025", "y")]
    for shape, feature in zip(figure.layout.shapes, (0, 1), strict=True):
        assert (shape.x0, shape.x1) == pytest.approx((feature, feature + 0.27))


def test_ablation_of_two_steps_is_refused():
    two = pd.concat([tables.ablate(), tables.ablate().assign(step=100)])
    with pytest.raises(ValueError, match=r"steps \[100, 716\]"):
        ablation_figure(two)


def test_export_is_at_paper_size_and_nothing_is_uploaded():
    figure = timeline()
    config = figure_config(figure)
    assert config["toImageButtonOptions"] == {
        "format": "svg",
        "filename": "timeline",
        "width": theme.PAPER_WIDTH,
        "height": figure.layout.height,
    }
    assert config["showSendToCloud"] is False


def test_text_and_background_come_from_the_template_alone():
    spec = json.loads(theme.figure_json(timeline()))
    assert "template" not in spec["layout"]
    assert "paper_bgcolor" not in spec["layout"]
    light, dark = (json.loads(theme.template_json(dark))["layout"] for dark in (False, True))
    assert light["font"]["color"] != dark["font"]["color"]
    assert light["paper_bgcolor"] != dark["paper_bgcolor"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0005, 2.0, [0.001, 0.01, 0.1, 1]),
        (0.002, 0.8, [0.003, 0.01, 0.03, 0.1, 0.3]),
        (0.02, 0.3, [0.02, 0.05, 0.1, 0.2]),
        (0.31, 0.72, [0.4, 0.5, 0.6, 0.7]),
    ],
)
def test_log_ticks(low, high, expected):
    assert log_ticks(low, high)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("value", "text"), [(2.4e11, "2.4×10¹¹"), (3e-4, "3.0×10⁻⁴"), (0.0, "0"), (math.nan, "–")])
def test_format_power(value, text):
    assert theme.format_power(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0004, "p < 0.001"), (0.0246, "p = 0.025"), (0.5, "p = 0.5"), (math.nan, "")]
)
def test_format_p(value, text):
    assert theme.format_p(value) == text


def several_runs():
    """Loss curves, tasks and transitions of two tasks with two seeds each."""
    metrics, transitions = [], []
    for task, length, level in (("addition", 16, 0.7), ("sparse_parity", 12, 0.5)):
        for seed in (0, 1):
            flops = np.geomspace(1e9, 1e12, 20)
            losses = np.where(flops < 1e11 * (1 + seed), level, 0.01 * level)
            named = {"task": task, "length": length, "seed": seed}
            metrics.append(pd.DataFrame({"flops": [0.0, *flops], "val_loss_answer": [level, *losses]}).assign(**named))
            if task == "addition":
                transitions.append(named | {"start_flops": 1e11 * (1 + seed), "end_flops": 3e11 * (1 + seed)})
    tasks = pd.DataFrame([("addition", 16, 0.65), ("sparse_parity", 12, 0.69)], columns=["task", "length", "base_rate"])
    return pd.concat(metrics), tasks, pd.DataFrame(transitions)


def test_losses_figure_draws_every_run_its_base_rate_and_the_band():
    metrics, tasks, transitions = several_runs()
    figure = losses_figure(metrics, tasks, transitions)
    curves = [trace for trace in figure.data if trace.name.startswith("seed")]
    assert [(trace.name, trace.xaxis) for trace in curves] == [
        ("seed 0", "x"), ("seed 1", "x"), ("seed 0", "x2"), ("seed 1", "x2"),
    ]  # fmt: skip
    for trace in curves:
        assert min(trace.x) > 0, "a log axis has no 0"
        assert len(trace.x) == 20
    np.testing.assert_allclose(np.array(curves[1].y)[np.array(curves[1].x) < 2e11], 0.7)
    assert [trace.y[0] for trace in figure.data if trace.name == "base rate"] == [0.65, 0.69]
    (band,) = figure.layout.shapes
    assert (band.x0, band.x1, band.xref) == (1e11, 6e11, "x"), "from the first start to the last end, one task only"
    assert [a.text for a in figure.layout.annotations] == ["<b>addition</b> 16", "<b>sparse parity</b> 12"]


def test_losses_figure_draws_where_other_budgets_ended():
    metrics, tasks, transitions = several_runs()
    finals = pd.DataFrame({"flops": [1e10, 1e13], "val_loss_answer": [0.7, 1e-4]}).assign(task="addition", length=16)
    figure = losses_figure(metrics, tasks, transitions, finals=finals)
    (points,) = (trace for trace in figure.data if trace.mode == "markers")
    assert (points.xaxis, list(points.x), list(points.y)) == ("x", [1e10, 1e13], [0.7, 1e-4])
    assert figure.layout.xaxis.range[1] >= 13 > figure.layout.xaxis2.range[1], "the axis reaches to the last of them"


def test_losses_figure_marks_where_features_were_learned():
    metrics, tasks, transitions = several_runs()
    onsets = pd.DataFrame({
        "task": "addition", "length": 16, "feature": ["carry", "first_operand", "xor", "and"],
        "verdict": ["quiet", "loud", "-", "loud"],
        "onset_flops": [5e10, 2e11, np.nan, 1e11],
    })  # fmt: skip
    figure = losses_figure(metrics, tasks, transitions, onsets)
    lines = [shape for shape in figure.layout.shapes if shape.x0 == shape.x1]
    assert [(line.x0, line.xref) for line in lines] == [(5e10, "x"), (1e11, "x"), (2e11, "x")]
    assert lines[0].line.color != lines[1].line.color == lines[2].line.color
    marks = [a for a in figure.layout.annotations if a.textangle == -90]
    assert [(a.text, a.xref, a.x) for a in marks] == [
        ("carry", "x", np.log10(5e10)),
        ("and", "x", 11.0),
        ("first operand", "x", np.log10(2e11)),
    ]
    sides = [("right", "bottom"), ("right", "top"), ("left", "bottom")]
    assert [(a.xanchor, a.yanchor) for a in marks] == sides, "names stand apart"


def test_leads_figure_places_every_seed_and_names_what_has_no_lead():
    rows = [
        ("addition", "carry", 0, "quiet", True, 0.4, 0.3, 0.5),
        ("addition", "carry", 1, "loud", False, -0.1, -0.2, np.inf),
        ("addition", "first_operand", 0, "not learned", True, np.nan, np.nan, np.nan),
        ("addition", "first_operand", 1, "not learned", True, np.nan, np.nan, np.nan),
    ]
    names = ["task", "feature", "seed", "verdict", "certain", "lead_log10", "lead_low", "lead_high"]
    figure = leads_figure(pd.DataFrame(rows, columns=names).assign(length=16))
    assert list(figure.layout.yaxis.ticktext) == ["addition 16 · carry", "addition 16 · first operand"]
    quiet, loud = (trace for trace in figure.data if trace.x[0] is not None)
    assert (quiet.x[0], quiet.marker.symbol, quiet.opacity) == (0.4, "circle", 1.0)
    assert quiet.error_x.array[0] == pytest.approx(0.1)
    assert quiet.error_x.arrayminus[0] == pytest.approx(0.1)
    assert loud.opacity < 1, "an uncertain verdict is faded"
    assert loud.marker.symbol == "square"
    assert np.isfinite(loud.error_x.array[0]), "an open range ends at the edge"
    assert -0.5 < quiet.y[0] < loud.y[0] < 0.5
    assert [a.text for a in figure.layout.annotations] == ["2 × not learned"]


def test_a_number_s_probes_are_drawn_in_their_own_words():
    probe = tables.probe().assign(metric="mse", kind="scalar")
    probe["test_score"] = probe["test_score"] - 1.5  # R2 below 0: worse than the mean
    figure = probe_heatmap(probe, "carry")
    bars = [figure.layout[name].colorbar for name in ("coloraxis", "coloraxis2")]
    assert [bar.title.text for bar in bars] == ["test mean squared error", "test R²"]
    assert bars[1].tickformat == "~g"
    assert figure.layout.coloraxis2.cmin == 0.0
    assert "test mean squared error %{customdata[0]:.4f} (shuffled" in figure.data[2].hovertemplate
    curves = tables.emergence_curve(("carry",)).assign(metric="mse")
    assert feature_panel(curves, pd.DataFrame()).y_title == "test mean squared error"
    assert feature_panel(tables.emergence_curve(("carry",)), pd.DataFrame()).y_title == "test log loss (nats)"
