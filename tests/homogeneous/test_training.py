"""Depthwise updates in a run, and the lens edge on it: updates by hand, divergence, resuming, schedules, the rows."""

from __future__ import annotations

import math

import lens_contract as contract
import numpy as np
import pandas as pd
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.analyses import edge
from qfl_interp.analyses.lenses.edge.lens import Edge
from qfl_interp.curvature.soft_rank import gradient_weighted, soft_ranks
from qfl_interp.errors import QflError
from qfl_interp.homogeneous import updates
from qfl_interp.homogeneous.config import RULES
from qfl_interp.homogeneous.depthwise import DepthwiseRule, relative_updates, scales
from qfl_interp.homogeneous.losses import targets_of
from qfl_interp.homogeneous.measuring import ranks_of
from qfl_interp.homogeneous.minibatch import run_minibatch
from qfl_interp.homogeneous.sharpness import top_sharpness
from qfl_interp.homogeneous.taylor import taylor_coefficients
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.models.build import build_model
from qfl_interp.models.forward import training_forward
from qfl_interp.models.mlp import HomogeneousMLP
from qfl_interp.training.session import RunSession, TrainingStopped
from qfl_interp.training.train import plan_run
from qfl_interp.training.updates import make_updates

SHAPE = MLPConfig(d_in=6, d_out=3, width=8, depth=3, width_exponent=1)
N = 48


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three clusters of points as images, 48 to train on."""
    rng = np.random.default_rng(0)
    y = (np.arange(72) % 3).astype(np.uint8)
    images = (128 + 30 * rng.standard_normal((3, 6))[y] + 12 * rng.standard_normal((72, 6))).clip(0, 255)
    images = images.astype(np.uint8).reshape(72, 2, 3)
    path = tmp_path_factory.mktemp("clusters") / "clusters.npz"
    np.savez(path, x_train=images[:N], y_train=y[:N], x_test=images[N:], y_test=y[N:])
    return qfl.load_task("digits", 6, path=str(path))


def config(rule="s=1", **changes):
    """A short training; settings of the rule stand beside those of the run."""
    values = {"n_steps": 6, "batch_size": 16, "draw": "batch", "schedule": "constant", "warmup_fraction": 0.0}
    values |= {"lr": 0.5, "n_val": 4, "eval_fraction": 1.0, "save_every": 1, "divergence_loss": 1e12} | changes
    if values["batch_size"] == "all":
        del values["draw"]
    own = {name: values.pop(name) for name in ("edge_multiple", "max_u") if name in values}
    own["n_sharpness"] = values.pop("n_sharpness", 32)
    return qfl.TrainConfig(optimizer="depthwise", optimizer_options=RULES[rule] | own, **values)


@pytest.fixture
def trained(task, tmp_path):
    """Trains a run in a folder of its own."""
    made = []

    def train(wanted, shape=SHAPE, **how):
        made.append(wanted)
        return qfl.train(task, shape, wanted, how.pop("out", tmp_path / f"run{len(made)}"), progress=False, **how)

    return train


def weights_of(run, step="last"):
    return [w.detach() for w in run.load_model(step).weights]


def measured(run, **how):
    return edge(run, progress=False, n_sharpness=32, **how)


def samples(task, n=N):
    """The first training samples and their classes."""
    return task.samples[:n], task.encode(task.problems()[:n]).tokens[:, 1]


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("rule", ["none", "s=1", "s=2"])
def test_full_batch_updates_by_autograd(task, trained, rule, loss):
    """Three updates written out with torch's own gradients and norms."""
    run = trained(config(rule, n_steps=3, batch_size="all", loss=loss))
    model = HomogeneousMLP(SHAPE, seed=0)
    x, labels = samples(task)
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    for _ in range(3):
        outputs = model(x)
        if loss == "cross_entropy":
            value, residual = torch.nn.functional.cross_entropy(outputs, labels), outputs.softmax(1) - one_hot
        else:
            value, residual = (outputs - one_hot).square().sum(1).mean() / 2, outputs - one_hot
        gradients = torch.autograd.grad(value, list(model.parameters()))
        batch = run_minibatch(model, x, labels if loss == "cross_entropy" else one_hot, loss)
        with torch.no_grad():
            rms = float(residual.square().sum(1).mean().sqrt())
            for k, (w, g) in enumerate(zip(model.weights, gradients, strict=True)):
                xi = 1.0
                if rule != "none":
                    b = batch.residual_norm * batch.unit_backward[k]
                    xi = rms ** int(rule[-1]) / 3 / float(batch.alphas[k] * batch.features[k].norm() * b.norm()) ** 2
                w -= 0.5 * xi * g
    for mine, by_hand in zip(weights_of(run), model.weights, strict=True):
        torch.testing.assert_close(mine, by_hand.detach(), rtol=1e-4, atol=1e-5)


