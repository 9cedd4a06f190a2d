"""Trajectories of every kind by hand, and clusters that were planted."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN

from qfl_interp.errors import QflError
from qfl_interp.polca import clustering
from qfl_interp.polca.clustering import (
    DROPPED,
    OUTLIER,
    cluster_direction,
    default_cluster_size,
    nearest_to_medoid,
)
from qfl_interp.polca.trajectories import (
    NO_DIRECTION,
    Trajectories,
    exact_loss,
    fisher,
    loss_change,
)

TIME = np.linspace(0, 1, 21)


def fall(when: float, depth: float) -> np.ndarray:
    """A curve from 0 down to about -depth at time `when`."""
    curve = -depth / (1 + np.exp(-(TIME - when) / 0.05))
    return curve - curve[0]


def planted(sizes=(60, 40, 30), *, noise=0.01, seed=0, risers=0) -> tuple[np.ndarray, np.ndarray]:
    """Curves `[token, time]` of groups that fall at different times, tokens shuffled, and each token's group."""
    rng = np.random.default_rng(seed)
    shapes = [fall(0.2, 1.0), fall(0.5, 1.0), fall(0.8, 1.0), fall(0.35, 2.0)][: len(sizes)]
    if risers:
        shapes, sizes = [*shapes, -0.5 * fall(0.4, 1.0)], (*sizes, risers)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    steps = rng.normal(size=(len(group), len(TIME))) * noise
    steps[:, 0] = 0
    return np.array(shapes)[group] + steps, group


def same_partition(labels: np.ndarray, group: np.ndarray) -> bool:
    pairs = set(zip(labels.tolist(), group.tolist(), strict=True))
    return len(pairs) == len(set(labels.tolist())) == len(set(group.tolist()))


def summed_distances(curves: np.ndarray) -> np.ndarray:
    return np.array([sum(np.linalg.norm(a - b) for b in curves) for a in curves])


# --- trajectories -----------------------------------------------------------------------------------------------------


def test_kinds_by_hand():
    losses = np.array([[2.0, 3.0], [1.5, 3.5], [0.5, 3.0]])  # [time, token]
    exact = exact_loss(losses, [0, 10, 30])
    assert exact.values.tolist() == [[[2.0, 1.5, 0.5], [3.0, 3.5, 3.0]]]
    assert (exact.kind, exact.steps, exact.directions) == ("exact_loss", (0, 10, 30), (NO_DIRECTION,))
    change = loss_change(losses, [0, 10, 30])
    assert change.values.tolist() == [[[-0.5, -1.0], [0.5, -0.5]]]
    assert (change.kind, change.steps) == ("loss_change", (10, 30))
    slopes = np.array([[[1.0, -2.0]], [[3.0, 0.5]]])  # [time, token, direction]
    found = fisher(slopes, [0, 5])
    assert found.of(0).tolist() == [[1.0, 9.0]]
    assert found.of(1).tolist() == [[4.0, 0.25]]
    assert (found.kind, found.directions) == ("fisher", (0, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (0, 1)}, r"got 2 directions and 2 steps"),
        ({"directions": (0,)}, r"got 1 directions and 3 steps"),
        ({"directions": (4, 4)}, r"different names, got \[4, 4\]"),
        ({"steps": (0, 2, 2)}, r"steps must increase, got \[0, 2, 2\]"),
    ],
    ids=["steps", "directions", "names", "order"],
)
def test_bad_trajectories_are_refused(change, message):
    fields = {"kind": "polca", "steps": (0, 1, 2), "values": np.zeros((2, 3, 3)), "directions": (0, 1)}
    Trajectories(**fields)
    with pytest.raises(ValueError, match=message):
        Trajectories(**{**fields, **change})


def test_a_diverged_value_is_named():
    values = np.zeros((2, 3, 3))
    values[1, 2, 1] = np.nan
    with pytest.raises(ValueError, match="got nan of token 2 along direction 5 at step 10"):
        Trajectories("polca", (0, 10, 20), values, (4, 5))
    with pytest.raises(ValueError, match=r"one of \[4, 5\], got 0"):
        Trajectories("polca", (0, 10, 20), np.zeros((2, 3, 3)), (4, 5)).of(0)


# --- clusters ---------------------------------------------------------------------------------------------------------


