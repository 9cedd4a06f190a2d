"""The POLCA lens: its rows against the trajectories they come from, what is not computed twice, the command."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

import qfl_interp as qfl
from qfl_interp.analyses import polca
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.lenses.polca import grouping, plan
from qfl_interp.analyses.lenses.polca import lens as decomposing
from qfl_interp.analyses.lenses.polca.tables import stored
from qfl_interp.analyses.lenses.polca.trajectories import gradients_at
from qfl_interp.analyses.pages.report import report
from qfl_interp.cli import main as cli
from qfl_interp.config import ProbeConfig
from qfl_interp.errors import QflError
from qfl_interp.polca.breakthroughs import break_step, flat, plateau_after
from qfl_interp.polca.clustering import DROPPED
from qfl_interp.polca.config import PolcaConfig
from tests.conftest import tiny_train_config

CONFIG = PolcaConfig(basis="random", n_directions=3, n_examples=80, n_hessian=40, seed=1)
HOW = {"config": CONFIG, "resamples": 2, "min_cluster_size": 12, "min_samples": 4, "span": 8, "progress": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that learns the first digit of two-digit sums; tests work on copies."""
    task = qfl.load_task("decimal_addition", length=2)
    config = tiny_train_config(n_steps=80, n_checkpoints=12, batch_size=32, lr=1e-2)
    model = qfl.ModelConfig(d_model=16, n_layers=1, style="gpt2")
    return qfl.train(task, model, config, tmp_path_factory.mktemp("runs") / "sums", progress=False)


@pytest.fixture(scope="module")
def analysed(trained, tmp_path_factory):
    """The run with its result, read only."""
    run = qfl.Run.open(shutil.copytree(trained.path, tmp_path_factory.mktemp("runs") / "analysed"))
    return run, polca(run, **HOW)


@pytest.fixture
def run(analysed, tmp_path):
    """A copy of the analysed run."""
    return qfl.Run.open(shutil.copytree(analysed[0].path, tmp_path / "run"))


def clusters_of(found):
    """Each cluster's row with its direction's curves and its tokens."""
    for row in found.rows.to_dict("records"):
        direction = row["direction"]
        members = (found.tokens[f"cluster_{direction}"] == row["cluster"]).to_numpy()
        yield row, found.data.trajectories.of(direction).astype(np.float64), members


@pytest.mark.slow
def test_every_cluster_is_described_by_its_own_tokens_and_curves(analysed):
    run, found = analysed
    losses, steps = found.data.losses.double().numpy(), list(run.steps)
    tau = plateau_after(losses.mean(axis=1), steps)
    assert len(found.rows) >= 2
    for row, curves, members in clusters_of(found):
        inside = curves[members]
        assert (row["n_tokens"], row["share"]) == (members.sum(), pytest.approx(members.mean()))
        assert row["n_tokens"] >= HOW["min_cluster_size"]
        assert row["fall"] == pytest.approx(-inside[:, -1].mean())
        assert np.all(inside[:, -1] < 0)
        breaks = break_step(inside, steps, 8)
        assert row["break_step"] == pytest.approx(breaks.mean())
        assert row["break_flops"] == run.flops(round(breaks.mean()))
        assert (row["tau_step"], row["hidden"]) == (tau, bool(breaks.mean() > tau))
        own = flat(losses[:, members].mean(axis=1), steps)
        quiet = [any(first + 8 <= b <= last - 8 for first, last in own) for b in breaks]
        assert row["in_flat_share"] == pytest.approx(np.mean(quiet))
        distances = np.linalg.norm(inside[:, None] - inside[None], axis=2).sum(axis=1)
        assert np.flatnonzero(members)[distances.argmin()] == row["medoid"]
        assert row["medoid_context"] == found.tokens["context"][row["medoid"]]
        assert 0 <= row["stability"] <= 1


def test_curves_are_means_and_quartiles_of_the_tokens(analysed):
    run, found = analysed
    losses = found.data.losses.double().numpy()
    for row, curves, members in clusters_of(found):
        drawn = found.curves[(found.curves.direction == row["direction"]) & (found.curves.cluster == row["cluster"])]
        assert drawn["step"].tolist() == list(run.steps)
        assert drawn["flops"].tolist() == [run.flops(step) for step in run.steps]
        np.testing.assert_allclose(drawn["mean"], curves[members].mean(axis=0))
        np.testing.assert_allclose(drawn["q75"], np.quantile(curves[members], 0.75, axis=0))
        np.testing.assert_allclose(drawn["exact_q25"], np.quantile(losses[:, members], 0.25, axis=1))
        np.testing.assert_allclose(drawn["exact_mean"], losses[:, members].mean(axis=1))
        np.testing.assert_allclose(drawn["medoid"], curves[row["medoid"]])
        assert set(drawn["name"]) == {row["name"]}