def test_the_numbers_of_before(tmp_path):
    """What the training loop that these networks had of their own gave, to the digits that it printed."""
    own = {**RULES["s=1"], "edge_multiple": 8.0, "n_sharpness": 32}
    wanted = qfl.TrainConfig(
        n_steps=12, batch_size=128, draw="batch", optimizer="depthwise", optimizer_options=own, schedule="ramp",
        warmup_fraction=0.5, save_every=4, divergence_loss=1e12, n_val=16,
    )  # fmt: skip
    shape = MLPConfig(d_in=64, d_out=10, width=16, depth=4, width_exponent=2)
    run = qfl.train(qfl.load_task("digits"), shape, wanted, tmp_path / "run", progress=False)
    found = measured(run, sharpness=[0, 12])
    rows = found.rows.set_index("step")
    expected = {
        "lr": [23.111328878, 115.556644388, 138.667973266], "c0": [2.900844097, 2.603426695, 3.478125095],
        "c1": [-0.054521303, -0.114935195, -0.072973110], "c2": [0.001427939, 0.003854219, 0.001541255],
        "feature_motion": [0.000211572, 0.000603216, 0.000647192],
        "step_sharpness": [0.052380942, 0.067067697, 0.042241718],
        "edge_ratio": [0.605296591, 3.875058981, 2.928786742], "loss_after": [2.265955925, 3.566304684, 3.360173225],
    }  # fmt: skip
    # Rates to all their digits; losses as other processors round.
    np.testing.assert_allclose(rows.loc[[0, 4, 8], "lr"], expected.pop("lr"), rtol=1e-5)
    for name, values in expected.items():
        np.testing.assert_allclose(rows.loc[[0, 4, 8], name], values, rtol=5e-3, err_msg=name)
    ends = {
        "train_loss": [2.829663038, 3.269913435], "train_accuracy": [0.112734864, 0.100208768],
        "test_loss": [2.836562157, 3.415591002], "test_accuracy": [0.075, 0.133333333],
        "lambda_h": [0.54157716, 0.202233225], "lambda_p": [0.115383528, 0.121445954],
        "soft_rank": [1.123884664, 1.053139632], "gradient_weighted": [1.175044239, 1.0638038],
        "edge_ratio_p": [1.333333333, 8.420332141],
    }  # fmt: skip
    for name, values in ends.items():
        np.testing.assert_allclose(rows.loc[[0, 12], name], values, rtol=5e-3, err_msg=name)
    assert rows.loc[[4, 8], "lambda_p"].isna().all()
    layer = found.layers[(found.layers["step"] == 8) & (found.layers["layer"] == 3)].iloc[0]
    last = {"xi": 0.560136413, "u": 1.054320945, "rho": 0.091065501, "cumulative_cosine": -0.350240162,
            "weight_norm": 41.502263657, "stable_rank": 1.110051653, "centred_stable_rank": 3.208753983}  # fmt: skip
    assert {name: float(layer[name]) for name in last} == pytest.approx(last, rel=5e-3)


# Far beyond the edge


def test_divergence_is_a_result(trained, tmp_path):
    """Plain gradient descent on the squared error at 50 times the edge; the scaled rule stays finite."""
    wild = {"n_steps": 60, "edge_multiple": 50.0, "loss": "squared_error"}
    with pytest.raises(TrainingStopped, match="diverged") as stopped:
        trained(config("none", **wild), out=tmp_path / "plain")
    assert stopped.value.status == "diverged"
    assert 0 < stopped.value.step < 20
    rows = measured(qfl.Run.open(tmp_path / "plain"), sharpness="last").rows
    assert set(range(stopped.value.step)) <= set(rows.loc[rows["edge_ratio"].notna(), "step"])
    with pytest.raises(TrainingStopped) as again:
        trained(config("none", **wild), out=tmp_path / "plain", resume=True)
    assert again.value.step == stopped.value.step
    scaled = trained(config("s=1", **wild))
    assert scaled.finished
    assert math.isfinite(measured(scaled, steps="last", sharpness="last").rows["train_loss"].iloc[-1])


