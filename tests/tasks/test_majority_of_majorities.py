"""Majority of majorities against the golden vectors, counting in plain Python and all small inputs."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import golden
from hypothesis import given
from hypothesis import strategies as st

import qfl_interp as qfl

_GROUPS = golden("majority_of_majority")["groups"]
NAME = "majority_of_majorities"


def groups_of(row) -> list[list[int]]:
    """The four groups of a row of bits."""
    size = len(row) // 4
    return [list(row[i : i + size]) for i in range(0, len(row), size)]


def votes_of(row) -> list[int]:
    """More ones than zeros in each group; ties give 0."""
    return [int(group.count(1) > group.count(0)) for group in groups_of(row)]


def check_against_counting(task, examples):
    tokens = task.encode(examples).tokens.tolist()
    majority = task.features["group_majority"].labels(examples).tolist()
    counts = task.features["group_counts"].labels(examples).tolist()
    for i, row in enumerate(examples.tolist()):
        votes = votes_of(row)
        assert tokens[i] == [*row, 3, int(votes.count(1) >= 3), 4]
        assert majority[i] == votes
        assert counts[i] == [sum(group) for group in groups_of(row)]


def all_rows(length: int) -> np.ndarray:
    return np.array(list(itertools.product((0, 1), repeat=2 * length)), dtype=np.uint8)


@pytest.mark.parametrize("group", _GROUPS, ids=lambda g: f"{g['kind']}-{g['length']}")
def test_golden(group):
    task = qfl.load_task(NAME, length=group["length"])
    examples = np.array([e["input"] for e in group["examples"]])
    batch = task.encode(examples)
    assert batch.tokens.tolist() == [e["ids"] for e in group["examples"]]
    assert batch.loss_mask.tolist() == [[bool(m) for m in e["loss_mask"]] for e in group["examples"]]
    assert ["".join(task.str_tokens(row)) for row in batch.tokens] == [e["text"] for e in group["examples"]]
    assert task.n_ctx == group["sequence_tokens"]
    np.testing.assert_array_equal(task.decode(batch.tokens), examples)
    counts, majority = task.features["group_counts"], task.features["group_majority"]
    for i, example in enumerate(group["examples"]):
        one = examples[i : i + 1]
        (four,), (index,) = example["features"]["retrieve_four_majority"].values()
        assert [counts.labels(one)[0].tolist()] == [four]
        assert counts.positions(one)[0].tolist() == [index] * 4
        # The reference has a label for every token but the first; of the groups' last tokens it leaves out the last.
        running = example["features"]["running_sums"]
        expected = dict.fromkeys(range(1, 2 * group["length"]), 0)
        reported = zip(majority.positions(one)[0].tolist()[:3], majority.labels(one)[0].tolist()[:3], strict=True)
        assert dict(zip(running["token_index"], running["labels"], strict=True)) == expected | dict(reported)


@pytest.mark.parametrize("length", [2, 4, 6])
def test_all_small_inputs(length):
    check_against_counting(qfl.load_task(NAME, length=length), all_rows(length))


@pytest.mark.parametrize("length", [10, 16, 30, 32, 34, 64, 510, 512])
def test_random_inputs_of_any_length(length):
    task = qfl.load_task(NAME, length=length)
    check_against_counting(task, task.sample(np.random.default_rng(length), 10_000 if length == 32 else 100))


def test_groups_on_either_side_of_a_tie():
    """All ones (512 bits would overflow a byte), ties, and one more than a tie."""
    for length in (8, 32, 512):
        size = length // 2
        kinds = [[1] * size, [1, 0] * (size // 2), [1] * (size // 2 + 1) + [0] * (size // 2 - 1)]
        rows = [list(itertools.chain(*four)) for four in itertools.product(kinds, repeat=4)]
        check_against_counting(qfl.load_task(NAME, length=length), np.array(rows))


def test_where_features_are_read():
    task = qfl.load_task(NAME, length=6)
    one = task.sample(np.random.default_rng(0), 1)
    assert task.features["group_majority"].positions(one).tolist() == [[2, 5, 8, 11]]
    assert task.features["group_counts"].positions(one).tolist() == [[12] * 4]
    assert [feature.kind for feature in task.features.values()] == ["binary", "scalar"]
    assert all(feature.by_default for feature in task.features.values())


@given(length=st.sampled_from([2, 4, 6, 20, 32, 66]), data=st.data())
def test_swapped_halves_are_the_same_problem(length, data):
    task = qfl.load_task(NAME, length=length)
    x, y, z = (data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length)) for _ in range(3))
    xy, yx, xz = (np.array([first + second]) for first, second in [(x, y), (y, x), (x, z)])
    np.testing.assert_array_equal(task.canonical(xy), task.canonical(yx))
    assert task.encode(xy).tokens[0, -2] == task.encode(yx).tokens[0, -2]
    assert (task.canonical(xy) != task.canonical(xz)).any() == (sorted([x, y]) != sorted([x, z]))


def test_other_problems_mostly_differ():
    examples = qfl.load_task(NAME).sample(np.random.default_rng(0), 1000)
    assert len(np.unique(qfl.load_task(NAME).canonical(examples), axis=0)) == 1000


def test_sampling_is_uniform():
    task = qfl.load_task(NAME, length=2)
    counts = np.bincount(task.sample(np.random.default_rng(0), 16_000) @ [8, 4, 2, 1], minlength=16)
    assert ((counts - 1000) ** 2 / 1000).sum() < 37.7, "the 0.999 quantile with 15 degrees of freedom"


def test_group_counts_are_binomial():
    task = qfl.load_task(NAME)
    n = 40_000
    counts = np.bincount(task.features["group_counts"].labels(task.sample(np.random.default_rng(1), n)).ravel())
    expected = np.array([4 * n * math.comb(16, c) / 2**16 for c in range(17)])
    counts = np.array([counts[:4].sum(), *counts[4:13], counts[13:].sum()])
    expected = np.array([expected[:4].sum(), *expected[4:13], expected[13:].sum()])
    assert ((counts - expected) ** 2 / expected).sum() < 29.6, "the 0.999 quantile with 10 degrees of freedom"


def test_the_two_halves_of_a_draw_are_independent():
    """The reference's second half of a draw holds the negatives of the first at this length."""
    task = qfl.load_task(NAME)
    first, second = np.split(task.sample(np.random.default_rng(0), 2000), 2)
    # 64,000 comparisons, s.d. 0.002.
    assert (first == second).mean() == pytest.approx(0.5, abs=0.008)


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("length", [2, 4, 6, 8])
def test_base_rate_against_all_inputs(length):
    rows = all_rows(length).reshape(-1, 4, length // 2)
    votes = (rows == 1).sum(axis=2) > (rows == 0).sum(axis=2)
    share = float((votes.sum(axis=1) >= 3).mean())
    assert qfl.load_task(NAME, length=length).baselines["base_rate"] == pytest.approx(entropy(share) / 2, rel=1e-12)


@pytest.mark.parametrize("length", [32, 512])
def test_base_rate_of_long_inputs(length):
    size = length // 2
    vote = Fraction(sum(math.comb(size, c) for c in range(size + 1) if 2 * c > size), 2**size)
    share = float(4 * vote**3 * (1 - vote) + vote**4)
    task = qfl.load_task(NAME, length=length)
    assert task.baselines["base_rate"] == pytest.approx(entropy(share) / 2, rel=1e-12)
    answers = task.encode(task.sample(np.random.default_rng(0), 20_000)).tokens[:, -2].double()
    assert float(answers.mean()) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20_000))