def test_composition_counts_the_labels_of_the_tokens(analysed):
    _, found = analysed
    for row, _, members in clusters_of(found):
        own = found.composition[
            (found.composition.direction == row["direction"]) & (found.composition.cluster == row["cluster"])
        ]
        place = own[own.label == "place"].set_index("value")["share"]
        counted = found.tokens["place"][members].value_counts(normalize=True)
        assert {int(value): share for value, share in place.items() if share} == pytest.approx(counted.to_dict())
        assert not own["label"].str.contains("&").any()


def test_nearest_begins_with_the_medoid_and_stays_in_the_cluster(analysed):
    _, found = analysed
    row, curves, members = next(clusters_of(found))
    near = found.nearest(row["direction"], row["cluster"], 5)
    assert near.index[0] == row["medoid"]
    assert members[near.index].all()
    distance = np.linalg.norm(curves - curves[row["medoid"]], axis=1)
    assert distance[near.index].max() <= np.sort(distance[members])[4] + 1e-12
    with pytest.raises(ValueError, match=r"must be one of .*got \[0, 99\]"):
        found.nearest(0, 99)


def test_scores_are_of_a_label_s_value_over_each_direction_s_clusters(analysed):
    _, found = analysed
    scores = found.scores("place", 0)
    assert len(scores) == len(found.rows) > 0
    for row in scores.to_dict("records"):
        labels = found.tokens[f"cluster_{row['direction']}"].to_numpy()
        place = found.tokens["place"].to_numpy()
        inside, clustered = labels == row["cluster"], labels >= 0
        assert row["homogeneity"] == pytest.approx((place[inside] == 0).mean())
        assert row["recall"] == pytest.approx((place[inside] == 0).sum() / max(1, (place[clustered] == 0).sum()))
        assert row["base_rate"] == pytest.approx((place == 0).mean())
        assert row["adjusted_rand"] == pytest.approx(adjusted_rand_score(place[clustered], labels[clustered]))
    assert set(found.scores("carry")["homogeneity"]) != set(found.scores("carry", False)["homogeneity"])
    with pytest.raises(ValueError, match=r"label must be one of \['example', .* got 'colour'"):
        found.scores("colour")
    with pytest.raises(ValueError, match=r"value must be one that a token's 'place' has, such as \[0, .* got 99"):
        found.scores("place", 99)


def test_baselines_cluster_other_curves_of_the_same_tokens(run):
    exact, change, fisher = (polca(run, **HOW | {"curves": c}) for c in ("exact_loss", "loss_change", "fisher"))
    losses = exact.data.losses.double().numpy()
    np.testing.assert_allclose(exact.clustered.values[0], losses.T)
    np.testing.assert_allclose(change.clustered.values[0], np.diff(losses, axis=0).T)
    assert change.clustered.steps == tuple(run.steps[1:])
    assert exact.tokens["context"].equals(fisher.tokens["context"])
    slopes = gradients_at(plan.Plan.of(run, config=CONFIG)).numpy()
    np.testing.assert_allclose(fisher.clustered.of(1), slopes[:, :, 1].T ** 2)
    assert fisher.data.config.accuracy == "first"
    # Squared slopes need not fall, losses must.
    assert not fisher.tokens.filter(like="cluster_").eq(DROPPED).any(axis=None)
    assert polca(run, **HOW).tokens.filter(like="cluster_").eq(DROPPED).any(axis=None)
    for found in (exact, change, fisher):
        assert set(found.rows["curves"]) <= {found.rows["curves"].iloc[0]} if len(found.rows) else True
    assert set(exact.rows["direction"]) <= {-1}
    np.testing.assert_allclose(
        exact.curves.groupby("cluster")["mean"].first(), exact.curves.groupby("cluster")["exact_mean"].first()
    )