def test_a_limit_on_the_loss_ends_a_run(trained):
    with pytest.raises(TrainingStopped) as stopped:
        trained(config(divergence_loss=1e-3))
    assert (stopped.value.status, stopped.value.step) == ("diverged", 0)


def test_the_last_update_counts_too(trained):
    """One update at an absurd rate: no further batch is drawn, but the validation sees what is left."""
    with pytest.raises(TrainingStopped) as stopped:
        trained(config("none", n_steps=1, lr=1e30))
    assert (stopped.value.status, stopped.value.step) == ("diverged", 1)


def test_a_batch_fitted_exactly_ends_a_run(trained, tmp_path, monkeypatch):
    real = updates.Steps.targets

    def targets(steps, model, batch):
        """The network's own outputs from the third update on."""
        calls.append(batch)
        return model(model.samples[batch.tokens[:, 0]]).detach() if len(calls) > 2 else real(steps, model, batch)

    calls = []
    monkeypatch.setattr(updates.Steps, "targets", targets)
    with pytest.raises(TrainingStopped, match="fitted exactly") as stopped:
        trained(config("none", loss="squared_error"), out=tmp_path / "run")
    assert (stopped.value.status, stopped.value.step) == ("converged", 2)
    assert qfl.Run.open(tmp_path / "run").steps == [0, 1, 2]


def test_a_dead_layer_ends_a_run(task):
    wanted = config("none")
    model = build_model(SHAPE, task, seed=0)
    made = make_updates(model, task, plan_run(task, SHAPE, wanted), training_forward(model), torch.device("cpu"))
    with torch.no_grad():
        model.weights[1].zero_()
    with pytest.raises(TrainingStopped, match="a layer is dead") as stopped:
        made.apply(task.encode(task.problems()[:8]), 0.1)
    assert stopped.value.status == "dead"


# Learning rates


def test_the_learning_rate_in_units_of_the_edge(task, trained):
    run = trained(config(edge_multiple=3.0, n_steps=1))
    sample = updates.sharpness_batch(task, 32, 0).tokens[:, 0]
    assert len(set(sample.tolist())) == 32
    assert int(sample.max()) < N
    x, y = samples(task)
    x, y = x[sample], y[sample]
    model = HomogeneousMLP(SHAPE, seed=0)
    xi = scales(DepthwiseRule(), run_minibatch(model, x, y, "cross_entropy"))
    lr = 6 / top_sharpness(model, x, y, "cross_entropy", xi).value
    assert run.metrics["lr"].iloc[-1] == pytest.approx(lr, rel=1e-6)
    result = measured(run)
    first = result.rows.iloc[0]
    assert first["edge_ratio_p"] == pytest.approx(3, rel=1e-6)
    contract.check_tables(run, Edge, result)
    plain = top_sharpness(model, x, y, "cross_entropy").value
    assert first["lambda_h"] == pytest.approx(plain, rel=1e-6)
    assert first["edge_ratio_h"] == pytest.approx(lr * plain / 2, rel=1e-6)


