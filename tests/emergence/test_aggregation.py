"""Aggregation against the reference's golden summaries and hand computation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from qfl_interp.emergence.aggregation import (
    NOT_FITTED,
    THIRDS,
    geometric_mean,
    label_groups,
    reference_baseline,
    select_layer,
    summarise,
    thirds,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "aggregation.json").read_text())
FEATURES = sorted(GOLDEN["metric"])


def stacked(budget: str, feature: str, side: str) -> np.ndarray:
    layers = GOLDEN["per_layer_per_position"][budget][feature]
    return np.array([layers[str(layer)][side] for layer in range(len(layers))])


@pytest.mark.parametrize("feature", FEATURES)
def test_summaries_are_the_reference_s(feature):
    expected = GOLDEN["expected"][feature]
    budgets = [budget for budget, _ in expected["all_positions"]]
    assert len(budgets) == 5
    for row, budget in enumerate(budgets):
        got = summarise(stacked(str(budget), feature, "train"), stacked(str(budget), feature, "test"))
        for third in THIRDS:
            assert got[third].geometric_mean == pytest.approx(expected["thirds"][third][row][1], rel=1e-6)
        assert got["all"].geometric_mean == pytest.approx(expected["all_positions"][row][1], rel=1e-6)


@pytest.mark.parametrize("feature", FEATURES)
def test_random_baseline_is_the_reference_s_and_not_the_clean_one(feature):
    expected = GOLDEN["expected"][feature]
    train, test = stacked("random_0", feature, "train"), stacked("random_0", feature, "test")
    got = reference_baseline(test[None])
    for third in THIRDS:
        assert got[third].geometric_mean == pytest.approx(expected["thirds_random"][third], rel=1e-6)
    assert got["all"].geometric_mean == pytest.approx(expected["all_positions_random"], rel=1e-6)
    clean = summarise(train, test)["all"].geometric_mean
    assert clean > got["all"].geometric_mean  # chosen on training: cannot beat the minimum


def test_layer_is_chosen_on_training_and_nan_is_not_fitted():
    train = np.array([[0.5, np.nan, np.nan, 0.2], [0.4, 0.9, np.nan, 0.2]])
    assert select_layer(train).tolist() == [1, 1, NOT_FITTED, 0]
    test = np.array([[0.1, 0.1, 0.1, 8.0], [2.0, 4.0, 0.1, 0.1]])
    got = summarise(train, test)
    # Fitted labels 0, 1, 3 close up: one a third, with test values 2, 4, 8.
    assert [got[t].geometric_mean for t in THIRDS] == pytest.approx([2, 4, 8])
    assert got["all"].geometric_mean == pytest.approx(4)
    assert got["all"].arithmetic_mean == pytest.approx(14 / 3)
    assert got["all"].n == 3


@pytest.mark.parametrize("n", range(0, 20))
def test_thirds_split_every_rank_once_at_the_paper_s_edges(n):
    parts = thirds(n)
    assert [r for t in THIRDS for r in range(n)[parts[t]]] == list(range(n))
    assert parts["beginning"].stop == n // 3
    assert parts["middle"].stop == (2 * n) // 3


def test_groups_name_the_labels_themselves():
    groups = label_groups(np.array([False, True, True, False, True, True]))
    assert [groups[t].tolist() for t in (*THIRDS, "all")] == [[1], [2], [4, 5], [1, 2, 4, 5]]


def test_empty_group_is_nan_and_counted():
    got = summarise(np.array([[0.3]]), np.array([[0.3]]))
    assert math.isnan(got["beginning"].geometric_mean)
    assert got["beginning"].n == 0
    assert got["end"].geometric_mean == pytest.approx(0.3)


def test_zero_collapses_the_geometric_mean_only():
    assert geometric_mean(np.array([[1.0, 4.0], [0.0, 4.0]])).tolist() == pytest.approx([2, 0])
    got = summarise(np.array([[0.1, 0.1]]), np.array([[0.0, 3.0]]))["all"]
    assert (got.geometric_mean, got.arithmetic_mean) == (0.0, 1.5)


def test_several_untrained_models_enter_by_their_geometric_mean():
    test = np.array([[[1.0], [2.0]], [[9.0], [4.0]]])
    assert reference_baseline(test)["all"].geometric_mean == pytest.approx(2)


def test_bad_metrics_are_refused():
    good = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"at least 0.*r2"):
        summarise(good, -good)
    with pytest.raises(ValueError, match="finite"):
        summarise(good, good * np.inf)
    with pytest.raises(ValueError, match="one shape"):
        summarise(good, np.ones((2, 4)))
    with pytest.raises(ValueError, match="same labels"):
        reference_baseline(np.array([[[1.0, np.nan]], [[1.0, 1.0]]]))
