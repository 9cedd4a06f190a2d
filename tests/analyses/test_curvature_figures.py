"""Figures of curvature on made-up tables: they show what is in the tables, and refuse bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qfl_interp.analyses.lenses.curvature.figure import curvature_figure, curvature_panels
from qfl_interp.analyses.lenses.curvature.ranks_figure import soft_rank_figure
from qfl_interp.analyses.lenses.curvature.section import curvature_sections
from qfl_interp.plots.panels import Shade

STEPS = [0, 1, 10, 100, 1000]
FLOPS_PER_STEP = 1e8
N_LAYERS, N_POS = 3, 5
ADAM = ("preconditioned_sharpness", "preconditioned_over_edge", "update_sharpness", "cos_preconditioned_step")


def rows(**changes) -> pd.DataFrame:
    """One row a step; the last has no next checkpoint, the first no preconditioner."""
    n = len(STEPS)
    table = {
        "step": STEPS,
        "flops": np.array(STEPS) * FLOPS_PER_STEP,
        "moments": ["no update yet"] + ["saved"] * (n - 1),
        "sharpness": [5.0, 6.0, 40.0, 90.0, 30.0],
        "sharpness_converged": [True] * n,
        "edge": [2e4, 2e3, 2e3, 2e3, 2e3],
        "sharpness_over_edge": [0.00025, 0.003, 0.02, 0.045, 0.015],
        "preconditioned_sharpness": [np.nan, 1e3, 5e4, 3e4, 2e4],
        "adam_edge": [4e5, 38e3, 38e3, 38e3, 38e3],
        "preconditioned_over_edge": [np.nan, 0.026, 1.32, 0.79, 0.53],
        "step_curvature": [0.4, 0.5, -3.0, 2.0, np.nan],
        "step_sharpness": [0.1, 0.4, 9.5, -2.5, np.nan],
        "update_sharpness": [0.1, 0.4, 2.2, 1.5, np.nan],
        "cos_gradient_step": [0.3, 0.2, 0.1, 0.05, np.nan],
        "cos_preconditioned_step": [np.nan, 0.5, 0.4, 0.3, np.nan],
        "cos_gradient_update": [0.3, 0.2, 0.1, 0.05, np.nan],
        "cos_step_cumulative": [np.nan, 0.9, 0.6, 0.3, np.nan],
        "weight_norm": [20.0, 20.1, 21.0, 24.0, 26.0],
    }
    return pd.DataFrame(table | changes)


def ranks() -> pd.DataFrame:
    """Stable rank 1 + layer + position / 10, centred twice that; none centred at position 0."""
    return pd.DataFrame(
        [
            {
                "step": step,
                "flops": step * FLOPS_PER_STEP,
                "layer": layer,
                "position": position,
                "n_samples": 50,
                "stable_rank": 1 + layer + position / 10,
                "participation_ratio": 1.5,
                "entropy_rank": 2.0,
                "stable_rank_centred": np.nan if position == 0 else 2 * (1 + layer + position / 10),
                "participation_ratio_centred": 3.0,
            }
            for step in STEPS
            for layer in range(N_LAYERS)
            for position in range(-1, N_POS)
        ]
    )


def sampled() -> pd.DataFrame:
    return rows(
        learning_coefficient=[np.nan, 4.0, 6.0, 9.0, 8.0],
        learning_coefficient_std=[np.nan, 0.5, 0.4, 1.0, 0.3],
        n_chains=[4.0] * 5,
        n_finite_chains=[4.0, 4.0, 4.0, 3.0, 4.0],
    )


def by_title(panels):
    return {panel.title: panel for panel in panels}


def trace(panel, name):
    (found,) = [one for one in panel.traces if one.name == name]
    return found


def test_the_panels_of_a_run_with_moments():
    panels = by_title(curvature_panels(sampled(), ranks()))
    assert list(panels) == [
        "Sharpness", "Alignment", "Soft rank of the residual stream", "Local learning coefficient",
    ]  # fmt: skip
    sharpness = panels["Sharpness"]
    assert sharpness.log_y
    np.testing.assert_array_equal(trace(sharpness, "λ of H").x, np.array(STEPS[1:]) * FLOPS_PER_STEP)
    np.testing.assert_array_equal(trace(sharpness, "λ of H").y, [6, 40, 90, 30])
    np.testing.assert_array_equal(trace(sharpness, "its edge, 2/lr").y, [2e3] * 4)
    np.testing.assert_array_equal(trace(sharpness, "λ of P½HP½ (Adam)").y, [1e3, 5e4, 3e4, 2e4])
    along = trace(sharpness, "along the step, d'Hd/|d|²")
    np.testing.assert_array_equal(along.y, [0.5, np.nan, 2.0, np.nan])  # negative: not on a log axis
    np.testing.assert_array_equal(along.customdata[:, 0], [0.5, -3.0, 2.0, np.nan])
    low, high = sharpness.y_range
    assert low < 0.5
    assert high > 5e4


def test_the_soft_rank_of_every_layer_over_all_scored_positions():
    panel = by_title(curvature_panels(rows(), ranks()))["Soft rank of the residual stream"]
    for layer in range(N_LAYERS):
        np.testing.assert_allclose(trace(panel, f"layer {layer}").y, 2 * (1 + layer - 0.1))
        np.testing.assert_allclose(trace(panel, f"layer {layer}, not centred").y, 1 + layer - 0.1)
    assert panel.y_range[0] < 0.9 < 2 * 2.9 < panel.y_range[1]


def test_curves_that_a_run_lacks_are_left_out():
    nothing = dict.fromkeys((*ADAM, "adam_edge", "edge", "cos_gradient_update"), np.nan)
    panels = by_title(curvature_panels(rows(**nothing), ranks()))
    assert [one.name for one in panels["Sharpness"].traces] == ["λ of H", "along the step, d'Hd/|d|²"]
    assert "Local learning coefficient" not in panels
    assert len(curvature_figure(rows(**nothing), ranks()).data) > 5


def test_learning_coefficients_with_their_spread():
    panel = by_title(curvature_panels(sampled(), ranks()))["Local learning coefficient"]
    found = trace(panel, "learning coefficient")
    np.testing.assert_array_equal(found.y, [4, 6, 9, 8])
    np.testing.assert_array_equal(found.error_y.array, [0.5, 0.4, 1.0, 0.3])
    assert list(found.marker.symbol) == ["circle", "circle", "circle-open", "circle"]
    assert panel.y_range[0] <= 0
    assert panel.y_range[1] > 10


def test_the_figure_adds_the_loss_along_the_steps_and_the_weights():
    figure = curvature_figure(sampled(), ranks(), transition=Shade(1e9, 1e10, "loss transition"))
    text = " ".join(str(one.text) for one in figure.layout.annotations)
    for title in ("Sharpness", "Sharpness along the step", "Weight norm", "Alignment", "Soft rank", "learning"):
        assert title in text
    assert "loss transition" in text
    (along,) = [one for one in figure.data if one.name == "to the next checkpoint"]
    np.testing.assert_array_equal(along.y, [0.4, 6.0, -1.0, np.nan])  # held within the panel
    np.testing.assert_array_equal(np.asarray(along.customdata)[:, 0], [0.4, 9.5, -2.5, np.nan])
    (norm,) = [one for one in figure.data if one.name == "|θ|"]
    np.testing.assert_array_equal(norm.y, [20.1, 21.0, 24.0, 26.0])


@pytest.mark.parametrize("centred", [True, False])
def test_the_map_of_every_layer_and_position(centred):
    figure = soft_rank_figure(ranks(), centred=centred, step=10)
    z = np.array(figure.data[1].z, dtype=float)
    expected = 1 + np.arange(N_LAYERS)[:, None] + np.arange(N_POS) / 10
    if centred:
        expected = 2 * expected
        expected[:, 0] = np.nan
    np.testing.assert_allclose(z, expected)
    assert list(figure.data[1].x) == list(range(N_POS))
    assert [frame.name for frame in figure.frames] == [str(step) for step in STEPS]
    assert figure.layout.coloraxis.cmax == pytest.approx(np.nanmax(expected))
    assert "step 10 " in figure.layout.annotations[0].text


def test_tables_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match=r"must have rows, got none. Run `qfl curvature`"):
        curvature_figure(rows().iloc[:0], ranks())
    with pytest.raises(ValueError, match="one row a step, got several"):
        curvature_figure(pd.concat([rows(), rows()]), ranks())
    with pytest.raises(ValueError, match="one row a step, layer, position, got several"):
        curvature_figure(rows(), pd.concat([ranks(), ranks()]))
    with pytest.raises(ValueError, match="must have rows, got none"):
        soft_rank_figure(ranks()[ranks()["position"] == -1])
    with pytest.raises(ValueError, match="got 7, which is not among"):
        soft_rank_figure(ranks(), step=7)


def test_the_report_says_where_the_sharpness_is_highest():
    curves, positions = curvature_sections(rows(), ranks())
    assert "highest at step 100: 90" in curves.text
    assert "2/lr it reaches 0.045 and is above 1 at 0 of 5" in curves.text
    assert "Adam's edge it reaches 1.3 and is above 1 at 1 of 4" in curves.text
    assert "converge" not in curves.text
    assert set(curves.downloads) == {"curvature", "soft_ranks"}
    assert positions.figure is not None
    loose = rows(moments=["not saved"] * 5, sharpness_converged=[True, False, True, True, True])
    text = curvature_sections(loose, ranks())[0].text
    assert "At 1 checkpoints the eigenvalue did not converge" in text
    assert "`save_optimizer=True`" in text


def test_without_compute_the_figure_is_over_steps():
    figure = curvature_figure(sampled().assign(flops=np.nan), ranks().assign(flops=np.nan))
    assert figure.layout.xaxis.title.text == "training step"
    shown = {float(x) for trace in figure.data for x in trace.x}
    assert shown == {float(step) for step in rows()["step"] if step > 0}
