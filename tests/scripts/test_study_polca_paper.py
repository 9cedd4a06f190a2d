"""The study of POLCA in its paper's regime: its numbers against independent ones, and all of it at a tiny size."""

from __future__ import annotations

import json
import math
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
TABLES = ("regime", "clusters", "readings", "above", "told", "best", "discriminant", "movement")


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


def test_the_page_s_answer_is_what_its_tables_say():
    all_rows = pd.read_csv(runs.DOCS / "polca_paper.csv")
    rows = all_rows.query("carry == 'carry_in' and stretch == 'all'")
    over_seeds = rows.groupby(["clusters_entering", "d_model", "trajectory", "basis", "scale"]).mean(numeric_only=True)
    there, every = (over_seeds.loc[enter] for enter in ("carries there", "all"))
    first, path, exact = "first order", "path integral, trapezoid", "exact loss"
    captured = {
        d_model: [round(there.loc[(d_model, name, "hessian", "raw"), "captured"], 3) for name in (first, path)]
        for d_model in (256, 512)
    }
    assert captured == {256: [0.896, 0.027], 512: [0.923, 0.03]}
    near = all_rows.query("d_model == 512 and stretch == 'closely' and scale == 'raw'")
    assert near.groupby("trajectory")["captured"].first()[[first, path]].round(2).tolist() == [5.86, 0.03]
    near_told = near.groupby("trajectory")[["auc_hundreds", "auc_tens"]].first().round(2)
    assert near_told.loc[[path, exact]].to_numpy().tolist() == [[0.71, 0.91], [0.54, 0.72]]
    unit = rows.query("d_model == 512 and trajectory == @first and basis == 'hessian' and scale == 'unit'")
    unit = unit[unit["clusters_entering"] == "carries there"].set_index("seed")
    assert unit["captured"].round(2).to_dict() == {0: 0.85, 1: 0.99}
    assert unit.loc[0, ["homogeneity", "recall", "f1"]].astype(float).round(2).tolist() == [0.77, 0.79, 0.78]
    by_chance = unit[["chance_place", "chance_place_target"]].max(axis=1).round(2)
    assert by_chance.to_dict() == {0: 0.59, 1: 0.29}
    assert round(unit.loc[1, "homogeneity"], 2) == 0.27
    pure = rows[(rows["trajectory"] == first) & (rows["scale"] == "raw") & (rows["clusters_entering"] == "all")]
    pure = pure[(pure["basis"] == "hessian") & (pure["d_model"] > 64)]
    assert (pure["chance_place_target"] >= pure["homogeneity"] - 0.01).all()
    assert (pure.loc[pure["seed"] == 0, "homogeneity"] > 0.92).all()
    telling = {
        (512, path, "hessian"): [0.82, 0.79], (512, exact, "hessian"): [0.51, 0.58],
        (512, first, "hessian"): [0.62, 0.71], (512, path, "random"): [0.71, 0.70],
        (256, path, "hessian"): [0.77, 0.80], (256, exact, "hessian"): [0.54, 0.62],
        (256, first, "hessian"): [0.64, 0.64], (256, path, "random"): [0.79, 0.60],
        (256, path, "shuffled"): [0.65, 0.84],
        (64, path, "hessian"): [0.73, 0.72], (64, path, "random"): [0.75, 0.79],
    }  # fmt: skip
    told = every[["auc_hundreds", "auc_tens"]]
    for name, wanted in telling.items():
        assert told.loc[(*name, "raw")].round(2).tolist() == wanted, name
    moving = every.xs(("trajectory", "raw"), level=("basis", "scale"))["captured"]
    assert moving.round(2).to_dict() == {(64, first): 0.45, (64, path): 0.33, (256, first): 0.61, (256, path): 0.56}
    of_path = rows[(rows["trajectory"] == path) & (rows["basis"] == "hessian") & (rows["d_model"] > 64)]
    assert of_path[["auc_hundreds", "auc_tens"]].min().min() > 0.72
    # Carries out of a place have five such readings: of seed 1 at 256, and of stretches followed closely.
    raw = all_rows.query("scale == 'raw' and (carry == 'carry_in' or d_model != 256)")
    over = raw["homogeneity"] - raw[["chance_place", "chance_place_target"]].max(axis=1)
    assert over.max() < 0.02
    found = pd.read_csv(runs.DOCS / "polca_paper_discriminant.csv")
    same = found[found["run"] == found["fitted_on"]]
    means = same.groupby([same["run"].str.split("-").str[0], "features", "place"])["auc"].mean().round(2)
    assert means["d512", "slopes, hessian"].tolist() == [0.91, 0.96]
    assert means["d512", "slopes, random"].tolist() == [0.91, 0.87]
    assert means["d256", "slopes, hessian"].tolist() == [0.87, 0.92]
    other = found[found["run"] != found["fitted_on"]]
    by_size = other.groupby([other["run"].str.split("-").str[0], "features"])
    elsewhere = {name: some.groupby("place")[["auc", "chance"]].mean().round(2) for name, some in by_size}
    assert elsewhere["d512", "slopes, hessian"]["auc"].tolist() == [0.31, 0.48]
    assert elsewhere["d256", "slopes, hessian"]["auc"].tolist() == [0.39, 0.51]
    areas = other.loc[other["features"] == "slopes, hessian", "auc"]
    assert [round(areas.min(), 2), round(areas.max(), 2)] == [0.16, 0.75]
    assert elsewhere["d512", "exact loss"].to_numpy().tolist() == [[0.52, 0.6], [0.82, 0.77]]
    assert elsewhere["d256", "exact loss"].to_numpy().tolist() == [[0.58, 0.63], [0.8, 0.72]]
    best = pd.read_csv(runs.DOCS / "polca_paper_best.csv")
    assert (np.sign(best["with_carry"]) == -np.sign(best["without"])).all()
    assert [int((best["with_carry"] < 0).sum()), len(best)] == [4, 12]
    by_place = best.set_index(["place", "run"])
    assert (by_place.loc["tens", "step"] > by_place.loc["hundreds", "step"]).all()
    large = best[best["run"].str.startswith("d512")].set_index(["place", "run"])
    assert large["step"].tolist() == [400, 1_800, 400, 1_800]
    parted = (large["with_carry"] - large["without"]).abs().loc["hundreds"]
    assert parted.round(2).tolist() == [0.73, 0.55]
    assert by_place["exact_apart"].groupby("place").max().round(2).tolist() == [0.31, 1.0]
    pairs = pd.read_csv(runs.DOCS / "polca_paper_orders.csv")
    orders = pairs.query("one == 'first' and other == 'paper'")
    agreed = orders.groupby(["d_model", "stretch"])[["cosine", "captured_one", "captured_other"]].mean()
    assert agreed["cosine"].round(2).tolist() == [0.57, 0.85, 0.65, 0.86, 0.82]
    assert agreed.loc[(512, "short"), ["captured_one", "captured_other"]].round(3).tolist() == [2.386, 0.068]
    large = pairs.query("d_model == 512 and stretch == 'short'").groupby(["one", "other"]).mean(numeric_only=True)
    assert large.loc[("path", "second"), ["captured_one", "captured_other"]].round(3).tolist() == [0.016, 0.068]
    assert round(large.loc[("trapezoid", "path"), "cosine"], 3) == 0.999


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
    within = polca_scores.chance_homogeneity(labels, carry, place, among=target)
    assert within == 1
    assert polca_scores.chance_homogeneity(labels, carry, place) < 0.7
    found = restricted_homogeneity(labels[0], carry, place, polca_scores.CARRY_PLACES)
    assert found.homogeneity == 1


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
    monkeypatch.setattr(scoring, "SHUFFLES", {"clusters": 10, "discriminant": 2})
    page = kept / "polca.md"
    page.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in TABLES))
    _main(kept, "tables")
    shown = page.read_text()
    assert "| 16 | 2 | 8 to 12 | 2 |" in shown  # directions, steps, their distance
    assert "| 16 | slopes, hessian | another seed |" in shown
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
    assert own["cosine_first_second"].between(-1, 1).all()
    found = pd.read_csv(kept / "polca_paper_discriminant.csv")
    # Hessian, loss and, of one seed, random and shuffled; two places; seed on seed, what both have.
    assert len(found) == (4 + 2) * 2 + 2 * 2 * 2
    assert pd.read_csv(kept / "polca_paper_movement.csv")["way_kept"].between(0, 1).all()
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
    assert capsys.readouterr().out.count(" hours, ") == 2 * 8
    _main(kept, "train", "--dry-run", "--seeds", "7")
    assert "train d16-seed7: 16 updates" in capsys.readouterr().out
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"tol": 1}, indent=1))
    with pytest.raises(SystemExit, match="must hold tables of one setting"):
        _main(kept, "follow")
    with pytest.raises(SystemExit, match="Train first"):
        _main(kept, "follow", "--seeds", "9")