def test_a_second_call_reads_and_an_interrupted_one_goes_on(analysed, run, monkeypatch):
    _, before = analysed
    done = sorted(path.name for path in (run.path / "analyses" / "polca_clusters").glob("_direction_*.json"))
    assert len(done) == 3
    (run.path / "analyses" / "polca_clusters" / done[1]).unlink()
    calls = []
    real = grouping.cluster_direction
    monkeypatch.setattr(grouping, "cluster_direction", lambda *a, **k: calls.append(1) or real(*a, **k))
    pd.testing.assert_frame_equal(polca(run, **HOW).rows, before.rows)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(polca(run, **HOW).rows, before.rows)
    assert len(calls) == 1
    assert not polca(run, **HOW | {"span": 16}).rows["break_step"].equals(before.rows["break_step"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"curves": "nonsense"}, "curves"),
        ({"rule": "nonsense"}, "rule"),
        ({"resamples": -1}, "resamples must be at least 0, got -1"),
        ({"span": 1000}, "leave a checkpoint that far from both ends, got 1000"),
        ({"span": 0}, "span must be positive .* got 0"),
        ({"min_cluster_size": 1}, "min_cluster_size must be at least 2, got 1"),
        ({"min_samples": 0}, "min_samples must be at least 1, got 0"),
        ({"tau": -5}, "tau must be at least 0, got -5"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
        ({"steps": "last", "span": None}, "POLCA needs at least 3 checkpoints, got 1"),
        ({"steps": [0, 80], "span": 1}, "POLCA needs at least 3 checkpoints, got 2"),
    ],
    ids=["curves", "rule", "resamples", "span", "no span", "size", "samples", "tau", "jobs", "one", "two"],
)
def test_bad_settings_are_refused_before_any_gradient(trained, monkeypatch, changes, words):
    monkeypatch.setattr(decomposing, "follow", lambda *args, **how: pytest.fail("gradients were taken"))
    with pytest.raises((ValueError, TypeError, QflError), match=words):
        polca(trained, **HOW | changes)


def test_a_turn_is_measured_over_a_share_of_the_steps_that_are_looked_at(run, monkeypatch):
    monkeypatch.setattr(plan, "_SPAN_SHARE", 0.25)
    late = run.steps[-4:]
    wanted = round(0.25 * (late[-1] - late[0]))
    assert 1 < wanted < 0.25 * late[-1]
    how = HOW | {"config": PolcaConfig(basis="random", n_directions=1, n_examples=80, n_hessian=40, seed=1)}
    found = polca(run, late, **how | {"span": None, "min_cluster_size": 5})
    assert set(found.rows["span"]) == {wanted}


def test_the_repr_says_what_was_found(analysed):
    _, found = analysed
    assert repr(found).startswith("POLCA of decimal_addition2-")
    assert f"{len(found.rows)} clusters along 3 directions" in repr(found)
    assert "<table" in found._repr_html_()


def test_the_repr_says_which_eigenvectors_did_not_converge(run):
    config = PolcaConfig(basis_steps="last", n_examples=20, n_hessian=20, tol=1e-12, max_products=10)
    found = polca(run, **HOW | {"config": config})
    residual = found.directions["residual"].item()
    assert residual > 1e-12
    assert f"; 1 of 1 eigenvectors did not converge (residual up to {residual:.1g}, max_products 10)" in repr(found)


@pytest.mark.slow
def test_the_report_and_the_timeline_show_the_call_with_most_intervals(trained, run, tmp_path):
    assert stored(trained) is None
    polca(run, [0, *run.steps[-3:]], **HOW | {"span": 2})
    polca(run, **HOW | {"curves": "exact_loss"})
    chosen = stored(run)
    assert chosen is not None
    assert len(chosen.intervals) == len(run.steps) - 1
    assert set(chosen.clusters["curves"]) == {"projected"}
    assert chosen.clusters["analysis"].nunique() == 1
    config = ProbeConfig(n_train=60, n_test=40)
    (panel,) = decomposing.Polca.panels(Page(run, ("carry",), config=config))
    assert panel.title.startswith("POLCA, direction")
    page = report(run, "carry", "log:4", config=config, n_trials=2, out=tmp_path / "r.html", progress=False)
    assert "POLCA: hidden breakthroughs" in page.read_text()


def test_the_command_prints_every_table_and_draws_the_page(run, monkeypatch, capsys, tmp_path):
    arguments = ["--basis", "random", "--directions", "3", "--n-examples", "80", "--n-hessian", "40", "--seed", "1",
                 "--span", "8", "--min-cluster-size", "12", "--min-samples", "4", "--resamples", "2", "-q"]  # fmt: skip
    page = tmp_path / "polca.html"
    monkeypatch.setattr(sys, "argv", ["qfl", "polca", str(run.path), *arguments, "--json", "--out", str(page)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"clusters", "directions", "intervals", "composition"}
    assert len(printed["directions"]) == 3
    assert [row["cluster"] for row in printed["clusters"]] == polca(run, **HOW).rows["cluster"].tolist()
    assert "POLCA, direction" in page.read_text()


def test_the_command_s_help_says_what_is_taken_by_default(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["qfl", "polca", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    shown = " ".join(shown.replace("│", " ").split())
    taken = ("3 % of all by default", "a fifteenth of the clustered tokens by default", "1 % of the way from the first")
    for default in (*taken, "measured by default", "[default: 300]", "[default: 0.001]"):
        assert default in shown
