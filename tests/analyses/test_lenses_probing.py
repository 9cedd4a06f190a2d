"""The probe lens beyond its defaults: classes, sites, pooled probes, penalties, the store, processes; transfer, mdl."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_train_config
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

import qfl_interp as qfl
from qfl_interp.activations.spans import site_span
from qfl_interp.analyses import ablate, capture, mdl, probe, transfer
from qfl_interp.analyses.lenses.probe import data as of_probes
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.probes import load_probes, online_code

SIZES = {"n_train": 200, "n_test": 80}
CONFIG = qfl.ProbeConfig(**SIZES)
QUIET = {"progress": False}
# The exact optimum, where scikit-learn's default stop would be off by more than the test allows.
EXACT = {"C": 100, "tol": 1e-10, "max_iter": 10_000, "solver": "newton-cholesky"}


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run for all tests here; each adds tables of settings of its own."""
    path = tmp_path_factory.mktemp("probing") / "run"
    shutil.copytree(tiny_run.path, path)
    return qfl.Run.open(path)


def read(run, hook, examples, feature, label, head=None):
    """Activations and labels of one label, through TransformerLens's own cache."""
    wanted = run.task.feature(feature)
    _, cache = run.load_model().run_with_cache(run.task.encode(examples).tokens)
    x = cache[hook][:, :, head] if head is not None else cache[hook]
    at = torch.from_numpy(np.array(wanted.positions(examples)[:, label]))
    return x[torch.arange(len(examples)), at].detach().double().numpy(), wanted.labels(examples)[:, label]


def rows_of(run, config, feature="carry", **kwargs):
    """The trained model's rows at the last step."""
    found = probe(run, feature, "last", config=config, n_untrained=0, **kwargs, **QUIET).to_dataframe()
    return found.set_index(["layer", "head", "label"])


@pytest.mark.parametrize(
    ("site", "hook", "layer", "head"),
    [
        ("z", "blocks.1.attn.hook_z", 1, 3),
        ("resid_mid", "blocks.0.hook_resid_mid", 0, -1),
        ("attn_out", "blocks.1.hook_attn_out", 1, -1),
        ("mlp_out", "blocks.1.hook_mlp_out", 1, -1),
    ],
)
def test_sites_beyond_the_residual_stream(run, site, hook, layer, head):
    """Test loss and both controls against scikit-learn on TransformerLens's cache."""
    rows = rows_of(run, qfl.ProbeConfig(site=site, **SIZES))
    assert set(rows["site"]) == {site}
    heads = range(4) if site == "z" else [-1]
    assert sorted(rows.index) == [(k, h, r) for k in range(2) for h in heads for r in range(6)]
    data = of_probes.probe_data(run, CONFIG)
    chosen = None if head < 0 else head
    (x, y), (x_test, y_test) = (read(run, hook, e, "carry", 2, chosen) for e in (data.train, data.test))
    model = LogisticRegression(**EXACT).fit(x, y)
    row = rows.loc[layer, head, 2]
    assert row["test_loss"] == pytest.approx(log_loss(y_test, model.predict_proba(x_test)), rel=1e-3)
    assert row["test_score"] == model.score(x_test, y_test)
    rate = y.mean()
    assert row["majority_test_loss"] == pytest.approx(-np.log(np.where(y_test == 1, rate, 1 - rate)).mean())
    assert row["majority_test_score"] == (y_test == (rate > 0.5)).mean()
    assert row["selectivity"] == pytest.approx(row["test_score"] - row["shuffled_test_score"])


def test_pooled_probes_are_one_a_layer(run):
    """scikit-learn on all labels' examples at once, scored label by label."""
    rows = rows_of(run, qfl.ProbeConfig(pooled=True, **SIZES))
    data = of_probes.probe_data(run, CONFIG)
    sets = [[read(run, "blocks.1.hook_resid_post", e, "carry", r) for r in range(6)] for e in (data.train, data.test)]
    x, y = (np.concatenate(parts) for parts in zip(*sets[0], strict=True))
    model = LogisticRegression(**EXACT).fit(x, y)
    for label, (x_test, y_test) in enumerate(sets[1]):
        losses = -np.log(model.predict_proba(x_test)[np.arange(len(y_test)), y_test])
        assert rows.loc[(1, -1, label), "test_loss"] == pytest.approx(losses.mean(), rel=1e-3)
        assert rows.loc[(1, -1, label), "test_score"] == model.score(x_test, y_test)
    stored = run.table("probe").read_tensors(
        of_probes.part_name("step_00000040", "carry", qfl.ProbeConfig(pooled=True, **SIZES))
    )
    assert all(torch.equal(stored["weight"][:, 0], stored["weight"][:, label]) for label in range(6))


