"""Decimal addition against Python's integers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

import qfl_interp as qfl


def row(a: int, b: int, length: int) -> list[int]:
    """A raw example."""
    return [int(c) for c in f"{a:0{length}d}{b:0{length}d}"]


def rows(pairs, length: int) -> np.ndarray:
    return np.array([row(a, b, length) for a, b in pairs], dtype=np.uint8).reshape(-1, 2 * length)


def check_against_integers(task, pairs) -> None:
    """Tokens, mask, labels and positions of every example, from the numbers and the task's definition alone."""
    length, examples = task.length, rows(pairs, task.length)
    batch = task.encode(examples)
    labels = {name: f.labels(examples).tolist() for name, f in task.features.items()}
    positions = {name: f.positions(examples).tolist() for name, f in task.features.items()}
    for i, (a, b) in enumerate(pairs):
        text = f"{a:0{length}d}+{b:0{length}d}={a + b:0{length + 1}d}"
        assert "".join(task.str_tokens(batch.tokens[i])) == text
        equals = text.index("=")
        assert batch.loss_mask[i].tolist() == [p >= equals for p in range(len(text))]
        # Answer digit j stands for 10 ** (length - j) and is predicted at equals + j.
        places = [10 ** (length - j) for j in range(length + 1)]
        assert labels["carry"][i] == [int(a % p + b % p >= p) for p in places[:-1]]
        assert positions["carry"][i] == [equals + j for j in range(length)]
        assert labels["digit_sum"][i] == [(a // p + b // p) % 10 for p in places[1:]]
        assert positions["digit_sum"][i] == [equals + j for j in range(1, length + 1)]
        assert labels["digit"][i] == [int(c) for c in text[equals + 1 :]]
        assert positions["digit"][i] == [equals + j for j in range(length + 1)]
    np.testing.assert_array_equal(task.decode(batch.tokens), examples)


@pytest.mark.parametrize("length", [1, 2])
def test_all_small_sums(length):
    pairs = list(itertools.product(range(10**length), repeat=2))
    check_against_integers(qfl.load_task("decimal_addition", length), pairs)


@pytest.mark.parametrize(("length", "n"), [(3, 10_000), (18, 500)])
def test_random_sums(length, n):
    task = qfl.load_task("decimal_addition", length)
    drawn = task.sample(np.random.default_rng(length), n)
    numbers = [int("".join(map(str, half))) for half in drawn.reshape(-1, length)]
    check_against_integers(task, list(zip(numbers[::2], numbers[1::2], strict=True)))


def test_the_papers_layout():
    task = qfl.load_task("decimal_addition")
    assert (task.length, task.n_ctx, task.d_vocab) == (3, 12, 12)
    batch = task.encode(rows([(995, 5)], 3))
    assert batch.tokens.tolist() == [[9, 9, 5, 10, 0, 0, 5, 11, 1, 0, 0, 0]]
    assert [name for name, f in task.features.items() if f.by_default] == ["carry"]


@given(length=st.integers(1, 18), data=st.data())
def test_swapped_operands_are_the_same_problem(length, data):
    task = qfl.load_task("decimal_addition", length)
    a, b, c, d = (data.draw(st.integers(0, 10**length - 1)) for _ in range(4))
    words = task.canonical(rows([(a, b), (b, a), (c, d)], length))
    np.testing.assert_array_equal(words[0], words[1])
    assert (words[0] == words[2]).all() == ({a, b} == {c, d})


def test_every_unordered_pair_has_its_own_words():
    task = qfl.load_task("decimal_addition", 2)
    words = task.canonical(rows(itertools.product(range(100), repeat=2), 2))
    assert len(np.unique(words, axis=0)) == 100 * 101 // 2


@pytest.mark.parametrize("length", [1, 2, 3])
def test_carry_pairs_differ_in_one_digit_of_b_and_one_carry(length):
    task = qfl.load_task("decimal_addition", length)
    for label in range(length):
        pairs = task.sample_pairs(np.random.default_rng(label), 2000, "carry", label)
        np.testing.assert_array_equal(
            (pairs.clean != pairs.corrupted).mean(axis=0), np.arange(2 * length) == length + label
        )
        clean, corrupted = (task.features["carry"].labels(x) for x in pairs)
        np.testing.assert_array_equal((clean != corrupted).mean(axis=0), np.arange(length) == label)
        assert 0.45 < clean[:, label].mean() < 0.55, "both values equally often, within 4.4 standard errors"
        digits = [task.features["digit"].labels(x) for x in pairs]
        changed = (digits[0] != digits[1]).mean(axis=0)
        assert not changed[:label].any(), "the carry ends where it enters"
        assert changed[label] == 1
        assert not changed[label + 2 :].any()
        for examples in pairs:
            # Nothing carries into the ones, so that 0 + b never carries there.
            first = 1 if label == length - 1 else 0
            assert np.unique(examples[:, label]).tolist() == list(range(first, 10)), "every digit of a occurs"


@pytest.mark.parametrize(
    ("feature", "label", "place"), [("digit_sum", 0, 0), ("digit_sum", 2, 2), ("digit", 1, 0), ("digit", 3, 2)]
)
def test_digit_pairs_leave_the_carries(feature, label, place):
    task = qfl.load_task("decimal_addition")
    pairs = task.sample_pairs(np.random.default_rng(0), 1000, feature, label)
    assert len(pairs.clean) == 1000
    np.testing.assert_array_equal((pairs.clean != pairs.corrupted).mean(axis=0), np.arange(6) == 3 + place)
    for name, changed in (("carry", np.zeros(3)), ("digit_sum", np.arange(3) == place)):
        clean, corrupted = (task.features[name].labels(x) for x in pairs)
        np.testing.assert_array_equal((clean != corrupted).mean(axis=0), changed)


def test_pairs_of_the_first_answer_digit():
    task = qfl.load_task("decimal_addition")
    pairs = task.sample_pairs(np.random.default_rng(0), 100, "digit", 0)
    clean, corrupted = (task.features["digit"].labels(x)[:, 0] for x in pairs)
    np.testing.assert_array_equal(clean, 1 - corrupted)


def test_sampling_is_uniform():
    examples = qfl.load_task("decimal_addition", 1).sample(np.random.default_rng(0), 50_000)
    counts = np.bincount(examples @ [10, 1], minlength=100)
    assert ((counts - 500) ** 2 / 500).sum() < chi2.ppf(0.999, 99)


@pytest.mark.parametrize("length", [1, 2])
def test_baselines(length):
    """The base rate from the distribution of every answer digit over all problems."""
    task = qfl.load_task("decimal_addition", length)
    sums = [f"{a + b:0{length + 1}d}" for a, b in itertools.product(range(10**length), repeat=2)]
    entropy = 0.0
    for column in zip(*sums, strict=True):
        for digit in set(column):
            share = column.count(digit) / len(column)
            entropy -= share * math.log(share)
    assert task.baselines["base_rate"] == pytest.approx(entropy / (length + 1), rel=1e-12)


def test_no_examples():
    task = qfl.load_task("decimal_addition")
    none = task.sample(np.random.default_rng(0), 0)
    batch = task.encode(none)
    assert batch.tokens.shape == batch.loss_mask.shape == (0, 12)
    assert task.decode(batch.tokens).shape == (0, 6)
    assert task.canonical(none).shape == (0, 2)
    for feature in task.features.values():
        assert feature.labels(none).shape == feature.positions(none).shape == (0, feature.n_labels)
        assert task.sample_pairs(np.random.default_rng(0), 0, feature.name, 0).clean.shape == (0, 6)


def test_bad_examples_and_prompts():
    task = qfl.load_task("decimal_addition", 2)
    with pytest.raises(ValueError, match=r"length of task 'decimal_addition' must be an integer in \[1, 18\], got 19"):
        qfl.load_task("decimal_addition", 19)
    with pytest.raises(ValueError, match=r"rows of 4 digits in 0..9, .* got shape \(1, 4\) with values in \[0, 10\]"):
        task.encode(np.array([[0, 1, 10, 2]]))
    with pytest.raises(ValueError, match=r"got shape \(1, 3\)"):
        task.encode(np.array([[0, 1, 2]]))
    tokens = task.encode(rows([(1, 2), (34, 56)], 2)).tokens
    with pytest.raises(ValueError, match="6 tokens, got 5"):
        task.decode(tokens[:, :5])
    for at, wrong in ((0, 10), (2, 11), (4, -1), (5, 10)):
        bad = tokens.clone()
        bad[1, at] = wrong
        with pytest.raises(ValueError, match=r"2 digits, '\+' \(id 10\), 2 digits, '=' \(id 11\); row 1 holds the ids"):
            task.decode(bad)
    with pytest.raises(ValueError, match=r"label of carry must lie in \[0, 2\), got 2"):
        task.sample_pairs(np.random.default_rng(0), 1, "carry", 2)
    with pytest.raises(qfl.QflError, match="Did you mean 'digit_sum'"):
        task.sample_pairs(np.random.default_rng(0), 1, "digit_sums", 0)