def test_planted_groups_are_found_largest_first():
    curves, group = planted()
    found = cluster_direction(curves, min_cluster_size=10, min_samples=3)
    assert found.kept
    assert len(found) == 3
    assert found.n_falling == len(curves)
    clustered = found.labels != OUTLIER
    assert clustered.mean() > 0.9
    assert np.array_equal(found.labels[clustered], group[clustered])  # the groups are numbered by size, too


def test_medoid_has_the_smallest_summed_distance():
    curves, _ = planted(seed=1)
    found = cluster_direction(curves, min_cluster_size=10, min_samples=3)
    for cluster, medoid in found.medoids.items():
        members = found.tokens(cluster)
        sums = summed_distances(curves[members])
        assert medoid == members[sums.argmin()]
        assert sums.argmin() != 0  # else the first token would do
        distances = np.linalg.norm(curves[members] - curves[medoid], axis=1)
        expected = members[np.argsort(distances)[:4]]
        assert np.array_equal(nearest_to_medoid(curves, found, cluster, 4), expected)
        assert expected[0] == medoid


def test_the_medoid_comes_first_among_equal_curves():
    curves = np.repeat(np.array([fall(0.2, 1.0), fall(0.8, 2.0)]), 20, axis=0)
    curves[:20] += np.linspace(-1, 1, 20).round()[:, None] * 1e-3 * TIME
    found = cluster_direction(curves, min_cluster_size=5, min_samples=2)
    for cluster, medoid in found.medoids.items():
        assert nearest_to_medoid(curves, found, cluster, 3)[0] == medoid


def test_labels_are_those_of_hdbscan_on_the_falling_tokens():
    curves, _ = planted(risers=25, noise=0.05)
    found = cluster_direction(curves, min_cluster_size=8, min_samples=4)
    falling = curves[:, -1] < curves[:, 0]
    assert found.n_falling == falling.sum() == 130
    reference = HDBSCAN(min_cluster_size=8, min_samples=4, algorithm="kd_tree", copy=True).fit(curves[falling])
    assert same_partition(found.labels[falling], reference.labels_)
    assert np.all(found.labels[~falling] == DROPPED)
    assert np.all(found.labels[falling] >= OUTLIER)


def test_many_tokens_are_clustered_without_all_their_distances(monkeypatch):
    curves, _ = planted(noise=0.05)
    dense = cluster_direction(curves, min_cluster_size=8, min_samples=4)
    monkeypatch.setattr(clustering, "_MAX_PAIRWISE", len(curves) - 1)
    sparse = cluster_direction(curves, min_cluster_size=8, min_samples=4)
    assert np.array_equal(sparse.labels, dense.labels)
    assert sparse.medoids == dense.medoids


def test_more_tokens_than_fit_are_refused_before_they_are_clustered(monkeypatch):
    curves = np.random.default_rng(0).standard_normal((300, 4))
    needed = 16 * 300 * 300
    monkeypatch.setattr(clustering, "available_bytes", lambda: needed - 1)
    with pytest.raises(QflError, match=r"300 tokens by 20 neighbours .* Take fewer examples"):
        cluster_direction(curves, only_falling=False)
    monkeypatch.setattr(clustering, "available_bytes", lambda: needed)
    cluster_direction(curves, only_falling=False)
    monkeypatch.setattr(clustering, "_MAX_PAIRWISE", 299)  # of each token its nearest alone
    monkeypatch.setattr(clustering, "available_bytes", lambda: 16 * 300 * 20)
    cluster_direction(curves, only_falling=False)


def test_all_tokens_are_clustered_without_the_filter():
    curves, group = planted((60, 40), risers=30)
    found = cluster_direction(curves, min_cluster_size=10, min_samples=3, only_falling=False)
    assert len(found) == 3
    assert not np.any(found.labels == DROPPED)
    assert set(found.labels[group == 2]) - {OUTLIER} == {2}
    assert found.n_falling == 100


def test_a_token_that_ends_where_it_began_does_not_fall():
    curves, _ = planted((40,))
    flat = np.concatenate([curves, np.zeros((15, curves.shape[1])), np.sin(2 * np.pi * TIME)[None].repeat(5, axis=0)])
    flat[-5:, -1] = 0.0
    found = cluster_direction(flat, min_cluster_size=10, min_samples=3)
    assert found.n_falling == 40
    assert np.all(found.labels[40:] == DROPPED)