def test_the_strength_is_chosen_on_validation_examples(run):
    """Every strength on its own, and the one with the lowest validation loss."""
    path = (0.0003, 0.003, 0.03)
    config = qfl.ProbeConfig(path=path, n_val=100, **SIZES)
    data = of_probes.probe_data(run, config)
    assert (len(data.train), len(data.validation), len(data.test)) == (200, 100, 80)
    overlap = {tuple(e) for e in data.validation} & {tuple(e) for e in data.train}
    assert not overlap
    rows = rows_of(run, config)
    chosen = set()
    for layer in range(2):
        for label in range(6):
            hook = f"blocks.{layer}.hook_resid_post"
            (x, y), (x_val, y_val), (x_test, y_test) = (
                read(run, hook, e, "carry", label) for e in (data.train, data.validation, data.test)
            )
            fits = [LogisticRegression(**EXACT | {"C": c}).fit(x, y) for c in path]
            losses = [log_loss(y_val, fit.predict_proba(x_val), labels=[0, 1]) for fit in fits]
            best = int(np.argmin(losses))
            row = rows.loc[layer, -1, label]
            assert row["strength"] == pytest.approx(path[best])
            expected = log_loss(y_test, fits[best].predict_proba(x_test), labels=[0, 1])
            assert row["test_loss"] == pytest.approx(expected, rel=1e-3)
            chosen.add(best)
    assert len(chosen) > 1, "no choice was made"


def test_stored_activations_serve_the_next_analysis(run, monkeypatch):
    """The same numbers from the disk, and no model is loaded for them."""
    plain = rows_of(run, qfl.ProbeConfig(c=3.0, **SIZES))
    first = qfl.ProbeConfig(c=7.0, **SIZES)
    rows_of(run, first, store=True)
    monkeypatch.setattr(qfl.Run, "load_model", lambda *_args, **_kwargs: pytest.fail("a model was loaded"))
    again = qfl.ProbeConfig(c=3.0, max_iter=99, **SIZES)
    kept = rows_of(run, again, store=True)
    pd.testing.assert_frame_equal(kept.drop(columns="settings"), plain.drop(columns="settings"), check_exact=True)


@pytest.fixture(scope="module")
def decimal(tmp_path_factory):
    """A run with categorical features."""
    task = qfl.load_task("decimal_addition", 3)
    config, model = tiny_train_config(n_steps=16, n_checkpoints=6), qfl.ModelConfig(d_model=16, n_layers=2)
    return qfl.train(task, model, config, tmp_path_factory.mktemp("decimal") / "run", progress=False)


@pytest.mark.slow
def test_categorical_features(decimal):
    """Against scikit-learn's multinomial regression; then ablated along the contrasts of the classes."""
    config = qfl.ProbeConfig(n_train=400, n_test=100)
    rows = rows_of(decimal, config, "digit")
    data = of_probes.probe_data(decimal, config)
    n_labels = decimal.task.feature("digit").n_labels
    for label in range(n_labels):
        (x, y), (x_test, y_test) = (
            read(decimal, "blocks.1.hook_resid_post", e, "digit", label) for e in (data.train, data.test)
        )
        model = LogisticRegression(**EXACT).fit(x, y)
        known = np.isin(y_test, model.classes_)
        expected = log_loss(y_test[known], model.predict_proba(x_test[known]), labels=model.classes_)
        row = rows.loc[1, -1, label]
        assert row["metric"] == "log_loss"
        assert row["test_loss"] == pytest.approx(expected, abs=1e-3)
        assert row["n_unseen"] == (~known).sum()
    ablated = ablate(decimal, "digit", n_trials=2, config=config, **QUIET).to_dataframe().set_index("condition")
    assert ablated.loc["ablated", "loss"] != pytest.approx(ablated.loc["intact", "loss"], rel=1e-6)


def test_ridge_of_scalar_features(tmp_path):
    task = qfl.load_task("maximum_subarray", 6)
    config, model = tiny_train_config(n_steps=16, n_checkpoints=6), qfl.ModelConfig(d_model=16, n_layers=2)
    run = qfl.train(task, model, config, tmp_path / "run", progress=False)
    probes = qfl.ProbeConfig(n_train=300, n_test=100, alpha=5.0)
    rows = rows_of(run, probes, "max_ending_here")
    data = of_probes.probe_data(run, probes)
    (x, y), (x_test, y_test) = (
        read(run, "blocks.0.hook_resid_post", e, "max_ending_here", 3) for e in (data.train, data.test)
    )
    model = Ridge(alpha=5.0, tol=1e-12).fit(x, y)
    row = rows.loc[0, -1, 3]
    assert row["test_loss"] == pytest.approx(np.square(model.predict(x_test) - y_test).mean(), rel=1e-4)
    assert row["strength"] == pytest.approx(1 / 5)
    with pytest.raises(qfl.QflError, match="max_ending_here' is a scalar: a code for"):
        mdl(run, "max_ending_here", config=probes, **QUIET)


