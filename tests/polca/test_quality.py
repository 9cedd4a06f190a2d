"""Scores of clusters against scikit-learn, brute force and planted answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, f1_score, precision_score, recall_score, silhouette_samples

from qfl_interp.polca import quality
from qfl_interp.polca.clustering import Clusters, cluster_direction
from qfl_interp.polca.quality import (
    NO_CLUSTER,
    adjusted_rand,
    restricted_homogeneity,
    silhouettes,
    skill_scores,
    stability,
)


def random_case(seed=0, n=200):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-2, 4, n)
    return labels, rng.random(n) < 0.2 + 0.2 * (labels == 2), rng.integers(0, 4, n)


def blobs(centres, sizes, *, noise=0.05, seed=0):
    """Curves `[token, time]` that end below where they start, around given end points, and each token's group."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.array(centres)[group] + noise * rng.normal(size=(len(group), 2))
    return np.column_stack([np.zeros(len(group)), ends]), group


def test_scores_are_precision_recall_and_f1_over_the_clustered_tokens():
    labels, skill, _ = random_case()
    found = skill_scores(labels, skill)
    assert found["cluster"].tolist() == [0, 1, 2, 3]
    kept = labels >= 0
    for row in found.itertuples():
        inside = labels[kept] == row.cluster
        assert row.n_tokens == inside.sum()
        assert row.homogeneity == pytest.approx(precision_score(skill[kept], inside), rel=1e-12)
        assert row.recall == pytest.approx(recall_score(skill[kept], inside), rel=1e-12)
        assert row.f1 == pytest.approx(f1_score(skill[kept], inside), rel=1e-12)


def test_scores_by_hand():
    labels = np.array([0, 0, 0, 1, 1, -1, -2])
    skill = np.array([True, True, False, True, False, True, True])
    found = skill_scores(labels, skill).set_index("cluster")
    assert found.loc[0].tolist() == pytest.approx([3, 2 / 3, 2 / 3, 2 / 3])
    assert found.loc[1].tolist() == pytest.approx([2, 1 / 2, 1 / 3, 2 / 5])


def test_a_skill_that_no_clustered_token_has_scores_0():
    labels = np.array([0, 0, -1])
    found = skill_scores(labels, np.array([False, False, True]))
    assert found[["homogeneity", "recall", "f1"]].to_numpy().tolist() == [[0.0, 0.0, 0.0]]
    assert skill_scores(np.array([-1, -2]), np.array([True, True])).empty


def test_restricted_homogeneity_takes_the_purest_cluster_whose_skill_lies_in_the_places(monkeypatch):
    # cluster 0: all with the skill, at place 0; 1: 7 of 8, places 1 and 2; 2: 3 of 4, place 1
    labels = np.array([0] * 5 + [1] * 8 + [2] * 4 + [-1] * 3)
    skill = np.array([True] * 5 + [True] * 7 + [False] + [True] * 3 + [False] + [True] * 3)
    place = np.array([0] * 5 + [1, 2] * 4 + [1] * 4 + [1] * 3)
    found = restricted_homogeneity(labels, skill, place, (1, 2))
    assert found == pytest.approx((1, 7 / 8, 7 / 15, 14 / (8 + 15)))
    assert restricted_homogeneity(labels, skill, place, (0,)).cluster == 0
    assert restricted_homogeneity(labels, skill, place, (3,)) is NO_CLUSTER
    assert math.isnan(NO_CLUSTER.homogeneity)
    assert restricted_homogeneity(labels, skill, place, (1,)).cluster == 2
    # More than the share: a cluster at exactly 4 of 7 does not count.
    monkeypatch.setattr(quality, "PLACE_SHARE", 0.57)
    assert restricted_homogeneity(labels, skill, place, (1,)).cluster == 1
    without_2 = np.where(labels == 2, -1, labels)
    monkeypatch.setattr(quality, "PLACE_SHARE", 4 / 7)
    assert restricted_homogeneity(without_2, skill, place, (1,)) is NO_CLUSTER


def test_only_the_place_of_tokens_with_the_skill_counts():
    labels = np.zeros(10, dtype=int)
    skill = np.arange(10) < 4
    place = np.where(skill, 1, 3)
    assert restricted_homogeneity(labels, skill, place, (1,)).homogeneity == pytest.approx(0.4)
    assert restricted_homogeneity(labels, skill, place, (3,)) is NO_CLUSTER
    assert restricted_homogeneity(labels, np.zeros(10, dtype=bool), place, (1, 3)) is NO_CLUSTER


def test_of_equally_pure_clusters_the_one_with_more_recall_counts():
    labels = np.repeat([0, 1, 2], [4, 6, 5])
    skill = np.ones(15, dtype=bool)
    assert restricted_homogeneity(labels, skill, np.ones(15, dtype=int), (1,)).cluster == 1


def test_adjusted_rand_is_over_the_clustered_tokens():
    labels, _, place = random_case(1)
    kept = labels >= 0
    assert adjusted_rand(labels, place) == adjusted_rand_score(place[kept], labels[kept])
    assert adjusted_rand(np.array([1, 1, 0, 0, -1, -2]), np.array([5, 5, 3, 3, 5, 3])) == 1
    assert abs(adjusted_rand(labels, place)) < 0.05
    assert math.isnan(adjusted_rand(np.array([0, -1]), np.array([0, 1])))