def test_schedules(trained):
    warm = trained(config(schedule="ramp", warmup_fraction=0.5, n_steps=8, lr=1.0))
    np.testing.assert_allclose(warm.metrics["lr"].iloc[1:], [0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    constant = trained(config(n_steps=3))
    assert constant.metrics["lr"].iloc[1:].tolist() == [0.5] * 3
    tuned = trained(config(schedule="cdat", schedule_options={"sigma": 1.6}, lr=123.0))
    rows = measured(tuned, sharpness="last").rows.iloc[:-1]
    np.testing.assert_array_equal(rows["lr"], tuned.metrics["lr"].iloc[1:])
    for row in rows.itertuples():
        assert row.c2 > 0
        assert row.lr == pytest.approx(0.8 * abs(row.c1) / row.c2)
        assert row.edge_ratio == pytest.approx(0.8)


def test_the_cap_holds_the_hidden_layers(trained):
    caps = ({}, {"max_u": 0.05})
    free, held = (measured(trained(config(lr=20.0, **cap)), sharpness="last").layers for cap in caps)
    assert float(free[free["layer"] < 2]["u"].max()) > 0.5
    assert float(held[held["layer"] < 2]["u"].max()) == pytest.approx(0.05, rel=1e-4)
    assert float(held[held["layer"] == 2]["u"].max()) > 0.05


# What is measured


def test_rows_are_those_of_the_batch(task, trained):
    """The first update's rows from their own definitions; later ones know the way come so far."""
    run = trained(config(batch_size="all", n_steps=3))
    result = measured(run, sharpness="last")
    rows, layers = result.rows, result.layers
    assert rows["step"].tolist() == [0, 1, 2, 3]
    assert layers["step"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    x, y = samples(task)
    batch = run_minibatch(HomogeneousMLP(SHAPE, seed=0), x, y, "cross_entropy")
    xi = scales(DepthwiseRule(), batch)
    found = taylor_coefficients(batch, xi)
    row = rows.iloc[0]
    assert tuple(row[["c0", "c1", "gauss_newton", "feature_motion"]]) == pytest.approx(tuple(found))
    assert row["step_sharpness"] == pytest.approx(2 * found.c2 / -found.c1)
    assert row["edge_ratio"] == pytest.approx(0.5 * found.c2 / -found.c1)
    assert row["loss_after"] == pytest.approx(rows["train_loss"].iloc[1], rel=1e-5)
    np.testing.assert_allclose(rows["c0"].iloc[:3], rows["train_loss"].iloc[:3], rtol=1e-5)
    np.testing.assert_allclose(rows["c0"].iloc[:3], run.metrics["train_loss"].iloc[1:], rtol=1e-6)
    first = layers[layers["step"] == 0]
    np.testing.assert_allclose(first["xi"], xi, rtol=1e-6)
    np.testing.assert_allclose(first["u"], relative_updates(batch, xi, 0.5), rtol=1e-5)
    assert first["cumulative_cosine"].isna().all()
    for k in range(3):
        expected = soft_ranks(batch.features[k]), soft_ranks(batch.features[k], centre=True)
        one = first.iloc[k]
        assert one["stable_rank"] == pytest.approx(expected[0].stable_rank, rel=1e-6)
        assert one["entropy_rank"] == pytest.approx(expected[0].entropy_rank, rel=1e-6)
        assert one["centred_participation_ratio"] == pytest.approx(expected[1].participation_ratio, rel=1e-6)
    assert layers[layers["step"] == 2]["cumulative_cosine"].between(-1.0001, 1.0001).all()
    assert rows[["c1", "edge_ratio", "loss_after"]].iloc[-1].isna().all()


def test_a_step_is_the_one_that_training_took(trained):
    """Of a minibatch: its loss is the one that was logged, and its change leads to the next checkpoint."""
    run = trained(config(n_steps=4))
    rows = measured(run, sharpness="last").rows
    np.testing.assert_allclose(rows["c0"].iloc[:4], run.metrics["train_loss"].iloc[1:], rtol=1e-6)


def test_the_cumulative_cosine_is_1_along_a_straight_way(trained):
    """After one tiny update the next one points the same way; against it, -1 would come out."""
    layers = measured(trained(config(batch_size="all", n_steps=2, lr=1e-3)), sharpness="last").layers
    assert layers[layers["step"] == 1]["cumulative_cosine"].min() > 0.99


def test_evaluations_are_of_all_examples(task, trained):
    run = trained(config("s=2", n_steps=30, lr=1.0, save_every=30))
    last = measured(run, soft_rank="participation_ratio").rows.iloc[-1]
    model, (x, y) = run.load_model(), samples(task, 72)
    for part, rows in (("train", slice(N)), ("test", slice(N, None))):
        outputs = model(x[rows]).detach()
        assert last[f"{part}_accuracy"] == pytest.approx(float((outputs.argmax(1) == y[rows]).float().mean()))
        expected = float(torch.nn.functional.cross_entropy(outputs, y[rows]))
        assert last[f"{part}_loss"] == pytest.approx(expected, rel=1e-5)
    assert last["train_accuracy"] > 0.7
    sample = updates.sharpness_batch(task, 32, 0).tokens[:, 0]
    batch = run_minibatch(model, x[sample], y[sample], "cross_entropy")
    assert last["soft_rank"] == pytest.approx(soft_ranks(batch.features[-1]).participation_ratio, rel=1e-6)
    x, b = batch.features[-1].double(), batch.unit_backward[-1].double()
    assert last["gradient_weighted"] == pytest.approx(gradient_weighted(x @ x.T, b @ b.T), rel=1e-6)
    assert last["n_sharpness"] == 32
    assert last["converged_h"]
    assert last["converged_p"]


def test_ranks_of_equal_features_have_no_centred_ones():
    found = ranks_of(torch.ones(4, 3))
    assert found["stable_rank"] == pytest.approx(1)
    assert math.isnan(found["centred_stable_rank"])
    assert math.isnan(found["centred_participation_ratio"])


def test_one_hot_targets():
    assert targets_of("squared_error", torch.tensor([1, 0]), 3, torch.float64).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert targets_of("cross_entropy", torch.tensor([1, 0]), 3, torch.float64).tolist() == [1, 0]


# Runs


def test_a_stopped_run_goes_on_to_the_same_bits(trained, tmp_path, monkeypatch):
    """Stopped after its third checkpoint; another seed gives other bits."""
    wanted = config(n_steps=12, edge_multiple=2.0, save_every=3, schedule="ramp", warmup_fraction=0.5)
    whole = trained(wanted)
    real, saved = RunSession.save, []

    def stop(session, state):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(state.step)
        real(session, state)

    monkeypatch.setattr(RunSession, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(wanted, out=tmp_path / "stopped")
    monkeypatch.undo()
    assert saved == [0, 3, 6]
    again = trained(wanted, out=tmp_path / "stopped", resume=True)
    assert again.steps == whole.steps == [0, 3, 6, 9, 12]
    for step in whole.steps:
        assert all(torch.equal(a, b) for a, b in zip(weights_of(again, step), weights_of(whole, step), strict=True))
    columns = ["step", "lr", "train_loss", "grad_norm", "val_loss"]
    pd.testing.assert_frame_equal(again.metrics[columns], whole.metrics[columns], check_exact=True)
    other = trained(config(n_steps=12, edge_multiple=2.0, save_every=3, seed=1))
    assert not torch.equal(weights_of(other)[0], weights_of(whole)[0])


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        (MLPConfig(5, 3, 8), {}, "samples must have d_in = 5 columns, got 6"),
        (MLPConfig(6, 4, 8), {}, "d_out must be the task's 3 classes, got 4"),
        (SHAPE, {"batch_size": 49}, "batch_size must .*48.* got 49"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(trained, shape, changes, message):
    with pytest.raises((ValueError, QflError), match=message):
        trained(config(**changes), shape)


def test_the_rule_is_for_homogeneous_networks_and_these_for_vectors(task, trained, model_config, addition, tmp_path):
    with pytest.raises(QflError, match="needs a positively homogeneous network"):
        qfl.train(addition, model_config, config(draw="fresh"), tmp_path / "tokens", progress=False)
    with pytest.raises(QflError, match="needs a model that reads vectors"):
        trained(qfl.TrainConfig(n_steps=1, batch_size=4), model_config)
    with pytest.raises(QflError, match="needs a model that reads tokens"):
        qfl.train(addition, SHAPE, qfl.TrainConfig(n_steps=1, batch_size=4), tmp_path / "run", progress=False)


def test_edge_says_what_it_is_for(tiny_run, trained):
    with pytest.raises(QflError, match="edge needs a run of style 'homogeneous'"):
        edge(tiny_run)
    plain = trained(qfl.TrainConfig(n_steps=1, batch_size=4, n_val=4, optimizer="sgd", lr=0.01))
    with pytest.raises(QflError, match="edge needs the optimiser 'depthwise', got 'sgd'"):
        edge(plain)
    run = trained(config(n_steps=1))
    with pytest.raises(ValueError, match=r"soft_rank must be one of .* got 'rank'"):
        edge(run, soft_rank="rank")
    with pytest.raises(ValueError, match="n_sharpness must be at least 2 samples, got 1"):
        edge(run, n_sharpness=1)
