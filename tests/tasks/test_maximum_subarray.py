"""Maximum subarray against the golden vectors and all segments."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from helpers import check_golden, golden
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import qfl_interp as qfl

_GROUPS = golden("maximum_subarray")["groups"]
_KEYS = {
    "compute_prev_sign": "is_prev_negative",
    "intermediate_sums": "max_ending_here",
    "start_newsubarray": "starts_subarray",
    "running_maxsums": "max_so_far",
    "sign": "is_nonnegative",
    "intermediate_sum_signs": "is_max_ending_here_negative",
}


@pytest.mark.parametrize("group", _GROUPS, ids=lambda g: f"{g['kind']}-{g['length']}")
def test_golden(group):
    task = qfl.load_task("maximum_subarray", length=group["length"])
    assert set(task.features) == set(_KEYS.values())
    check_golden(task, group, _KEYS)


def segment_sums(rows) -> np.ndarray:
    """The sum of values i..j at [row, j, i], minus infinity where i > j."""
    prefix = np.cumsum(np.pad(np.asarray(rows, dtype=float), ((0, 0), (1, 0))), axis=1)
    sums = prefix[:, 1:, None] - prefix[:, None, :-1]
    return np.where(np.tri(sums.shape[1], dtype=bool), sums, -np.inf)


def check_against_all_segments(rows):
    """The answer and every label: of equal sums the segment that ends first, then the one that starts first."""
    rows = np.asarray(rows)
    n, length = rows.shape
    task = qfl.load_task("maximum_subarray", length=length)
    tokens, mask, *_ = task.encode(rows)
    sums = segment_sums(rows)
    for row, token_row, mask_row, flat in zip(
        rows.tolist(), tokens.tolist(), mask.tolist(), sums.reshape(n, -1).argmax(axis=1).tolist(), strict=True
    ):
        last, first = divmod(flat, length)
        answer = [value + 9 for value in row[first : last + 1]]
        line = [value + 9 for value in row] + [19, *answer]
        assert token_row == line + [20] * (2 * length + 2 - len(line))
        assert mask_row == [length <= i <= len(line) for i in range(2 * length + 2)]
    ending = sums.max(axis=2)
    so_far = np.stack([ending[:, : r + 1].max(axis=1) for r in range(length)], axis=1)
    zero, never = np.zeros((n, 1)), np.zeros((n, 1), dtype=bool)
    expected = {
        "is_prev_negative": rows[:, :-1] < 0,
        "max_ending_here": np.hstack([zero, ending[:, 1:]]),
        "starts_subarray": np.hstack([never, ending[:, :-1] < 0]),
        "max_so_far": np.hstack([zero, so_far[:, 1:]]),
        "is_nonnegative": np.hstack([never, rows[:, 1:] >= 0]),
        "is_max_ending_here_negative": ending[:, :-1] < 0,
    }
    for name, labels in expected.items():
        np.testing.assert_array_equal(task.features[name].labels(rows), labels, name)


@pytest.mark.parametrize(
    ("length", "values"), [(2, range(-9, 10)), (3, range(-9, 10)), (4, range(-2, 3)), (7, (-1, 0, 1))]
)
def test_all_small_inputs(length, values):
    check_against_all_segments(list(itertools.product(values, repeat=length)))


@pytest.mark.parametrize(("length", "n"), [(64, 10_000), (512, 30)])
def test_random_inputs(length, n):
    task = qfl.load_task("maximum_subarray", length=length)
    for part in np.array_split(task.sample(np.random.default_rng(length), n), 10):
        check_against_all_segments(part)


def test_sums_of_the_largest_values_do_not_overflow():
    task = qfl.load_task("maximum_subarray", length=512)
    rows = np.full((2, 512), 9)
    rows[1] = -9
    assert task.features["max_ending_here"].labels(rows)[0, -1] == 4608
    assert task.features["max_so_far"].labels(rows)[:, -1].tolist() == [4608, -9]
    check_against_all_segments(rows)


@pytest.mark.slow
@given(data=st.data(), length=st.integers(2, 100))
def test_permuted_rows_are_the_same_problem(data, length):
    task = qfl.load_task("maximum_subarray", length=length)
    row = data.draw(st.lists(st.integers(-9, 9), min_size=length, max_size=length))
    words = task.canonical(np.array([row, data.draw(st.permutations(row)), [-row[0] or 1, *row[1:]]]))
    np.testing.assert_array_equal(words[0], words[1])
    assert (words[0] != words[2]).any()


def test_random_rows_are_different_problems():
    task = qfl.load_task("maximum_subarray", length=64)
    examples = task.sample(np.random.default_rng(0), 5000)
    assert len(np.unique(task.canonical(examples), axis=0)) == 5000


def pair_probabilities() -> dict[tuple[int, int], float]:
    """Of two values: a uniform multiset of 190, in either order."""
    return {(a, b): 1 / 190 if a == b else 1 / 380 for a, b in itertools.product(range(-9, 10), repeat=2)}


def test_sampling_is_uniform_over_multisets():
    task = qfl.load_task("maximum_subarray", length=2)
    examples = task.sample(np.random.default_rng(0), 100_000)
    pairs = pair_probabilities()
    counts = np.bincount((examples.astype(int) + 9) @ [19, 1], minlength=361)
    assert stats.chisquare(counts, 100_000 * np.array(list(pairs.values()))).pvalue > 0.001


def test_baselines():
    task = qfl.load_task("maximum_subarray", length=2)
    shares = [defaultdict(float) for _ in range(3)]
    for (a, b), p in pair_probabilities().items():
        segment = max([(a,), (a, b), (b,)], key=sum)  # on equal sums the first of these: it ends first, or starts first
        for place, token in enumerate([*segment, "<EOS>"]):
            shares[place][token] += p
    nats = -sum(p * math.log(p / sum(share.values())) for share in shares for p in share.values())
    tokens = sum(p for share in shares for p in share.values())
    assert task.baselines["base_rate"] == pytest.approx(nats / tokens, abs=0.01)
    assert task.baselines["paper"] == pytest.approx(2.9957, abs=5e-5)
    assert task.baselines is task.baselines, "measured once"


@pytest.mark.parametrize(("feature", "label"), list(itertools.product(_KEYS.values(), [1, 7, 14])))
def test_pairs_differ_in_one_value_and_the_label(feature, label):
    task = qfl.load_task("maximum_subarray", length=16)
    pairs = task.sample_pairs(np.random.default_rng(1), 300, feature, label)
    found = task.features[feature]
    assert len(pairs.clean) == 300
    assert (found.labels(pairs.clean)[:, label] != found.labels(pairs.corrupted)[:, label]).all()
    clean, corrupted = (task.encode(examples).tokens[:, :17] for examples in pairs)
    assert ((clean != corrupted).sum(dim=1) == 1).all()
    changed = (clean != corrupted).int().argmax(dim=1)
    at = label - 1 if feature == "starts_subarray" else label
    assert (changed <= at if feature == "max_so_far" else changed == at).all()
    if found.kind == "binary":
        assert 0.2 < found.labels(pairs.clean)[:, label].mean() < 0.8, "both values are common among the clean ones"


@pytest.mark.parametrize("feature", _KEYS.values())
def test_pairs_of_the_longest_rows(feature):
    task = qfl.load_task("maximum_subarray", length=512)
    label = task.features[feature].n_labels - 1
    assert len(task.sample_pairs(np.random.default_rng(1), 20, feature, label).clean) == 20


@pytest.mark.parametrize("feature", ["max_ending_here", "starts_subarray", "max_so_far", "is_nonnegative"])
def test_the_constant_label_has_no_pairs(feature):
    task = qfl.load_task("maximum_subarray", length=8)
    with pytest.raises(ValueError, match=f"no change that was tried alters label 0 of {feature}"):
        task.sample_pairs(np.random.default_rng(0), 1, feature, 0)
    with pytest.raises(ValueError, match=rf"label of {feature} must lie in \[0, 8\), got 8"):
        task.sample_pairs(np.random.default_rng(0), 1, feature, 8)


@pytest.mark.parametrize("length", [1, 513])
def test_length_out_of_range(length):
    with pytest.raises(ValueError, match=r"length of task 'maximum_subarray' must be an integer in \[2, 512\]"):
        qfl.load_task("maximum_subarray", length=length)


@pytest.mark.parametrize("row", [[0, 1, 2, 3], [0, 1], [0, 10, 0], [0, 0, -10]])
def test_bad_examples(row):
    task = qfl.load_task("maximum_subarray", length=3)
    with pytest.raises(ValueError, match=r"examples of .* must be rows of 3 integers in \[-9, 9\], got shape"):
        task.encode(np.array([[9, -9, 0, 0][: len(row)], row]))


def test_bad_prompts():
    task = qfl.load_task("maximum_subarray", length=3)
    tokens = task.encode(np.array([[9, -9, 0], [1, 2, 3]])).tokens
    with pytest.raises(ValueError, match=r"'=' \(id 19\) at index 3, got no such token"):
        task.decode(tokens[:, :3])
    wrong = tokens.clone()
    wrong[1, 3] = 20
    with pytest.raises(ValueError, match=r"'=' \(id 19\) at index 3, got \[19, 20\]"):
        task.decode(wrong)
    wrong = tokens.clone()
    wrong[1, 2] = 19
    with pytest.raises(ValueError, match=r"values in prompts .* in \[-9, 9\], got .* row 1 \[1, 2, 10\]"):
        task.decode(wrong)


@pytest.mark.parametrize("length", [2, 64])
def test_no_examples(length):
    task = qfl.load_task("maximum_subarray", length=length)
    none = task.sample(np.random.default_rng(0), 0)
    batch = task.encode(none)
    assert batch.tokens.shape == batch.loss_mask.shape == (0, task.n_ctx)
    assert task.decode(batch.tokens).shape == (0, length)
    assert len(task.canonical(none)) == 0
    for feature in task.features.values():
        assert feature.labels(none).shape == feature.positions(none).shape == (0, feature.n_labels)
    assert len(task.sample_pairs(np.random.default_rng(0), 0, "is_prev_negative", 0).clean) == 0


@pytest.mark.parametrize("shift", [10, 50, -128])
def test_the_split_of_bad_rows_is_refused(shift):
    """The compiled count would write beyond its array."""
    task = qfl.load_task("maximum_subarray", length=4)
    rows = task.sample(np.random.default_rng(0), 5).astype(np.int64) + shift
    with pytest.raises(ValueError, match=r"examples of .* must be rows of \d+ integers in"):
        task.canonical(rows)