def test_a_direction_whose_mean_rises_is_dropped():
    curves, _ = planted()
    rising = cluster_direction(-curves, min_cluster_size=10, min_samples=3)
    assert not rising.kept
    assert (len(rising), rising.n_falling) == (0, 0)
    assert np.all(rising.labels == DROPPED)
    assert "the mean does not fall" in repr(rising)
    # More tokens fall than rise, but the mean rises.
    few = np.concatenate([curves, -10 * curves[:20]])
    found = cluster_direction(few, min_cluster_size=10, min_samples=3)
    assert (found.kept, found.n_falling) == (False, 130)
    # The fall is that of the last time from the first, whatever lies between.
    assert cluster_direction(curves + 5 * np.sin(np.pi * TIME), min_cluster_size=10, min_samples=3).kept


def test_defaults_follow_the_number_of_tokens():
    curves, _ = planted((300, 60, 40), risers=100, noise=0.2, seed=2)
    found = cluster_direction(curves)
    assert found.n_falling == 400
    # 3 % of the 500 tokens, a fifteenth of the 400 that fall; the neighbours give other clusters.
    assert np.array_equal(found.labels, cluster_direction(curves, min_cluster_size=15, min_samples=26).labels)
    for samples in (25, 27, 33):
        other = cluster_direction(curves, min_cluster_size=15, min_samples=samples)
        assert not np.array_equal(found.labels, other.labels)
    assert [default_cluster_size(n) for n in (5000, 500, 100)] == [150, 15, 5]
    assert len(found) == 3
    assert len(cluster_direction(curves, min_cluster_size=61, min_samples=26)) < 3


def test_too_few_tokens_are_all_outliers():
    curves, _ = planted((4,))
    found = cluster_direction(curves)
    assert found.kept
    assert found.labels.tolist() == [OUTLIER] * 4
    assert len(found) == 0
    assert len(cluster_direction(curves, min_cluster_size=2, min_samples=5)) == 0


def test_the_same_curves_give_the_same_clusters_in_any_order():
    curves, _ = planted(seed=3)
    before = curves.copy()
    first = cluster_direction(curves, min_cluster_size=10, min_samples=3)
    again = cluster_direction(curves, min_cluster_size=10, min_samples=3)
    assert np.array_equal(first.labels, again.labels)
    assert first.medoids == again.medoids
    assert np.array_equal(curves, before)
    order = np.random.default_rng(0).permutation(len(curves))
    moved = cluster_direction(curves[order], min_cluster_size=10, min_samples=3)
    assert np.array_equal(moved.labels, first.labels[order])
    assert {cluster: order[token] for cluster, token in moved.medoids.items()} == first.medoids
    single = cluster_direction(curves.astype(np.float32), min_cluster_size=10, min_samples=3)
    assert np.array_equal(single.labels, first.labels)


def test_equal_curves_are_no_obstacle():
    curves = np.repeat(np.array([fall(0.2, 1.0), fall(0.8, 2.0)]), (20, 10), axis=0)
    found = cluster_direction(curves, min_cluster_size=5, min_samples=2)
    assert found.labels.tolist() == [0] * 20 + [1] * 10


@pytest.mark.parametrize(
    ("curves", "sizes", "message"),
    [
        (np.zeros((3, 1)), {}, r"at least 1 token and 2 times, got shape \(3, 1\)"),
        (np.zeros((0, 5)), {}, r"got shape \(0, 5\)"),
        (np.array([[0.0, 1.0], [0.0, np.inf]]), {}, "got inf of token 1 at time 1"),
        (np.zeros((3, 2)), {"min_cluster_size": 1}, "at least 2, got 1"),
        (np.zeros((3, 2)), {"min_samples": 0}, "min_samples must be at least 1, got 0"),
    ],
    ids=["one-time", "no-token", "infinite", "size", "samples"],
)
def test_what_cannot_be_clustered_is_refused(curves, sizes, message):
    with pytest.raises(ValueError, match=message):
        cluster_direction(curves, **sizes)


def test_an_unknown_cluster_is_refused():
    found = cluster_direction(planted()[0], min_cluster_size=10, min_samples=3)
    with pytest.raises(ValueError, match=r"one of \[0, 1, 2\], got -1"):
        found.tokens(-1)
