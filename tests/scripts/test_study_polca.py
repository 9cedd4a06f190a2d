"""What docs/polca.md says in words, against the rows that its commands wrote."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import polca_scores
import pytest

from qfl_interp.polca.quality import restricted_homogeneity

DOCS = Path(__file__).parents[2] / "docs"
# Where the exact loss leaves its plateau, as the page says.
TRANSITION = 160


def test_chance_is_the_best_cluster_s_homogeneity_with_shuffled_carries():
    """One direction with a cluster in the tens and hundreds, one with a cluster in the ones, which does not count."""
    rng = np.random.default_rng(1)
    place = np.tile(np.arange(4), 60)
    carry = rng.random(240) < np.array([0.3, 0.5, 0.4, 0.0])[place]
    labels = [np.where(np.isin(place, (1, 2)) & (rng.random(240) < 0.4), 0, -1), np.where(place == 3, 0, -2)]
    labels[1][:40] = 1
    found = polca_scores.chance_homogeneity(labels, carry, place, 400)
    best = []
    for _ in range(400):
        mixed = carry.copy()
        for at in range(4):
            mixed[place == at] = rng.permutation(mixed[place == at])
        tops = [restricted_homogeneity(own, mixed, place, (1, 2)).homogeneity for own in labels]
        best.append(np.nanmax(tops))
    assert found == pytest.approx(np.quantile(best, 0.95), abs=0.02)
    assert found > np.mean(best) + 0.03
    assert math.isnan(polca_scores.chance_homogeneity([np.full(240, -1)], carry, place))
    assert math.isnan(polca_scores.chance_homogeneity([labels[1] * (place == 3) - (place != 3)], carry, place))


@pytest.fixture(scope="module")
def carry():
    return pd.read_csv(DOCS / "polca_carry.csv")


def small(carry, way):
    """The steps at which labels are told with a p-value of at most 0.01."""
    return carry[(carry["way"] == way) & (carry["p_value"] <= 0.01)]["step"].tolist()


def test_the_carry_is_told_when_the_page_says(carry):
    asked = sorted(carry["step"].unique())
    assert (len(asked), len(carry)) == (23, 92)
    assert small(carry, "a projected loss") == [24, 34] + [step for step in asked if step >= 70]
    assert small(carry, "POLCA's clusters") == [60] + [step for step in asked if step >= 126]
    assert small(carry, "the exact loss")[0] == 156
    assert 156 - 70 == 86
    assert small(carry, "clusters of the exact loss")[0] > TRANSITION
    # The smallest p-value of 200 shuffles, times the number of tests.
    assert carry["p_value"].min() == pytest.approx(1 / 201)
    assert carry["p_value"].min() * len(carry) > 0.4


def test_before_the_transition_it_is_two_hundredths_at_most(carry):
    before = carry[(carry["step"] < TRANSITION) & (carry["way"] != "the exact loss")]
    assert 0.01 < (before["score"] - before["chance"]).max() < 0.025


def test_the_page_compares_the_accuracies_as_they_were_measured():
    errors = pd.read_csv(DOCS / "polca_accuracy.csv").set_index("accuracy")
    near, far = errors.filter(like="next checkpoint"), errors.filter(like="12 checkpoints")
    assert near.loc["second order, exact"].iloc[0] < 0.05
    assert near.loc["path integral, 1 panel (the default)"].iloc[1] < 0.02
    ratio = near.loc["second order, the paper's ratio (Eq. 3-6)"]
    assert (ratio > near.loc["first order (Eq. 2)"]).all()
    assert 0.35 < near.loc["path integral, 2 panels"].iloc[0] < 0.45
    expansions = [name for name in far.index if "order" in name]
    assert far.loc[expansions].min(axis=None) > 0.9
    one, two = (far.loc[name].iloc[1] for name in far.index if "path" in name)
    assert (round(one, 1), round(1 / two)) == (0.4, 7)


def test_homogeneities_in_the_verdict_are_those_of_the_table():
    rows = pd.read_csv(DOCS / "polca_decimal.csv")
    means = rows.groupby(["trajectory", "min_samples"])["homogeneity"].mean()
    best = means.groupby("trajectory").max().round(2)
    assert best["exact loss"] == 0.48
    assert best["LCA: 50 largest parameters, path integral"] == 0.50
    assert best["LCA: 50 largest parameters, first order"] == 0.51
    polca = best[[name for name in best.index if name.startswith("POLCA")]]
    assert polca.max() < best["exact loss"]
    assert rows["hidden"].max() == 0
    assert rows.groupby("seed")["tau"].unique().map(list).to_dict() == {0: [3131], 1: [2257], 2: [2477]}
    assert set(rows[~rows["trajectory"].str.contains("loss|POLCA")]["seed"]) == {0, 1}


def test_homogeneities_are_those_of_chance():
    rows = pd.read_csv(DOCS / "polca_decimal.csv").dropna(subset=["homogeneity"])
    above = rows[rows["homogeneity"] > rows["by chance"]]
    assert (len(rows), len(above)) == (29, 1)
    (one,) = above.to_dict("records")
    assert (one["trajectory"], one["seed"]) == ("trajectory directions, path integral", 0)
    assert (round(one["homogeneity"], 2), round(one["by chance"], 2)) == (0.25, 0.04)
    means = rows.groupby(["trajectory", "min_samples"])[["homogeneity", "by chance"]].mean().round(2)
    for name, at in (("path integral", 0.49), ("first order", 0.40)):
        wide = means.loc[(f"LCA: 50 largest parameters, {name}", "tokens / 15")]
        assert wide["homogeneity"] == at < wide["by chance"]
    assert means.loc[("exact loss", "tokens / 15"), "homogeneity"] == 0.29


def test_the_page_says_what_the_directions_capture():
    rows = pd.read_csv(DOCS / "polca_captured.csv")
    path, first = rows["POLCA, path integral"], rows["POLCA, first order"]
    assert (round(path.min(), 2), round(path.max(), 2)) == (0.05, 0.07)
    assert (round(first.min(), 1), round(first.max(), 1)) == (1.3, 2.1)
    assert (rows["turns back, Hessian"] > rows["turns back, random"] + 0.1).all()
    assert (rows["way kept, Hessian"] < rows["way kept, random"] / 2).all()
