"""The study of POLCA in its paper's regime: its numbers against independent ones, and all of it at a tiny size."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import polca_paper_runs as runs
import polca_paper_scores as scoring
import polca_scores
import pytest
import study_polca_paper as study
import torch
from scipy.stats import mannwhitneyu, norm
from sklearn.covariance import ledoit_wolf

from qfl_interp.polca.decomposition import paper_curvature
from qfl_interp.polca.quality import restricted_homogeneity
from qfl_interp.training.replay import Replay

TINY = runs.Size(
    16, 3e-3, (0, 1), n_steps=16, basis_every=4, sparse_every=8, every=4, closely=2, stretch=(8, 14), short=4,
    n_examples=40, n_orders=15, n_hessian=20, tol=0.3, span=4, tau=8, batch_size=8, n_layers=1, n_heads=2,
    n_parameters=3,
)  # fmt: skip
TABLES = ("regime", "agreement", "clusters", "readings", "above", "told", "best", "discriminant", "movement")


def test_an_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    carry = rng.random(80) < 0.4
    values = np.round(rng.normal(size=80) + carry, 1)
    wanted = mannwhitneyu(values[carry], values[~carry]).statistic / (carry.sum() * (~carry).sum())
    assert runs.auc(values, carry) == pytest.approx(wanted, rel=1e-12)
    assert math.isnan(runs.auc(values, np.ones(80, dtype=bool)))


def test_the_best_area_by_chance_keeps_what_a_target_says_of_the_carry():
    rng = np.random.default_rng(5)
    target = rng.integers(0, 2, 300)
    carry, scores = rng.random(300) < 0.2 + 0.6 * target, rng.normal(size=(300, 6))
    # Of noise the best of six areas, each of a standard deviation of 1/sqrt(3 n) at the least.
    best = runs.best_auc_by_chance(scores, carry, np.zeros(300))
    assert 0.5 + 2 / math.sqrt(900) < best < 0.5 + 4 / math.sqrt(900)
    told = np.column_stack([scores, target + 0.01 * rng.normal(size=300)])
    by_target = mannwhitneyu(told[carry, -1], told[~carry, -1]).statistic / (carry.sum() * (~carry).sum())
    assert runs.best_auc_by_chance(told, carry, target) == pytest.approx(by_target, abs=0.02)
    assert runs.best_auc_by_chance(told, carry, np.zeros(300)) < 0.62
    assert runs.best_auc_by_chance(-told, carry, target) == runs.best_auc_by_chance(told, carry, target)
    assert math.isnan(runs.best_auc_by_chance(scores, np.ones(300, dtype=bool), target))


def test_orders_agree_by_cosine_and_distance_of_each_curve():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 3, 7, 5))
    other[1, 2] = 0
    found = runs.agreement(one, other)
    for direction in range(3):
        pairs = list(zip(one[direction], other[direction], strict=True))
        cosines = [a @ b / math.sqrt(a @ a * (b @ b)) for a, b in pairs if b.any()]
        distances = [math.dist(a, b) for a, b in pairs]
        wanted = [np.mean(cosines), np.median(cosines), np.mean(distances), np.median(distances), 7 - len(cosines)]
        columns = ["cosine", "cosine_median", "l2", "l2_median", "n_zero"]
        np.testing.assert_allclose(found.loc[direction, columns].to_numpy(dtype=float), wanted, rtol=1e-12)
    same = runs.agreement(one, one)
    np.testing.assert_allclose(same["cosine"], 1, rtol=1e-12)
    assert (same["l2"] == 0).all()


def test_a_discriminant_is_fisher_s_with_the_shrunk_covariance():
    rng = np.random.default_rng(2)
    carry, other_carry = rng.random((2, 60)) < 0.5
    first, second = rng.normal(size=(2, 60, 6)) * np.arange(1, 7)
    first[carry] += 0.5
    second[other_carry] += 0.5
    scaled = (first - first.mean(axis=0)) / first.std(axis=0)
    covariance = sum(
        np.mean(carry == one) * _shrunk(scaled[carry == one]) for one in (True, False)
    )  # each class by its own, weighted by its share
    weights = np.linalg.solve(covariance, scaled[carry].mean(axis=0) - scaled[~carry].mean(axis=0))
    wanted = runs.auc((second / first.std(axis=0)) @ weights, other_carry)
    assert scoring.told_elsewhere(first, carry, second, other_carry) == pytest.approx(wanted, abs=1e-12)


def _shrunk(values):
    """The covariance of one class, as scikit-learn shrinks it: of features of unit variance."""
    size = values.std(axis=0)
    return size[:, None] * ledoit_wolf((values - values.mean(axis=0)) / size)[0] * size


def test_what_tokens_do_not_say_is_not_told_and_what_they_do_is_as_far_as_it_can_be():
    rng = np.random.default_rng(3)
    carry = rng.random(2_000) < 0.45
    noise = rng.normal(size=(2_000, 10))
    # Four standard errors of an area of 2,000 tokens.
    assert abs(scoring.told(noise, carry) - 0.5) < 0.055
    noise[:, 4] += 1.5 * carry
    assert scoring.told(noise, carry) == pytest.approx(norm.cdf(1.5 / math.sqrt(2)), abs=0.04)
    assert math.isnan(scoring.told(noise[:8], np.arange(8) == 3))


def test_chance_keeps_what_a_target_says_of_the_carry():
    """A cluster of one target that always carries: shuffled within the target it still does, within the place not."""
    rng = np.random.default_rng(4)
    place, target = np.ones(400, dtype=np.int64), rng.integers(0, 4, 400)
    carry = np.where(target == 0, True, rng.random(400) < 0.3)
    labels = [np.where((target == 0) & (rng.random(400) < 0.6), 0, -1)]
    entering = scoring.clusters_that_enter(labels, carry, [place])
    within, whole = (np.array(list(polca_scores.shuffled_within(carry, among, 50))) for among in (target, place))
    assert scoring.chance_purity(entering, within) == 1
    assert scoring.chance_purity(entering, whole) < 0.7
    found = restricted_homogeneity(labels[0], carry, place, polca_scores.CARRY_PLACES)
    assert found.homogeneity == 1


def test_chance_is_of_the_clusters_that_enter_with_the_true_carries():
    """One of two in the tens; the other, of the thousands, would be the purer by chance too."""
    rng = np.random.default_rng(6)
    place = np.tile(np.arange(4), 60)
    carry = rng.random(240) < np.array([0.9, 0.5, 0.4, 0.0])[place]
    labels = [np.where(place == 0, 0, -1), np.where((place == 2) & (rng.random(240) < 0.5), 0, -1)]
    entering = scoring.clusters_that_enter(labels, carry, [place, place])
    assert (entering == [labels[1] == 0]).all()
    shuffled = np.array(list(polca_scores.shuffled_within(carry, place, 400)))
    shares = [mixed[labels[1] == 0].mean() for mixed in shuffled]
    assert scoring.chance_purity(entering, shuffled) == pytest.approx(np.quantile(shares, 0.95))
    both = np.array([labels[0] == 0, labels[1] == 0])
    assert scoring.chance_purity(both, shuffled) == carry[place == 0].mean()
    nothing = scoring.clusters_that_enter([np.full(240, -1)], carry, [place])
    assert math.isnan(scoring.chance_purity(nothing, shuffled))


def test_clusters_enter_by_their_carries_by_all_their_tokens_or_all():
    place = np.repeat([0, 1, 2, 3], 10)
    # The first: 8 tokens of the tens with a carry, 10 of the ones; the second: the thousands.
    labels = np.where(place == 0, 1, np.where((place == 3) | (np.arange(40) // 2 < 14) & (place == 2), 0, -1))
    carry = (place == 2) | (place == 0)
    best = {}
    for enter in ("carries there", "tokens there", "all"):
        seen = scoring.entering(labels, place, enter)
        best[enter] = restricted_homogeneity(labels, carry, seen, polca_scores.CARRY_PLACES).homogeneity
    n_tens = int(np.sum((labels == 0) & (place == 2)))
    assert best["carries there"] == n_tens / (n_tens + 10)
    assert math.isnan(best["tokens there"])
    assert best["all"] == 1


def test_a_way_that_turns_back_is_longer_than_its_net():
    found = scoring.movement(np.array([[0, 0.0], [2, 1], [1, 2], [3, 3]]))
    assert found["net"].tolist() == [3, 3]
    assert found["gone"].tolist() == [5, 3]
    assert found["turns_back"].tolist() == [1, 0]
    rng = np.random.default_rng(0)
    steps = rng.normal(size=150)
    walks = np.abs((steps * rng.choice([-1, 1], size=(4_000, 150))).sum(axis=1)) / np.abs(steps).sum()
    kept = scoring.movement(np.cumsum(steps)[:, None])["walk_keeps"]
    assert kept[0] == pytest.approx(np.median(walks), rel=0.05)


def test_a_sum_over_the_sample_gives_the_curvatures_of_a_mean():
    """Both sides of the paper's ratio grow with the number of tokens alike: sum or mean is no reading of its own."""
    slopes = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = torch.rand(4, dtype=torch.float64)
    change = slopes[1] - slopes[0]
    by_sums = 30 * whole * change / change.sum(dim=0)
    torch.testing.assert_close(paper_curvature(slopes[0], slopes[1], whole).curvature, by_sums)


