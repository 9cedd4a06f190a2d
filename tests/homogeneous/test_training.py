"""The trainer: updates by hand, divergence as a result, determinism, resuming, schedules, what is measured."""

from __future__ import annotations

import functools
import math
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import pairwise
from qfl_interp.homogeneous.images import Labelled
from qfl_interp.homogeneous.mlp import HomogeneousMLP
from qfl_interp.homogeneous.training import train_mlp

from qfl_interp.curvature.soft_rank import gradient_weighted, soft_ranks
from qfl_interp.errors import QflError
from qfl_interp.homogeneous import training
from qfl_interp.homogeneous.config import RULES, MLPConfig, MLPTrainConfig
from qfl_interp.homogeneous.depthwise import DepthwiseRule, relative_updates, scales
from qfl_interp.homogeneous.losses import targets_of
from qfl_interp.homogeneous.measuring import Evaluation, ranks_of
from qfl_interp.homogeneous.minibatch import run_minibatch
from qfl_interp.homogeneous.sharpness import top_sharpness
from qfl_interp.homogeneous.taylor import taylor_coefficients

SHAPE = MLPConfig(d_in=6, d_out=3, width=8, depth=3, width_exponent=1)


@pytest.fixture(scope="module")
def data():
    """Three clusters of points, 48 to train on."""
    g = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 6, generator=g)
    y = torch.arange(72) % 3
    x = centres[y] + torch.randn(72, 6, generator=g)
    x = x / x.norm(dim=1, keepdim=True) * 6**0.5
    return Labelled("clusters", x[:48], y[:48], x[48:], y[48:], 3)


def config(rule="s=1", **changes):
    values = {"n_steps": 6, "lr": 0.5, "batch_size": 16, "n_sharpness": 32, **RULES[rule], **changes}
    if "edge_multiple" in changes:
        del values["lr"]
    return MLPTrainConfig(**values)


def weights_of(run):
    return [w.detach() for w in run.model.weights]