def test_published_numbers():
    """The share of 1s and its entropy at L = 32, to the digits published; the paper's line."""
    task = qfl.load_task(NAME)
    assert task.length == 32
    assert task.baselines["base_rate"] == pytest.approx(0.4733 / 2, abs=5e-5)
    assert task.baselines["paper"] == pytest.approx(0.2310, abs=5e-5)


@pytest.mark.parametrize("length", [2, 4, 6, 32])
@pytest.mark.parametrize("label", [0, 3])
@pytest.mark.parametrize("feature", ["group_majority", "group_counts"])
def test_pairs_differ_in_one_bit_of_one_group(feature, label, length):
    task = qfl.load_task(NAME, length=length)
    pairs = task.sample_pairs(np.random.default_rng(2), 300, feature, label)
    changed = (pairs.clean != pairs.corrupted).sum(axis=0)
    size = length // 2
    assert ((pairs.clean != pairs.corrupted).sum(axis=1) == 1).all()
    assert (changed[label * size : (label + 1) * size] > 0).all(), "any bit of the group may be the one"
    found = task.features[feature]
    before, after = found.labels(pairs.clean), found.labels(pairs.corrupted)
    assert (np.flatnonzero((before != after).any(axis=0)) == [label]).all()
    assert (before[:, label] != after[:, label]).all()
    assert 0.4 < (before[:, label] > after[:, label]).mean() < 0.6, "as often up as down"


@pytest.mark.parametrize(("length", "found"), [(0, "0"), (3, "3"), (514, "514"), (True, "True")])
def test_length_out_of_range(length, found):
    rule = rf"length of task '{NAME}' must be an integer in \[2, 512\] and a multiple of 2, got {found}"
    with pytest.raises(ValueError, match=rule):
        qfl.load_task(NAME, length=length)


def test_bad_examples_and_prompts():
    task = qfl.load_task(NAME, length=2)
    with pytest.raises(ValueError, match=r"rows of 4 bits, got shape \(1, 4\) with values in \[0, 2\]"):
        task.encode(np.array([[0, 1, 2, 0]]))
    with pytest.raises(ValueError, match=r"rows of 4 bits, got shape \(1, 2\)"):
        task.encode(np.array([[0, 1]]))
    tokens = task.encode(np.array([[0, 1, 1, 0], [1, 1, 1, 0]])).tokens
    tokens[1, 4] = 1
    with pytest.raises(ValueError, match=r"must be 4 bits, '='; row 1 holds the ids \[1, 1, 1, 0, 1\]"):
        task.decode(tokens)
    with pytest.raises(ValueError, match="5 tokens, got 4"):
        task.decode(tokens[:, :4])
    with pytest.raises(ValueError, match=r"label of group_counts must lie in \[0, 4\), got 4"):
        task.sample_pairs(np.random.default_rng(0), 1, "group_counts", 4)
    with pytest.raises(qfl.QflError, match="group_majority"):
        task.sample_pairs(np.random.default_rng(0), 1, "majority", 0)


def test_no_examples():
    task = qfl.load_task(NAME, length=10)
    none = task.sample(np.random.default_rng(0), 0)
    assert none.shape == (0, 20)
    batch = task.encode(none)
    assert batch.tokens.shape == batch.loss_mask.shape == (0, 23)
    assert task.decode(batch.tokens).shape == (0, 20)
    assert len(task.canonical(none)) == 0
    for name, feature in task.features.items():
        assert feature.labels(none).shape == feature.positions(none).shape == (0, 4)
        assert task.sample_pairs(np.random.default_rng(0), 0, name, 3).clean.shape == (0, 20)