@pytest.mark.slow
def test_transfer_scores_old_probes_on_new_activations(run):
    steps = [run.steps[0], run.steps[-3], run.steps[-1]]
    rows = transfer(run, "carry", steps, config=CONFIG, **QUIET).to_dataframe().set_index(["fit_step", "eval_step"])
    assert sorted(rows.index) == [(a, b) for a in steps for b in steps]
    probed = probe(run, "carry", steps, config=CONFIG, n_untrained=0, **QUIET).to_dataframe()
    data, carry = of_probes.probe_data(run, CONFIG), run.task.feature("carry")
    tokens, positions = run.task.encode(data.test).tokens, carry.positions(data.test)
    for fit_step in steps:
        of_step = probed[probed["step"] == fit_step]
        best = of_step.loc[of_step.groupby("label")["train_loss"].idxmin()]
        # On the diagonal the probe table's own numbers; weights are stored in float32.
        own = rows.loc[fit_step, fit_step]
        assert own["test_loss"] == pytest.approx(best["test_loss"].mean(), rel=1e-4)
        assert own["refit_loss"] == own["test_loss"]
        assert own["cosine"] == pytest.approx(1)
        stored = run.table("probe").read_tensors(of_probes.part_name(ModelAt(fit_step), "carry", CONFIG))
        for eval_step in steps:
            span = site_span(run.load_model(eval_step), tokens, int(positions.min()), int(positions.max()))
            x = span.read(positions).x
            logits = np.stack(
                [
                    x[layer, label].double().numpy() @ stored["weight"][layer, label, 0].double().numpy()
                    + stored["intercept"][layer, label, 0].double().numpy()
                    for label, layer in zip(best["label"], best["layer"], strict=True)
                ],
                axis=1,
            )
            losses = np.logaddexp(0, np.where(carry.labels(data.test) == 1, -logits, logits))
            assert rows.loc[(fit_step, eval_step), "test_loss"] == pytest.approx(losses.mean(), rel=1e-5)
            assert rows.loc[(fit_step, eval_step), "refit_loss"] == rows.loc[(eval_step, eval_step), "test_loss"]


def test_mdl_is_the_online_code_of_the_probes_examples(run):
    steps = [run.steps[0], run.steps[-1]]
    rows = mdl(run, "carry", steps, config=CONFIG, n_untrained=1, **QUIET).to_dataframe()
    assert set(rows["source"]) == {"trained", "untrained"}
    assert (rows["uniform_bits"] == 200).all(), "one bit a label"
    np.testing.assert_allclose(rows["compression"], rows["uniform_bits"] / rows["codelength_bits"])
    data, carry = of_probes.probe_data(run, CONFIG), run.task.feature("carry")
    positions = carry.positions(data.train)
    tokens = run.task.encode(data.train).tokens
    span = site_span(run.load_model(), tokens, int(positions.min()), int(positions.max()))
    y = torch.from_numpy(np.array(carry.labels(data.train).T))[None]
    code = online_code("binary", span.read(positions).x, y, CONFIG)
    last = rows[(rows["source"] == "trained") & (rows["step"] == steps[1])]
    np.testing.assert_allclose(last["codelength_bits"], code.codelength[:, :, 0].flatten(), rtol=1e-5)


def test_capture_fills_the_store_that_probes_read(run, monkeypatch):
    config = qfl.ProbeConfig(site="mlp_out", c=50.0, **SIZES)
    found = capture(run, "mlp_out", "last", n=200, n_test=80, **QUIET).to_dataframe()
    assert set(found["site"]) == {"mlp_out"}
    monkeypatch.setattr(qfl.Run, "load_model", lambda *_args, **_kwargs: pytest.fail("a model was loaded"))
    assert rows_of(run, config, store=True)["test_loss"].notna().all()


def test_stored_probes_load_as_they_were_fitted(run):
    """The round trip a transfer matrix rests on, at the lens' own part."""
    rows = rows_of(run, CONFIG)
    part = of_probes.part_name(ModelAt(run.steps[-1]), "carry", CONFIG)
    probes = load_probes("binary", run.table("probe").read_tensors(part))
    data, carry = of_probes.probe_data(run, CONFIG), run.task.feature("carry")
    positions = carry.positions(data.test)
    span = site_span(run.load_model(), run.task.encode(data.test).tokens, int(positions.min()), int(positions.max()))
    y = torch.from_numpy(np.array(carry.labels(data.test).T))[None]
    scores = probes.score(span.read(positions).x, y)
    np.testing.assert_allclose(scores.loss[:, :, 0].flatten(), rows["test_loss"], rtol=1e-4)


def test_a_call_that_recomputes_says_so_first(run_copy, capsys):
    """Other settings than the table's: one line, and none where nothing of the lens is there or all is."""
    few, more = (qfl.ProbeConfig(n_train=n, n_test=40) for n in (60, 70))
    step = run_copy.steps[-1]
    probe(run_copy, "carry", step, config=few, n_untrained=0)
    assert "probe: computing" not in capsys.readouterr().err
    probe(run_copy, "carry", step, config=more, n_untrained=0)
    said = capsys.readouterr().err
    assert "probe: computing 1 parts with n_train=70. The table has 1 with n_train=60; call it so to see those." in said
    for features in ("carry", "first_operand"):
        probe(run_copy, features, step, config=more, n_untrained=0)
        assert "The table has" not in capsys.readouterr().err
    ablate(run_copy, "carry", config=more, n_trials=2)
    capsys.readouterr()
    ablate(run_copy, "carry", config=more, n_trials=3)
    assert "ablate: computing 2 parts with n_trials=3. The table has 2 with n_trials=2" in capsys.readouterr().err
