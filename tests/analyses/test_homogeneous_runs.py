"""The lenses on a run of a homogeneous network, whose layers differ in width."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp import analyses
from qfl_interp.activations.spans import site_span
from qfl_interp.interventions.controls import plane_means, random_planes
from qfl_interp.interventions.planes import Planes, cut_to
from qfl_interp.mlp_config import MLPConfig

PROBES = qfl.ProbeConfig(n_train=100, n_test=60)
SHAPE = MLPConfig(d_in=64, d_out=10, width=6, depth=3, width_exponent=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = qfl.TrainConfig(
        n_steps=20, batch_size=64, draw="batch", optimizer="depthwise", optimizer_options={"edge_multiple": 2.0},
        schedule="constant", warmup_fraction=0.0, save_every=10, n_val=64, eval_fraction=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("digits") / "run"
    return qfl.train(qfl.load_task("digits"), SHAPE, config, folder, progress=False)


def test_narrow_layers_are_filled_up_with_zeros(run):
    model, tokens = run.load_model(), run.task.encode(run.task.problems()[:5]).tokens
    span = site_span(model, tokens, 0, 1).values
    assert span.shape == (2, 2, 5, 64)
    for layer, width in enumerate((6, 12)):
        own = qfl.read_activations(model, tokens, [qfl.Site(layer)])[qfl.Site(layer)]
        torch.testing.assert_close(span[layer, :, :, :width], own.transpose(0, 1), rtol=0, atol=0)
        assert not span[layer, :, :, width:].any()


def test_directions_lose_zeros_alone():
    rows = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    assert cut_to(rows, 2).tolist() == [[1, 2], [3, 0]]
    assert cut_to(rows, 1) is rows
    assert cut_to(rows, 3) is rows


def test_random_directions_stay_in_the_layer(run):
    """As long as the feature's own there: the rest of a filled up direction would take out nothing."""
    model, tokens = run.load_model(), run.task.encode(run.task.problems()[:9]).tokens
    planes = Planes(
        torch.nn.functional.pad(torch.ones(1, 1, 6), (0, 58)), torch.zeros(1, 1), np.array([0]),
        torch.zeros(9, 1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool),
    )  # fmt: skip
    means = plane_means(model, tokens, planes)
    own = qfl.read_activations(model, tokens, [qfl.Site(0)])[qfl.Site(0)][:, 0].double().mean(0)
    torch.testing.assert_close(means[0, :6], own)
    assert not means[0, 6:].any()
    drawn = random_planes(planes, means, np.random.default_rng(0)).directions
    assert float(drawn[0, 0, :6].norm()) == pytest.approx(1)


def test_lenses_run_on_it(run):
    rows = analyses.probe(run, config=PROBES, progress=False).rows
    assert rows["test_loss"].notna().all()
    patched = analyses.patch(run, "is_odd", n_pairs=8, progress=False).rows
    assert patched["component"].unique().tolist() == ["resid_pre"]
    np.testing.assert_allclose(patched["logit_diff_normalised"], 1, rtol=1e-4)  # position 0 carries the whole sample
    for method in ("written", "project_out"):
        ablated = analyses.ablate(run, "is_odd", config=PROBES, method=method, n_trials=2, progress=False).rows
        assert {"intact", "ablated", "random", "same_norm"} <= set(ablated["condition"])
    swapped = analyses.interchange(run, "is_odd", config=PROBES, n_pairs=8, progress=False).rows
    assert swapped["n_directions"].eq(1).all()
    assert (
        analyses.curvature(run, "last", config=qfl.CurvatureConfig(n_examples=16), progress=False)
        .rows["sharpness"]
        .gt(0)
        .all()
    )
    figure = analyses.timeline(run, config=PROBES, progress=False)
    assert figure.data
