"""Activity selection against the golden vectors, a plain greedy rule and all sets of activities."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from helpers import check_golden, golden
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import qfl_interp as qfl

_GROUPS = golden("activity_selection")["groups"]
_KEYS = {
    "retrieve_start_times": "start_times",
    "running_min": "running_min",
    "update_min": "is_min_updated",
    "is_greater_than_prev": "is_greater_than_prev",
}


@pytest.mark.parametrize("group", _GROUPS, ids=lambda g: f"{g['kind']}-{g['length']}")
def test_golden(group):
    task = qfl.load_task("activity_selection", length=group["length"])
    assert set(task.features) == set(_KEYS.values())
    check_golden(task, group, _KEYS)


def greedy(row) -> list[tuple[int, int]]:
    """(start, end) of the activities taken, by increasing end time, the first in the row first."""
    length = len(row) // 2
    activities = [(row[i], row[i] + row[length + i]) for i in range(length)]
    taken, free = [], 0
    for start, end in sorted(activities, key=lambda activity: activity[1]):
        if start >= free:
            taken.append((start, end))
            free = end
    return taken


def largest_set(row) -> int:
    """The size of the largest set of activities of which no two overlap, over all sets."""
    length = len(row) // 2
    activities = [(row[i], row[i] + row[length + i]) for i in range(length)]
    return max(
        size
        for size in range(length + 1)
        for chosen in itertools.combinations(sorted(activities), size)
        if all(before[1] <= after[0] for before, after in itertools.pairwise(chosen))
    )


def check_against_greedy(rows):
    """Tokens, mask and every label."""
    length = len(rows[0]) // 2
    task = qfl.load_task("activity_selection", length=length)
    examples = np.array(rows)
    tokens, mask = (array.tolist() for array in task.encode(examples)[:2])
    found = {name: feature.labels(examples).tolist() for name, feature in task.features.items()}
    for i, row in enumerate(rows):
        starts, ends = list(row[:length]), [s + d for s, d in zip(row[:length], row[length:], strict=True)]
        line = [*starts, *ends, 19, *(time for activity in greedy(row) for time in activity)]
        assert tokens[i] == line + [20] * (4 * length + 2 - len(line))
        assert mask[i] == [2 * length <= j <= len(line) for j in range(4 * length + 2)]
        assert found["start_times"][i] == starts
        assert found["running_min"][i] == [min(ends[: r + 1]) for r in range(length)]
        assert found["is_min_updated"][i] == [int(r > 0 and ends[r] < min(ends[:r])) for r in range(length)]
        assert found["is_greater_than_prev"][i] == [int(ends[r + 1] > ends[r]) for r in range(length - 1)]


@pytest.mark.parametrize(("length", "values"), [(2, range(1, 10)), (3, (1, 2, 3, 9))])
def test_all_small_inputs(length, values):
    check_against_greedy(list(itertools.product(values, repeat=2 * length)))


@pytest.mark.parametrize(("length", "n"), [(16, 10_000), (256, 50)])
def test_random_inputs(length, n):
    task = qfl.load_task("activity_selection", length=length)
    check_against_greedy(task.sample(np.random.default_rng(length), n).tolist())


def test_no_set_of_activities_is_larger():
    task = qfl.load_task("activity_selection", length=7)
    rows = task.sample(np.random.default_rng(7), 1000)
    rows[::2, 7:] = np.random.default_rng(8).integers(1, 3, (500, 7))  # short ones, of which many fit
    n_scored = task.encode(rows).loss_mask.sum(dim=1).tolist()
    assert [(scored - 2) // 2 for scored in n_scored] == [largest_set(row) for row in rows.tolist()]
    assert max(n_scored) >= 12


def test_as_many_as_can_be_selected():
    task = qfl.load_task("activity_selection", length=9)
    row = [9, 8, 7, 6, 5, 4, 3, 2, 1] + [1] * 9
    tokens = task.encode(np.array([row])).tokens[0, 19:].tolist()
    assert tokens == [time for t in range(1, 10) for time in (t, t + 1)] + [20]


@given(data=st.data(), length=st.integers(2, 40))
def test_permuted_rows_are_the_same_problem(data, length):
    task = qfl.load_task("activity_selection", length=length)
    row = data.draw(st.lists(st.integers(1, 9), min_size=2 * length, max_size=2 * length))
    words = task.canonical(np.array([row, data.draw(st.permutations(row)), [*row[:-1], row[-1] % 9 + 1]]))
    np.testing.assert_array_equal(words[0], words[1])
    assert (words[0] != words[2]).any()


def test_random_rows_are_different_problems():
    task = qfl.load_task("activity_selection", length=16)
    examples = task.sample(np.random.default_rng(0), 1000)
    assert len(np.unique(task.canonical(examples), axis=0)) >= 997, "about 0.007 repeats among 77 million multisets"


def row_probability(row) -> float:
    """One over the number of multisets, one over the orders of this one."""
    orders = math.factorial(len(row)) // math.prod(math.factorial(c) for c in Counter(row).values())
    return 1 / math.comb(8 + len(row), len(row)) / orders


def test_sampling_is_uniform_over_multisets():
    task = qfl.load_task("activity_selection", length=2)
    found = Counter(map(tuple, task.sample(np.random.default_rng(0), 200_000).tolist()))
    rows = list(itertools.product(range(1, 10), repeat=4))
    expected = [200_000 * row_probability(row) for row in rows]
    assert stats.chisquare([found[row] for row in rows], expected).pvalue > 0.001


def test_baselines():
    task = qfl.load_task("activity_selection", length=2)
    shares = [defaultdict(float) for _ in range(5)]
    for row in itertools.product(range(1, 10), repeat=4):
        for place, token in enumerate([*itertools.chain(*greedy(row)), "<EOS>"]):
            shares[place][token] += row_probability(row)
    nats = -sum(p * math.log(p / sum(share.values())) for share in shares for p in share.values())
    tokens = sum(p for share in shares for p in share.values())
    assert task.baselines["base_rate"] == pytest.approx(nats / tokens, abs=0.01)
    assert task.baselines["paper"] == pytest.approx(2.9957, abs=5e-5)
    assert task.baselines is task.baselines, "measured once"


@pytest.mark.parametrize(("feature", "label"), list(itertools.product(_KEYS.values(), [1, 7, 14])))
def test_pairs_differ_in_one_token_and_the_label(feature, label):
    task = qfl.load_task("activity_selection", length=16)
    pairs = task.sample_pairs(np.random.default_rng(1), 300, feature, label)
    found = task.features[feature]
    assert len(pairs.clean) == 300
    assert (found.labels(pairs.clean)[:, label] != found.labels(pairs.corrupted)[:, label]).all()
    clean, corrupted = (task.encode(examples).tokens[:, :33] for examples in pairs)
    assert ((clean != corrupted).sum(dim=1) == 1).all()
    changed = (clean != corrupted).int().argmax(dim=1)
    at = {"start_times": label, "is_min_updated": 16 + label, "is_greater_than_prev": 17 + label}
    assert (changed == at[feature] if feature in at else (changed >= 16) & (changed <= 16 + label)).all()
    if found.kind == "binary":
        assert 0.2 < found.labels(pairs.clean)[:, label].mean() < 0.8, "both values are common among the clean ones"


@pytest.mark.parametrize("feature", _KEYS.values())
def test_pairs_of_the_longest_rows(feature):
    task = qfl.load_task("activity_selection", length=256)
    label = task.features[feature].n_labels - 1
    assert len(task.sample_pairs(np.random.default_rng(1), 20, feature, label).clean) == 20


def test_labels_without_pairs():
    task = qfl.load_task("activity_selection", length=8)
    with pytest.raises(ValueError, match="no change that was tried alters label 0 of is_min_updated"):
        task.sample_pairs(np.random.default_rng(0), 1, "is_min_updated", 0)
    with pytest.raises(ValueError, match=r"label of is_greater_than_prev must lie in \[0, 7\), got 7"):
        task.sample_pairs(np.random.default_rng(0), 1, "is_greater_than_prev", 7)


@pytest.mark.parametrize("length", [1, 257])
def test_length_out_of_range(length):
    with pytest.raises(ValueError, match=r"length of task 'activity_selection' must be an integer in \[2, 256\]"):
        qfl.load_task("activity_selection", length=length)


@pytest.mark.parametrize("row", [[1, 2, 3], [1, 2, 3, 4, 5], [1, 9, 0, 1], [10, 1, 1, 1], [1, 1, 1, -1]])
def test_bad_examples(row):
    task = qfl.load_task("activity_selection", length=2)
    with pytest.raises(ValueError, match=r"examples of .* must be rows of 4 integers in \[1, 9\], got shape"):
        task.encode(np.array([[1] * len(row), row]))


def test_bad_prompts():
    task = qfl.load_task("activity_selection", length=2)
    tokens = task.encode(np.array([[1, 9, 1, 9], [2, 5, 3, 4]])).tokens
    with pytest.raises(ValueError, match=r"'=' \(id 19\) at index 4, got no such token"):
        task.decode(tokens[:, :4])
    for index, token, found in [
        (4, 20, r"'=' \(id 19\) at index 4, got \[19, 20\]"),
        (0, 0, r"start times and durations in prompts .* in \[1, 9\], got .* row 1 \[0, 5, 5, 4\]"),
        (0, 10, r"row 1 \[10, 5, -5, 4\]"),
        (2, 2, r"row 1 \[2, 5, 0, 4\]"),
        (2, 12, r"row 1 \[2, 5, 10, 4\]"),
        (3, 19, r"row 1 \[2, 5, 3, 14\]"),
    ]:
        wrong = tokens.clone()
        wrong[1, index] = token
        with pytest.raises(ValueError, match=found):
            task.decode(wrong)


@pytest.mark.parametrize("length", [2, 16])
def test_no_examples(length):
    task = qfl.load_task("activity_selection", length=length)
    none = task.sample(np.random.default_rng(0), 0)
    batch = task.encode(none)
    assert batch.tokens.shape == batch.loss_mask.shape == (0, task.n_ctx)
    assert task.decode(batch.tokens).shape == (0, 2 * length)
    assert len(task.canonical(none)) == 0
    for feature in task.features.values():
        assert feature.labels(none).shape == feature.positions(none).shape == (0, feature.n_labels)
    assert len(task.sample_pairs(np.random.default_rng(0), 0, "start_times", 0).clean) == 0


@pytest.mark.parametrize("shift", [10, 50, -128])
def test_the_split_of_bad_rows_is_refused(shift):
    """The compiled count would write beyond its array."""
    task = qfl.load_task("activity_selection", length=4)
    rows = task.sample(np.random.default_rng(0), 5).astype(np.int64) + shift
    with pytest.raises(ValueError, match=r"examples of .* must be rows of \d+ integers in"):
        task.canonical(rows)
