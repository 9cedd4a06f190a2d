"""When a skill can be told from curves, against scikit-learn, brute force and planted answers."""

from __future__ import annotations

import numpy as np
import pytest
from polca_recovery import recovery
from scipy.stats import pointbiserialr
from sklearn.metrics import matthews_corrcoef

from qfl_interp.polca.clustering import cluster_direction
from qfl_interp.polca.trajectories import Trajectories

STEPS = (0, 10, 20, 30, 40, 50)


def planted(*, turns_at=30, n=120, seed=0, noise=0.02):
    """Two directions; along the second, tokens with the skill fall from `turns_at` on, the others a little throughout.

    Along the first all fall alike. Places alternate, targets are at random.
    """
    rng = np.random.default_rng(seed)
    skill, place, target = rng.random(n) < 0.5, np.arange(n) % 2, rng.integers(0, 2, n)
    time = np.array(STEPS, dtype=float)
    same = np.tile(-time / 50, (n, 1))
    fall = -time / 500 - 3.0 * skill[:, None] * np.maximum(0, time - turns_at + 10) / 10
    values = np.stack([same, fall]) + noise * rng.normal(size=(2, n, len(STEPS)))
    values[:, :, 0] = 0
    return Trajectories("polca", STEPS, values, (4, 7)), skill, place, target


def test_a_skill_is_told_from_when_its_tokens_part_and_not_before():
    curves, skill, place, target = planted()
    found = recovery(curves, {4: 0, 7: 0}, skill, place, target, times=(10, 20, 30, 50)).set_index("step")
    assert (found.loc[[10, 20], "clusters"] < 0.3).all()
    assert (found.loc[[10, 20], "losses"] <= found.loc[[10, 20], "losses_chance"]).all()
    assert (found.loc[[30, 50], ["clusters", "losses"]] > 0.95).all(axis=None)
    assert (found.loc[[30, 50], ["clusters_p_value", "losses_p_value"]] == 1 / 201).all(axis=None)
    assert (found.loc[[30, 50], ["clusters_chance", "losses_chance"]] < 0.5).all(axis=None)


def test_a_direction_that_is_not_known_yet_does_not_count():
    curves, skill, place, target = planted()
    found = recovery(curves, {4: 0, 7: 40}, skill, place, target, times=(30, 40)).set_index("step")
    assert found["n_directions"].tolist() == [1, 2]
    assert found.loc[30, "losses"] < 0.5 < 0.95 < found.loc[40, "losses"]


def test_scores_are_the_best_correlations_of_each_place():
    curves, skill, place, target = planted(noise=1.0)
    (row,) = recovery(curves, {4: 0, 7: 0}, skill, place, target, times=(40,)).to_dict("records")
    labels = [cluster_direction(curves.of(name)[:, :5]).labels for name in (4, 7)]
    clusters = [own == cluster for own in labels for cluster in range(own.max() + 1)]
    assert row["n_clusters"] == len(clusters) > 0
    by_place = [
        max(abs(matthews_corrcoef(skill[place == p], members[place == p])) for members in clusters) for p in (0, 1)
    ]
    assert row["clusters"] == pytest.approx(np.mean(by_place), rel=1e-12)
    by_loss = [
        max(abs(pointbiserialr(skill[place == p], curves.of(name)[place == p, 4])[0]) for name in (4, 7))
        for p in (0, 1)
    ]
    assert row["losses"] == pytest.approx(np.mean(by_loss), rel=1e-9)


def test_what_place_and_the_known_say_is_chance():
    # The skill follows from place and target, and so do the curves: nothing is left that labels shuffled inside lack.
    n = 200
    place, target = np.arange(n) % 2, (np.arange(n) // 2) % 2
    skill = place == target
    values = -np.outer(1 + 5 * skill, np.array(STEPS) / 50) + 0.01 * np.random.default_rng(0).normal(size=(n, 6))
    values[:, 0] = 0
    curves = Trajectories("polca", STEPS, values[None], (0,))
    (row,) = recovery(curves, {0: 0}, skill, place, target, times=(50,)).to_dict("records")
    assert row["clusters"] == pytest.approx(row["clusters_chance"])
    assert row["clusters"] > 0.95
    assert row["clusters_p_value"] == row["losses_p_value"] == 1.0


def test_shuffled_labels_are_below_their_own_quantile_about_as_often_as_they_should():
    curves, _, place, target = planted(noise=1.0)
    rng = np.random.default_rng(1)
    p_values = [
        recovery(
            curves, {4: 0, 7: 0}, rng.random(len(place)) < 0.5, place, target, times=(50,), n_shuffles=40, seed=seed
        )["losses_p_value"][0]
        for seed in range(60)
    ]
    assert np.mean(np.array(p_values) <= 0.1) < 0.25
    assert 0.35 < np.mean(p_values) < 0.65


def test_without_a_direction_the_scores_are_0():
    curves, skill, place, target = planted()
    (row,) = recovery(curves, {4: 99, 7: 99}, skill, place, target, times=(50,), n_shuffles=3).to_dict("records")
    assert [row[name] for name in ("n_directions", "n_clusters", "clusters", "losses")] == [0, 0, 0, 0]


def test_the_seed_names_the_result_and_a_time_without_a_past_is_refused():
    curves, skill, place, target = planted(noise=1.0)
    one, two = (recovery(curves, {4: 0, 7: 0}, skill, place, target, times=(50,), seed=3) for _ in range(2))
    assert one.equals(two)
    with pytest.raises(ValueError, match=r"times must have at least two steps up to them, got 0 with steps from 0"):
        recovery(curves, {4: 0, 7: 0}, skill, place, target, times=(0,))


def test_a_place_where_all_are_alike_is_left_out():
    curves, skill, place, target = planted()
    more = [np.concatenate([part, part[:20]]) for part in (skill, place, target)]
    more[0][-20:], more[1][-20:] = False, 2
    values = np.concatenate([curves.values, curves.values[:, :20]], axis=1)
    longer = Trajectories("polca", STEPS, values, (4, 7))
    found = recovery(longer, {4: 0, 7: 0}, *more, times=(50,), n_shuffles=3)
    expected = recovery(curves, {4: 0, 7: 0}, skill, place, target, times=(50,), n_shuffles=3)
    assert found["losses"][0] == pytest.approx(expected["losses"][0], rel=1e-12)
    with pytest.raises(ValueError, match="skill must be both True and False at one place at least"):
        recovery(curves, {4: 0, 7: 0}, place == 0, place, target, times=(50,))