def test_curves_of_unit_length():
    found = runs.unit_length(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert found.tolist() == [[0.6, 0.8], [0.0, 0.0]]


def test_the_last_time_is_always_kept():
    assert runs.thinned(10, 4).tolist() == [0, 3, 6, 9]
    assert runs.thinned(11, 4).tolist() == [1, 4, 7, 10]
    assert runs.thinned(3, 8).tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The whole study at a tiny size."""
    folder = tmp_path_factory.mktemp("study")
    for stage in ("train", "follow", "path"):
        _main(folder, stage)
    for stage in study.FOLLOWING:
        _main(folder, stage, "--seeds", "0")
    return folder


def _main(folder, stage, *more, **how):
    where = ["--runs", str(folder / "runs"), "--kept", str(folder / "kept"), "--docs", str(folder)]
    study.main([stage, *where, *more], {"tiny": TINY}, **how)


@pytest.mark.slow
def test_all_of_it_at_a_tiny_size(kept, monkeypatch):
    monkeypatch.setattr(scoring, "SHUFFLES", {"clusters": 10, "discriminant": 2, "directions": 2})
    page = kept / "polca.md"
    page.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in TABLES))
    _main(kept, "tables")
    shown = page.read_text()
    assert "| 16 | 8 to 12 | 2 | 2 |" in shown  # steps, their distance, directions
    assert re.search(r"\| 16 \| slopes, hessian \| \d+ \| another seed \|", shown)
    assert "| 16 | LCA, path integral, trapezoid | parameters |" in shown
    rows = pd.read_csv(kept / "polca_paper.csv")
    assert set(rows["seed"]) == {0, 1}
    per = rows.groupby(["seed", "stretch", "basis", "trajectory"]).size()
    assert set(per) == {2 * 2 * 3}
    assert per.groupby("seed").size().to_dict() == {0: 6 + 9 + 5 + 8 + 2, 1: 6}
    names = set(rows["trajectory"])
    assert {"exact loss", "LCA, first order", "the paper's second order", "exact second order"} <= names
    assert (rows["n_tokens"] == np.where(rows["basis"] == "sparse", 60, 160)).all()
    projected = ~rows["trajectory"].isin(["exact loss", "change in exact loss", "Fisher information"])
    assert rows.loc[projected, "captured"].notna().all()
    own = rows[rows["trajectory"] == "the paper's second order"]
    orders = pd.read_csv(kept / "polca_paper_orders.csv").query("one == 'first' and other == 'paper'")
    wanted = own["stretch"].map(orders.groupby("stretch")["cosine"].mean())
    np.testing.assert_allclose(own["cosine_first_second"], wanted, rtol=1e-5)
    found = pd.read_csv(kept / "polca_paper_discriminant.csv")
    # Hessian, one direction (best, median), loss and, of one seed, random and shuffled; two places; seed on seed, what
    # both have.
    assert len(found) == (4 + 2 + 2 * 2) * 2 + 2 * 2 * 2
    moved = pd.read_csv(kept / "polca_paper_movement.csv")
    assert set(moved["basis"]) == {"hessian", "random", "shuffled"}
    best = pd.read_csv(kept / "polca_paper_best.csv")
    assert (best["auc"] >= best["auc_falling"].fillna(0)).all()
    assert (best["auc_exact"] >= 0.5).all()
    drawn = {}
    _main(kept, "figure", draw=lambda figure, name: drawn.update({name: figure}))
    assert list(drawn) == ["polca-paper-d16-seed0", "polca-paper-d16-seed1"]
    # For each place: a mean and its quartiles of two groups twice, two means; its direction, and as many random ones.
    assert [len(figure.data) for figure in drawn.values()] == [2 * (8 + 2 + 1 + 4), 2 * (8 + 2 + 1)]


@pytest.mark.slow
def test_tokens_carries_and_curves_that_are_kept(kept):
    folder = kept / "kept" / "d16-seed0"
    tokens = pd.read_parquet(folder / "tokens-160.parquet")
    assert tokens["place"].tolist() == [0, 1, 2, 3] * 40
    carries = tokens[["carry_in", "carry_out"]].to_numpy().reshape(40, 4, 2)
    # Nothing carries into the ones nor out of the thousands; the thousands are their carry.
    assert not carries[:, 3, 0].any()
    assert not carries[:, 0, 1].any()
    assert (carries[:, :-1, 0] == carries[:, 1:, 1]).all()
    assert (carries[:, 0, 0] == (tokens["target"].to_numpy().reshape(40, 4)[:, 0] == "1")).all()
    means = pd.read_parquet(folder / "means-all-hessian-first.parquet")
    assert (means["q25"] <= means["q75"]).all()
    assert (means.loc[means["step"] == 0, "mean"] == 0).all()
    moves = pd.read_parquet(folder / "moves-all-hessian-first.parquet")
    assert moves["step"].tolist() == list(range(0, 17, 4))
    assert (moves.drop(columns="step").iloc[0] == 0).all()


@pytest.mark.slow
def test_a_stage_trains_again_once_whatever_ways_it_follows(kept, tmp_path, monkeypatch):
    shutil.copytree(kept / "runs" / "d16-seed1", tmp_path / "runs" / "d16-seed1")
    starts, start = [], Replay._start
    monkeypatch.setattr(Replay, "_start", lambda self, step: starts.append(step) or start(self, step))
    _main(tmp_path, "short", "--seeds", "1")
    assert starts == [8]
    compared = pd.read_parquet(tmp_path / "kept" / "d16-seed1" / "orders-short.parquet")
    assert len(compared[["one", "other"]].drop_duplicates()) == 10


@pytest.mark.slow
def test_what_is_kept_is_not_done_again_and_other_settings_are_refused(kept, capsys, monkeypatch):
    folder = kept / "kept" / "d16-seed0"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    monkeypatch.setattr(runs, "follow", None)
    _main(kept, "follow")
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")} == before
    capsys.readouterr()
    _main(kept, "bases", "--dry-run")
    said = capsys.readouterr().out
    assert "8 of 8 are kept" in said  # of seed 0; nothing of the other
    assert said.count(", alone: ") == said.count(" hours, ") == 8
    _main(kept, "train", "--dry-run", "--seeds", "7")
    assert "train d16-seed7: 16 updates" in capsys.readouterr().out
    settings, weights = json.loads((folder / "settings.json").read_text()), (folder / "weights.txt").read_text()
    for name, value in (("weights", weights[::-1]), ("settings", json.dumps(settings | {"tol": 1}, indent=1))):
        path = next(folder.glob(f"{name}.*"))
        there = path.read_text()
        path.write_text(value)
        with pytest.raises(SystemExit, match=f"must hold tables of one training, got another {name} there"):
            _main(kept, "follow")
        path.write_text(there)
    with pytest.raises(SystemExit, match="Train first"):
        _main(kept, "follow", "--seeds", "9")