def assert_same(one, other):
    assert one.ending == other.ending
    assert one.lr == other.lr
    assert all(torch.equal(a, b) for a, b in zip(weights_of(one), weights_of(other), strict=True))
    for name in ("steps", "layers", "evaluations"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("rule", ["none", "s=1", "s=2"])
def test_full_batch_updates_by_autograd(data, rule, loss):
    """Three updates written out with torch's own gradients and norms."""
    run = train_mlp(SHAPE, config(rule, n_steps=3, batch_size=48, loss=loss), data)
    model = HomogeneousMLP(SHAPE, seed=0)
    y = data.train_y if loss == "cross_entropy" else torch.nn.functional.one_hot(data.train_y, 3).float()
    for _ in range(3):
        outputs = model(data.train_x)
        if loss == "cross_entropy":
            value = torch.nn.functional.cross_entropy(outputs, y)
            residual = outputs.softmax(1) - torch.nn.functional.one_hot(data.train_y, 3)
        else:
            value = (outputs - y).square().sum(1).mean() / 2
            residual = outputs - y
        gradients = torch.autograd.grad(value, list(model.parameters()))
        batch = run_minibatch(model, data.train_x, y, loss)
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
    assert run.ending == ("finished", 3)


def test_same_seed_same_bits_other_seed_other(data):
    one, same, other = (train_mlp(SHAPE, config(seed=s, edge_multiple=2.0), data) for s in (0, 0, 1))
    assert_same(one, same)
    assert not torch.equal(weights_of(one)[0], weights_of(other)[0])


def test_a_batch_depends_on_seed_and_step_alone(data):
    """No example twice in a batch, other examples at another step."""
    trainer = training._Trainer(SHAPE, config(), data, DepthwiseRule())
    drawn = []
    for step in (0, 1, 0):
        trainer.step = step
        drawn.append(trainer._batch()[0])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert len({tuple(row) for row in drawn[0].tolist()}) == 16


# Far beyond the edge


def test_divergence_is_a_result(data, tmp_path):
    """Plain gradient descent on the squared error at 50 times the edge; the scaled rule stays finite."""
    plain = train_mlp(SHAPE, config("none", n_steps=60, edge_multiple=50.0, loss="mse"), data, out=tmp_path / "plain")
    assert plain.ending.status == "diverged"
    assert plain.ending.step < 20
    assert len(plain.steps) == plain.ending.step
    assert train_mlp(
        SHAPE, config("none", n_steps=60, edge_multiple=50.0, loss="mse"), data, out=tmp_path / "plain"
    ).ending == plain.ending  # fmt: skip
    scaled = train_mlp(SHAPE, config("s=1", n_steps=60, edge_multiple=50.0, loss="mse"), data)
    assert scaled.ending == ("finished", 60)
    assert math.isfinite(scaled.evaluations["train_loss"].iloc[-1])


def test_a_limit_on_the_loss_ends_a_run(data):
    run = train_mlp(SHAPE, config(divergence_loss=1e-3), data)
    assert run.ending == ("diverged", 0)
    assert run.steps.empty


def test_the_last_update_counts_too(data):
    """One update at an absurd rate: no further batch is drawn, but the evaluation sees what is left."""
    run = train_mlp(SHAPE, config("none", n_steps=1, lr=1e30), data)
    assert run.ending == ("diverged", 1)
    assert not run.evaluations["converged_p"].iloc[-1]
    assert math.isnan(run.evaluations["lambda_p"].iloc[-1])


def test_a_batch_fitted_exactly_and_a_dead_layer_end_a_run(data):
    fitted = data._replace(train_x=torch.zeros(48, 6))
    run = train_mlp(SHAPE, config("none", loss="mse"), fitted)
    assert run.ending == ("dead", 0)
    trainer = training._Trainer(SHAPE, config("none", loss="mse"), data, DepthwiseRule.of(config("none")))
    batch = run_minibatch(trainer.model, data.train_x, trainer.model(data.train_x).detach(), "mse")
    assert trainer._verdict(batch) == "converged"


# Learning rates


def test_the_learning_rate_in_units_of_the_edge(data):
    run = train_mlp(SHAPE, config(edge_multiple=3.0), data)
    model = HomogeneousMLP(SHAPE, seed=0)
    evaluation = Evaluation(config(edge_multiple=3.0), data, DepthwiseRule())
    inputs, y = data.train_x[evaluation._sample], data.train_y[evaluation._sample]
    assert len(set(evaluation._sample.tolist())) == 32
    xi = scales(DepthwiseRule(), run_minibatch(model, inputs, y, "cross_entropy"))
    edge = top_sharpness(model, inputs, y, "cross_entropy", xi).value
    assert run.lr == pytest.approx(6 / edge, rel=1e-6)
    first = run.evaluations.iloc[0]
    assert first["edge_ratio_p"] == pytest.approx(3, rel=1e-6)
    plain = top_sharpness(model, inputs, y, "cross_entropy").value
    assert first["lambda_h"] == pytest.approx(plain, rel=1e-6)
    assert first["edge_ratio_h"] == pytest.approx(run.lr * plain / 2, rel=1e-6)


def test_schedules(data):
    warm = train_mlp(SHAPE, config(schedule="warmup", n_steps=8, lr=1.0), data)
    np.testing.assert_allclose(warm.steps["lr"], [0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    constant = train_mlp(SHAPE, config(n_steps=3), data)
    assert constant.steps["lr"].tolist() == [0.5] * 3
    geometry = train_mlp(SHAPE, config(schedule="geometry_aware", kappa=0.8, lr=123.0), data)
    for row in geometry.steps.itertuples():
        assert row.c2 > 0
        assert row.lr == pytest.approx(0.8 * abs(row.c1) / row.c2)
        assert row.edge_ratio == pytest.approx(0.8)


def test_the_cap_holds_the_hidden_layers(data):
    free, held = (train_mlp(SHAPE, config(lr=20.0, max_u=m), data) for m in (None, 0.05))
    hidden = held.layers[held.layers["layer"] < 2]
    assert float(free.layers[free.layers["layer"] < 2]["u"].max()) > 0.5
    assert float(hidden["u"].max()) == pytest.approx(0.05, rel=1e-4)
    assert float(held.layers[held.layers["layer"] == 2]["u"].max()) > 0.05


def one_for_all(stats):
    """A rule of the user's: half a plain step, in every layer."""
    return [0.5] * len(stats.alphas)


def test_a_rule_of_the_users(data, tmp_path):
    half = train_mlp(SHAPE, config("s=1", lr=0.5), data, rule=one_for_all)
    plain = train_mlp(SHAPE, config("none", lr=0.25), data)
    for a, b in zip(weights_of(half), weights_of(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    train_mlp(SHAPE, config(n_steps=1), data, rule=one_for_all, out=tmp_path / "own")
    with pytest.raises(QflError, match="another configuration, data set or rule"):
        train_mlp(SHAPE, config(n_steps=1), data, out=tmp_path / "own")
    with pytest.raises(QflError, match="known by its rule's name"):
        train_mlp(SHAPE, config(n_steps=1), data, rule=lambda _: (1.0, 1.0, 1.0), out=tmp_path / "lambda")


# What is measured


def test_rows_are_those_of_the_batch(data):
    """The first update's rows from their own definitions; later ones know the way come so far."""
    run = train_mlp(SHAPE, config(batch_size=48, n_steps=3, log_every=2, eval_every=1), data)
    assert run.steps["step"].tolist() == [0, 2]
    assert run.layers["step"].tolist() == [0, 0, 0, 2, 2, 2]
    assert run.evaluations["step"].tolist() == [0, 1, 2, 3]
    model = HomogeneousMLP(SHAPE, seed=0)
    batch = run_minibatch(model, data.train_x, data.train_y, "cross_entropy")
    xi = scales(DepthwiseRule(), batch)
    found = taylor_coefficients(batch, xi)
    row = run.steps.iloc[0]
    assert tuple(row[["c0", "c1", "gauss_newton", "feature_motion"]]) == pytest.approx(tuple(found))
    assert row["sharpness"] == pytest.approx(2 * found.c2 / -found.c1)
    assert row["edge_ratio"] == pytest.approx(0.5 * found.c2 / -found.c1)
    assert row["loss_after"] == pytest.approx(run.evaluations["train_loss"].iloc[1], rel=1e-5)
    assert run.steps["c0"].iloc[1] == pytest.approx(run.evaluations["train_loss"].iloc[2], rel=1e-5)
    layers = run.layers[run.layers["step"] == 0]
    np.testing.assert_allclose(layers["xi"], xi, rtol=1e-6)
    np.testing.assert_allclose(layers["u"], relative_updates(batch, xi, 0.5), rtol=1e-5)
    assert layers["cumulative_cosine"].isna().all()
    for k in range(3):
        expected = soft_ranks(batch.features[k]), soft_ranks(batch.features[k], centre=True)
        one = layers.iloc[k]
        assert one["stable_rank"] == pytest.approx(expected[0].stable_rank, rel=1e-6)
        assert one["entropy_rank"] == pytest.approx(expected[0].entropy_rank, rel=1e-6)
        assert one["centred_participation_ratio"] == pytest.approx(expected[1].participation_ratio, rel=1e-6)
    later = run.layers[run.layers["step"] == 2]["cumulative_cosine"]
    assert later.between(-1.0001, 1.0001).all()


def test_the_cumulative_cosine_is_1_along_a_straight_way(data):
    """After one tiny update the next one points the same way; against it, -1 would come out."""
    run = train_mlp(SHAPE, config(batch_size=48, n_steps=2, lr=1e-3), data)
    assert run.layers[run.layers["step"] == 1]["cumulative_cosine"].min() > 0.99


def test_evaluations_are_of_all_examples(data):
    run = train_mlp(SHAPE, config("s=2", n_steps=30, lr=1.0, soft_rank="participation_ratio"), data)
    last = run.evaluations.iloc[-1]
    for part, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        outputs = run.model(x).detach()
        assert last[f"{part}_accuracy"] == pytest.approx(float((outputs.argmax(1) == y).float().mean()))
        assert last[f"{part}_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, y)), rel=1e-5)
    assert last["train_accuracy"] > 0.9
    sample = Evaluation(config(), data, DepthwiseRule())._sample
    batch = run_minibatch(run.model, data.train_x[sample], data.train_y[sample], "cross_entropy")
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
    assert targets_of("mse", torch.tensor([1, 0]), 3, torch.float64).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert targets_of("cross_entropy", torch.tensor([1, 0]), 3, torch.float64).tolist() == [1, 0]


# Saved runs


def test_a_stopped_run_goes_on_to_the_same_bits(data, tmp_path, monkeypatch):
    """Stopped after its third checkpoint, and in the middle of writing the next one's rows."""
    wanted = config(n_steps=12, edge_multiple=2.0, n_checkpoints=6, eval_every=3, schedule="warmup")
    whole = train_mlp(SHAPE, wanted, data)
    real, saved = training.RunFolder.save, []

    def stop(folder, step, weights, rows):
        if len(saved) == 3:
            folder.table("steps").write("step_00000099", pd.DataFrame(rows["steps"]))
            raise KeyboardInterrupt
        saved.append(step)
        real(folder, step, weights, rows)

    monkeypatch.setattr(training.RunFolder, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train_mlp(SHAPE, wanted, data, out=tmp_path / "run")
    monkeypatch.undo()
    assert 0 < saved[-1] < 12
    again = train_mlp(SHAPE, wanted, data, out=tmp_path / "run")
    assert_same(again, whole)
    read = train_mlp(SHAPE, wanted, data, out=tmp_path / "run")
    assert_same(read, whole)
    steps = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps[0] == "step_00000000"
    assert steps[-1] == "step_00000012"


def test_a_finished_run_is_read_not_trained(data, tmp_path, monkeypatch):
    train_mlp(SHAPE, config(), data, out=tmp_path / "run")
    monkeypatch.setattr(training._Trainer, "run", None)
    assert train_mlp(SHAPE, config(), data, out=tmp_path / "run").ending == ("finished", 6)


def damage(path):
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def to_be_damaged(ended, eval_every):
    """The settings of a run that ends well or badly."""
    rate = {"edge_multiple": 2.0} if ended == "finished" else {"edge_multiple": 50.0, "loss": "mse"}
    rule = "s=1" if ended == "finished" else "none"
    return config(rule, n_steps=12, n_checkpoints=4, eval_every=eval_every, log_every=2, **rate)


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """Trains a run of `to_be_damaged` once: its result and its folder, to copy."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def train(*settings):
        out = folder / "-".join(map(str, settings))
        return train_mlp(SHAPE, to_be_damaged(*settings), data, out=out), out

    return train


@pytest.mark.parametrize(
    ("broken", "eval_every", "ended"),
    pairwise(
        ["checkpoints/step_00000012/model.safetensors", "checkpoints/*/model.safetensors",
         "tables/steps/step_00000001.parquet", "tables/*/*.parquet", "tables/layers/_step_00000012.json",
         "tables/evaluations/_step_00000012.json", "tables/evaluations/_step_00000000.json", "result.json", "nothing"],
        [0, 5],
        ["finished", "diverged"],
    ),
)  # fmt: skip
def test_a_damaged_run_is_trained_again(data, whole_run, tmp_path, broken, eval_every, ended):
    """Bytes changed, or a part's manifest deleted as the table's error advises: the same bits, with a warning."""
    wanted = to_be_damaged(ended, eval_every)
    whole, folder = whole_run(ended, eval_every)
    shutil.copytree(folder, tmp_path / "run")
    assert whole.ending.status == ended
    last = f"{whole.ending.step:08d}"
    hurt = sorted((tmp_path / "run").glob(broken.replace("00000012", last)))
    # What diverged early has fewer checkpoints, and no last evaluation of its own.
    assert bool(hurt) == (broken != "nothing") or ended == "diverged"
    for path in hurt:
        path.unlink() if "_step" in path.name else damage(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert_same(train_mlp(SHAPE, wanted, data, out=tmp_path / "run"), whole)
        assert bool(said) == bool(hurt)
        said.clear()
        assert_same(train_mlp(SHAPE, wanted, data, out=tmp_path / "run"), whole)
        assert not said


def test_a_damaged_run_that_is_stopped_again_is_not_taken_for_finished(data, tmp_path, monkeypatch):
    wanted = config(n_steps=12, n_checkpoints=4)
    whole = train_mlp(SHAPE, wanted, data, out=tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "step_00000012" / "model.safetensors")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.RunFolder, "save", stop)
    with pytest.warns(UserWarning, match="earlier checkpoint|from where it is whole"), pytest.raises(KeyboardInterrupt):
        train_mlp(SHAPE, wanted, data, out=tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.warns(UserWarning, match="earlier checkpoint"):
        assert_same(train_mlp(SHAPE, wanted, data, out=tmp_path / "run"), whole)


def test_a_run_is_saved_into_a_directory(data, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(QflError, match="is a file"):
        train_mlp(SHAPE, config(), data, out=tmp_path / "run")


def test_what_is_there_is_never_overwritten(data, tmp_path):
    train_mlp(SHAPE, config(), data, out=tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for shape, other, theirs in (
        (SHAPE, config(lr=0.1), data),
        (MLPConfig(6, 3, 9, 3, 1), config(), data),
        (SHAPE, config(), data._replace(train_x=2 * data.train_x)),
    ):
        with pytest.raises(QflError, match="another configuration, data set or rule"):
            train_mlp(shape, other, theirs, out=tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "note.txt").write_text("mine")
    with pytest.raises(QflError, match=r"is no run \(it holds note.txt\)"):
        train_mlp(SHAPE, config(), data, out=tmp_path / "else")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train_x", torch.nan, "train_x must be finite, got a NaN or an infinity in row 3"),
        ("test_x", torch.inf, "test_x must be finite, got a NaN or an infinity in row 3"),
        ("train_y", 99, "train_y must be .* classes from 0 to .*, got .* to 99"),
        ("test_y", -1, "test_y must be .* classes from 0 to .*, got .* from -1"),
    ],
)
def test_bad_data_is_no_divergence(data, field, value, message):
    damaged = getattr(data, field).clone()
    damaged[3] = value
    with pytest.raises(ValueError, match=message):
        train_mlp(SHAPE, config(), data._replace(**{field: damaged}))


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        (MLPConfig(5, 3, 8), {}, "must have d_in = 6 and d_out = 3"),
        (MLPConfig(6, 4, 8), {}, "must have d_in = 6 and d_out = 3"),
        (SHAPE, {"batch_size": 49}, "batch_size must be at most the 48 training examples, got 49"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(data, shape, changes, message):
    with pytest.raises(ValueError, match=message):
        train_mlp(shape, config(**changes), data)