def brute_silhouettes(curves, labels):
    values = {}
    for i in np.flatnonzero(labels >= 0):
        distance = np.linalg.norm(curves - curves[i], axis=1)
        own = (labels == labels[i]) & (np.arange(len(labels)) != i)
        others = [distance[labels == c].mean() for c in set(labels.tolist()) - {-1, -2, int(labels[i])}]
        a, b = distance[own].mean(), min(others)
        values.setdefault(int(labels[i]), []).append((b - a) / max(a, b))
    return {cluster: np.mean(v) for cluster, v in values.items()}


def test_silhouettes_are_of_the_clustered_tokens():
    curves, group = blobs([(-1, -1), (-1, -2), (-3, -1)], [20, 10, 15], noise=0.3)
    labels = group.copy()
    labels[[0, 25]] = -1, -2
    assert silhouettes(curves, labels) == pytest.approx(brute_silhouettes(curves, labels), rel=1e-9)


def test_silhouettes_of_a_sample_are_the_same_again_and_close(monkeypatch):
    curves, group = blobs([(-1, -1), (-1, -2), (-3, -1)], [200, 100, 150], noise=0.3)
    whole = silhouette_samples(curves, group)
    everywhere = {cluster: whole[group == cluster].mean() for cluster in range(3)}
    assert silhouettes(curves, group) == pytest.approx(everywhere, rel=1e-9)
    monkeypatch.setattr(quality, "_MOST_TOKENS", 150)
    found = silhouettes(curves, group)
    assert found == silhouettes(curves, group) != pytest.approx(everywhere, rel=1e-6)
    for cluster, value in found.items():
        assert value == pytest.approx(everywhere[cluster], abs=4 * whole.std() / math.sqrt(20))


@pytest.mark.parametrize("labels", [[0] * 6, [-1] * 6, [0, 1, -1, -1, -1, -1]], ids=["one", "none", "singles"])
def test_silhouettes_need_two_clusters_of_several_tokens(labels):
    found = silhouettes(np.random.default_rng(0).normal(size=(6, 3)), np.array(labels))
    assert list(found) == sorted({label for label in labels if label >= 0})
    assert all(math.isnan(value) for value in found.values())


def test_separate_clusters_are_stable_and_a_cut_through_one_is_not():
    curves, group = blobs([(-1, -1), (-1, -4), (-5, -1)], [60, 40, 50])
    sizes = {"min_cluster_size": 10, "min_samples": 3}
    found = cluster_direction(curves, **sizes)
    assert len(found) == 3
    stable = stability(curves, found, **sizes, resamples=5)
    assert list(stable) == [0, 1, 2]
    assert min(stable.values()) > 0.9
    # The same with the largest blob cut in halves, which no clustering finds again: the overlap is about a half.
    halves = group.copy()
    halves[:30] = 3
    cut = Clusters(halves, {0: 40, 1: 70, 2: 110, 3: 0}, True, len(curves))
    unstable = stability(curves, cut, **sizes, resamples=5)
    assert unstable[0] == pytest.approx(0.5, abs=0.1)
    assert unstable[3] == pytest.approx(0.5, abs=0.1)
    assert unstable[1] > 0.9


def test_stability_follows_its_definition_and_its_seed():
    curves, _ = blobs([(-1, -1), (-1, -1.6), (-1.5, -1)], [40, 30, 30], noise=0.15, seed=3)
    sizes = {"min_cluster_size": 10, "min_samples": 4}
    found = cluster_direction(curves, **sizes)
    got = stability(curves, found, **sizes, resamples=3, share=0.7, seed=5)
    rng = np.random.default_rng(5)
    expected = {cluster: [] for cluster in found.medoids}
    for _ in range(3):
        rows = np.sort(rng.choice(100, 70, replace=False))
        again = cluster_direction(curves[rows], min_cluster_size=7, min_samples=3)
        for cluster in found.medoids:
            mine = {int(r) for r in rows if found.labels[r] == cluster}
            theirs = [{int(rows[i]) for i in again.tokens(c)} for c in again.medoids]
            expected[cluster].append(max((len(mine & t) / len(mine | t) for t in theirs), default=0))
    assert got == pytest.approx({cluster: np.mean(v) for cluster, v in expected.items()}, rel=1e-12)
    assert 0 < min(got.values()) < 1
    assert got != stability(curves, found, **sizes, resamples=3, share=0.7, seed=6)


def test_nothing_is_found_again_where_the_subset_has_no_cluster():
    curves, _ = blobs([(-1, -1), (-1, -4)], [20, 20])
    found = cluster_direction(curves, min_cluster_size=5, min_samples=2)
    assert stability(curves, found, min_cluster_size=40, resamples=2) == {0: 0.0, 1: 0.0}
    assert stability(curves, cluster_direction(curves, min_cluster_size=40), resamples=2) == {}


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"share": 1.1}, {"resamples": 0}], ids=["none", "over", "resamples"])
def test_resampling_out_of_range_is_refused(bad):
    curves, _ = blobs([(-1, -1), (-1, -4)], [20, 20])
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        stability(curves, cluster_direction(curves), **bad)
