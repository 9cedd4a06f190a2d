"""The lenses on tasks of every shape: numbers, sets, answers of any length, rare labels, labels read at one token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_train_config
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss

import qfl_interp as qfl
from qfl_interp.activations.spans import site_span
from qfl_interp.analyses import ablate, emergence, probe, report
from qfl_interp.analyses.lenses.probe import data as of_probes
from qfl_interp.analyses.lenses.probe import fitting
from qfl_interp.data.task import NO_POSITION
from qfl_interp.probes.feature_data import feature_data
from qfl_interp.tables import select

CONFIG = qfl.ProbeConfig(n_train=300, n_test=120)
QUICK = {"config": CONFIG, "progress": False}
# Task, length, a feature and a label that is fitted.
CASES = [
    ("maximum_subarray", 6, "max_ending_here", 3),
    ("breadth_first_search", 6, "queue", 2),
    ("shortest_path", 6, "adjacency_list", 1),
    ("sparse_parity", 12, "relevant_bit", 1),
    ("modular_addition", 11, "cos_sum", 2),
]


@pytest.fixture(scope="module", params=CASES, ids=[case[0] for case in CASES])
def case(request, tmp_path_factory):
    """A run of 16 steps and what to look at."""
    name, length, feature, label = request.param
    config = tiny_train_config(n_steps=16, n_checkpoints=6)
    model = qfl.ModelConfig(d_model=16, n_layers=2)
    out = tmp_path_factory.mktemp("tasks") / name
    return qfl.train(qfl.load_task(name, length), model, config, out, progress=False), feature, label


def sites(run, feature, label, examples, layer):
    """Activations and labels of one label, through TransformerLens's own cache; which examples have it."""
    positions = feature.positions(examples)[:, label]
    _, cache = run.load_model(run.steps[-1]).run_with_cache(run.task.encode(examples).tokens)
    x = cache["resid_post", layer].detach().double().numpy()
    there = positions != NO_POSITION
    return x[np.flatnonzero(there), positions[there]], feature.labels(examples)[there, label]


def test_probes_agree_with_scikit_learn(case):
    run, name, label = case
    feature = run.task.feature(name)
    rows = probe(run, name, "last", n_untrained=1, **QUICK).to_dataframe()
    data = of_probes.probe_data(run, CONFIG)
    for layer in range(2):
        (x, y), (x_test, y_test) = (sites(run, feature, label, examples, layer) for examples in (data.train, data.test))
        kept = (rows["source"] == "trained") & (rows["layer"] == layer) & (rows["label"] == label)
        row = rows[kept].iloc[0]
        assert row["n_train"] == len(x)
        assert row["n_test"] == len(x_test)
        assert row["label_mean"] == pytest.approx(y.mean())
        if feature.kind == "scalar":
            model = LinearRegression(tol=1e-12).fit(x, y)
            assert row["metric"] == "mse"
            assert row["test_loss"] == pytest.approx(np.square(model.predict(x_test) - y_test).mean(), rel=1e-3)
            assert row["test_score"] == pytest.approx(model.score(x_test, y_test), abs=1e-3)
            continue
        assert row["metric"] == "log_loss"
        columns = [(y, y_test)] if y.ndim == 1 else list(zip(y.T, y_test.T, strict=True))
        losses = []
        for target, target_test in columns:
            if len(np.unique(target)) == 2:
                model = LogisticRegression(C=100, tol=1e-10, max_iter=10_000, solver="newton-cholesky").fit(x, target)
                losses.append(log_loss(target_test, model.predict_proba(x_test), labels=[0, 1]))
        assert row["test_loss"] == pytest.approx(np.mean(losses), rel=2e-3)


@pytest.mark.slow
def test_every_default_lens_runs(case):
    run, name, _ = case
    emerged = emergence(run, steps="all", n_resamples=20, **QUICK)
    assert set(emerged.to_dataframe()["feature"]) == {f.name for f in run.task.features.values() if f.by_default}
    figure = emerged.plot()
    title = {"scalar": "test mean squared error"}.get(run.task.feature(name).kind, "test log loss (nats)")
    assert title in {figure.layout[key].title.text for key in figure.to_plotly_json()["layout"] if "yaxis" in key}
    ablated = ablate(run, name, n_trials=2, **QUICK).to_dataframe()
    assert ablated["loss"].notna().all()
    losses = select(ablated, feature=name).set_index("condition")["loss"]
    assert losses["ablated"] != losses["intact"]
    page = report(run, steps="all", config=CONFIG, n_trials=2, progress=False)
    assert name.replace("_", " ") in page.read_text()


def test_a_label_that_few_examples_have_is_not_fitted():
    """Paths of 5 nodes and more are rare: their labels are skipped, and the table says how many examples there were."""
    task = qfl.load_task("shortest_path", 8)
    feature = task.feature("adjacency_list")
    positions = feature.positions(task.sample(np.random.default_rng(0), 2000))
    share = (positions != NO_POSITION).mean(axis=0)
    assert share[0] == 1.0
    assert share[-1] < 0.05
    model = qfl.build_model(qfl.ModelConfig(d_model=16, n_layers=1), task, seed=0)
    examples = [task.sample(np.random.default_rng(s), 400) for s in (1, 2)]
    train, test = (
        feature_data(feature, site_span(model, task.encode(e).tokens, *of_probes.read_span(task, e)), e)
        for e in examples
    )
    rows, tensors = fitting.fit_feature(feature, train, test, None, CONFIG)
    present = (feature.positions(examples[0]) != NO_POSITION).mean(axis=0)
    assert rows["n_train"].tolist() == np.rint(present * 400).astype(int).tolist()
    assert rows["fitted"].tolist() == (present >= 0.05).tolist()
    missing = torch.from_numpy(feature.positions(examples[1]).T == NO_POSITION)
    fitted = torch.from_numpy(present >= 0.05)
    assert torch.equal(tensors["test_loss"].isnan()[fitted], missing[fitted])


def test_features_that_are_not_default_are_probed_when_named(tmp_path):
    task = qfl.load_task("maximum_subarray", 5)
    run = qfl.train(
        task, qfl.ModelConfig(d_model=16, n_layers=1), tiny_train_config(n_steps=2), tmp_path / "r", progress=False
    )
    assert set(probe(run, steps="last", n_untrained=1, **QUICK).rows["feature"]) == {
        "is_prev_negative",
        "max_ending_here",
    }
    assert set(probe(run, "max_so_far", "last", n_untrained=1, **QUICK).rows["feature"]) == {"max_so_far"}
