"""Multiplication against the golden vectors, big integers and counted bits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from helpers import golden
from hypothesis import given
from hypothesis import strategies as st

import qfl_interp as qfl

_GROUPS = golden("multiplication")["groups"]


def bits(value: int, width: int) -> list[int]:
    """Most significant bit first."""
    return [int(c) for c in format(value, f"0{width}b")]


def number(row) -> int:
    """Of bits, most significant first."""
    return int("".join(map(str, row)), 2)


def carries(a: int, b: int, k: int, length: int) -> list[int]:
    """Carry into column k + r as the k-th partial product is added, straight from the definition."""
    before = sum((a << i) for i in range(k - 1) if b >> i & 1)
    added = (a << (k - 1)) if b >> (k - 1) & 1 else 0
    moduli = [1 << (k + r) for r in range(length)]
    return [int(before % m + added % m >= m) for m in moduli]


def check_against_integers(task, examples, ks):
    length = task.length
    tokens = task.encode(examples).tokens.tolist()
    found = {k: task.features[f"carry_{k}"].labels(examples).tolist() for k in ks}
    for i, row in enumerate(examples):
        a, b = number(row[:length]), number(row[length:])
        assert tokens[i][2 * length + 2 : -1] == bits(a * b, 2 * length)[::-1]
        for k in ks:
            assert found[k][i] == carries(a, b, k, length), (a, b, k)


@pytest.mark.parametrize("group", _GROUPS, ids=lambda g: f"{g['kind']}-{g['length']}")
def test_golden(group):
    length = group["length"]
    task = qfl.load_task("multiplication", length=length)
    examples = np.array([e["input"] for e in group["examples"]])
    batch = task.encode(examples)
    assert batch.tokens.tolist() == [e["ids"] for e in group["examples"]]
    assert batch.loss_mask.tolist() == [[bool(m) for m in e["loss_mask"]] for e in group["examples"]]
    assert ["".join(task.str_tokens(row)) for row in batch.tokens] == [e["text"] for e in group["examples"]]
    assert task.n_ctx == group["sequence_tokens"]
    # The reference's plain `carry` is read at the wrong place; ours is that of the last addition.
    keys = {"first_operand": "retrieve_first_op", "carry": f"carry_{length}"}
    keys |= {f"carry_{k}": f"carry_{k}" for k in range(2, length + 1)}
    assert set(keys) == set(task.features)
    for name, key in keys.items():
        expected = [e["features"][key] for e in group["examples"]]
        assert task.features[name].labels(examples).tolist() == [e["labels"] for e in expected], name
        assert task.features[name].positions(examples).tolist() == [e["token_index"] for e in expected], name
    np.testing.assert_array_equal(task.decode(batch.tokens), examples)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_all_small_products(length):
    task = qfl.load_task("multiplication", length=length)
    every = np.array([bits(a, length) + bits(b, length) for a, b in itertools.product(range(2**length), repeat=2)])
    check_against_integers(task, every, range(2, length + 1))


def test_random_products_at_the_paper_length():
    task = qfl.load_task("multiplication")
    assert task.length == 16
    check_against_integers(task, task.sample(np.random.default_rng(0), 10_000), (2, 3, 9, 15, 16))


@pytest.mark.slow
@pytest.mark.parametrize("length", [5, 15, 17, 31, 32, 33, 48, 64, 65, 127, 256])
def test_products_of_any_length(length):
    task = qfl.load_task("multiplication", length=length)
    examples = task.sample(np.random.default_rng(length), 40)
    extreme = np.array([bits(a, length) + bits(b, length) for a in (0, 1, 2**length - 1) for b in (a, 2**length - 1)])
    ks = {2, length // 2 + 1, min(17, length), length - 1, length}
    check_against_integers(task, np.concatenate([examples, extreme.astype(np.uint8)]), sorted(ks))


def test_which_features_are_default_and_where_they_are_read():
    task = qfl.load_task("multiplication", length=5)
    assert list(task.features) == ["first_operand", "carry", "carry_2", "carry_3", "carry_4", "carry_5"]
    default = [name for name, feature in task.features.items() if feature.by_default]
    assert default == ["first_operand", "carry", "carry_2"]
    one = task.sample(np.random.default_rng(0), 1)
    # `=` at 11: the first operand from there on, carry_k from k tokens later.
    for name, first in {"first_operand": 11, "carry": 16, "carry_2": 13, "carry_4": 15, "carry_5": 16}.items():
        assert task.features[name].positions(one).tolist() == [list(range(first, first + 5))], name


def test_a_carry_is_what_the_product_bit_needs():
    """The last addition: product bit L + r is the exclusive or of its column's two bits and carry label r."""
    task = qfl.load_task("multiplication", length=16)
    examples = task.sample(np.random.default_rng(3), 500)
    tokens = task.encode(examples).tokens.numpy()
    carry, first = task.features["carry"], int(task.features["carry"].positions(examples[:1])[0, 0])
    labels = carry.labels(examples)
    for row, token_row, label_row in zip(examples, tokens, labels, strict=True):
        a, b = number(row[:16]), number(row[16:])
        before, added = a * (b % 2**15), a * (b & 2**15)
        for r in range(16):
            predicted = token_row[first + r + 1]
            assert predicted == (before >> (16 + r) & 1) ^ (added >> (16 + r) & 1) ^ label_row[r]


@pytest.mark.slow
@given(length=st.integers(2, 40), data=st.data())
def test_swapped_operands_are_the_same_problem(length, data):
    task = qfl.load_task("multiplication", length=length)
    a, b, c = (data.draw(st.integers(0, 2**length - 1)) for _ in range(3))
    ab, ba, ac = (np.array([bits(x, length) + bits(y, length)]) for x, y in [(a, b), (b, a), (a, c)])
    np.testing.assert_array_equal(task.canonical(ab), task.canonical(ba))
    answers = [task.encode(x).tokens[0, 2 * length + 1 :].tolist() for x in (ab, ba)]
    assert answers[0] == answers[1]
    assert (task.canonical(ab) != task.canonical(ac)).any() == (sorted((a, b)) != sorted((a, c)))


def test_other_problems_mostly_differ():
    task = qfl.load_task("multiplication", length=70)
    examples = task.sample(np.random.default_rng(0), 500)
    assert len(np.unique(task.canonical(examples), axis=0)) == 500


@pytest.mark.parametrize("label", [0, 1, 8, 15])
@pytest.mark.parametrize("feature", ["first_operand", "carry", "carry_2", "carry_9", "carry_16"])
def test_pairs_differ_in_the_label_and_in_one_bit(feature, label):
    task = qfl.load_task("multiplication", length=16)
    pairs = task.sample_pairs(np.random.default_rng(1), 300, feature, label)
    found = task.features[feature]
    before, after = found.labels(pairs.clean)[:, label], found.labels(pairs.corrupted)[:, label]
    assert (before != after).all()
    assert 0.35 < before.mean() < 0.65, "the clean value is 0 or 1 about equally often"
    changed = (pairs.clean != pairs.corrupted).astype(int)
    assert (changed.sum(axis=1) == 1).all()
    k = {"carry": 16}.get(feature) or int(feature.split("_")[1]) if feature != "first_operand" else None
    allowed = [15 - label] if k is None else [31 - bit for bit in range(k)]
    assert set(np.flatnonzero(changed.any(axis=0))) <= set(allowed)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_every_label_of_every_feature_has_pairs(length):
    task = qfl.load_task("multiplication", length=length)
    for name, feature in task.features.items():
        for label in range(length):
            pairs = task.sample_pairs(np.random.default_rng(label), 20, name, label)
            labels = [feature.labels(side)[:, label] for side in pairs]
            assert (labels[0] != labels[1]).all(), (name, label)
            assert pairs.clean.shape == (20, 2 * length)


def test_pairs_of_a_carry_flip_any_bit_that_can_change_it():
    task = qfl.load_task("multiplication", length=8)
    pairs = task.sample_pairs(np.random.default_rng(0), 400, "carry_5", 4)
    # Bits of b below the lowest move the sum by too little: here k + label - L = 1.
    flipped = np.flatnonzero((pairs.clean != pairs.corrupted).any(axis=0))
    assert set(flipped) == {15 - bit for bit in range(1, 5)}


def test_pairs_are_found_at_the_largest_length():
    task = qfl.load_task("multiplication", length=256)
    for label in (0, 255):
        pairs = task.sample_pairs(np.random.default_rng(0), 30, "carry", label)
        labels = [task.features["carry"].labels(side)[:, label] for side in pairs]
        assert (labels[0] != labels[1]).all()


def test_sampling_is_uniform():
    task = qfl.load_task("multiplication", length=2)
    counts = np.bincount(task.sample(np.random.default_rng(0), 16_000) @ [8, 4, 2, 1], minlength=16)
    assert ((counts - 1000) ** 2 / 1000).sum() < 37.7, "the 0.999 quantile with 15 degrees of freedom"


def test_the_two_halves_of_a_draw_are_independent():
    """The reference's second half of a draw holds the negatives of the first at L >= 32."""
    first, second = np.split(qfl.load_task("multiplication", length=32).sample(np.random.default_rng(0), 2000), 2)
    # 64,000 comparisons, s.d. 0.002.
    assert (first == second).mean() == pytest.approx(0.5, abs=0.008)


def entropy(p: float) -> float:
    return 0.0 if p in (0, 1) else -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("length", [2, 4, 7])
def test_base_rate_against_all_products(length):
    task = qfl.load_task("multiplication", length=length)
    products = [a * b for a, b in itertools.product(range(2**length), repeat=2)]
    shares = [sum(p >> j & 1 for p in products) / len(products) for j in range(2 * length)]
    expected = sum(map(entropy, shares)) / (2 * length + 1)
    # 32,768 examples: the entropy of one token has an s.d. of at most 0.004, their mean of less.
    assert task.baselines["base_rate"] == pytest.approx(expected, abs=0.005)
    assert task.baselines["paper"] == pytest.approx(0.6524, abs=5e-5)


def test_low_product_bits_have_their_closed_form():
    """Bit j < L is 0 if a has more than j trailing zeros, otherwise a fair coin."""
    task = qfl.load_task("multiplication", length=16)
    n = 40_000
    shares = task.encode(task.sample(np.random.default_rng(0), n)).tokens[:, 34:50].double().mean(dim=0)
    expected = [(1 - 2.0 ** -(j + 1)) / 2 for j in range(16)]
    assert shares.tolist() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(n))


@pytest.mark.parametrize("length", [1, 257, True])
def test_length_out_of_range(length):
    with pytest.raises(ValueError, match=r"length of task 'multiplication' must be an integer in \[2, 256\]"):
        qfl.load_task("multiplication", length=length)


def test_bad_examples_and_prompts():
    task = qfl.load_task("multiplication", length=3)
    with pytest.raises(ValueError, match=r"rows of 6 bits, got shape \(1, 6\) with values in \[0, 2\]"):
        task.encode(np.array([[0, 1, 2, 0, 1, 1]]))
    with pytest.raises(ValueError, match=r"rows of 6 bits, got shape \(1, 6\) with values in \[-1, 1\]"):
        task.encode(np.array([[0, 1, -1, 0, 1, 1]]))
    with pytest.raises(ValueError, match=r"rows of 6 bits, got shape \(1, 4\)"):
        task.encode(np.array([[0, 1, 0, 1]]))
    tokens = task.encode(np.array([[0, 1, 1, 0, 1, 1]])).tokens
    tokens[0, 7] = 2
    with pytest.raises(ValueError, match=r"row 0 holds the ids \[1, 1, 0, 2, 1, 1, 0, 2\]"):
        task.decode(tokens)
    with pytest.raises(ValueError, match=r"label of carry_2 must lie in \[0, 3\), got -1"):
        task.sample_pairs(np.random.default_rng(0), 1, "carry_2", -1)
    with pytest.raises(qfl.QflError, match="carry_3"):
        task.sample_pairs(np.random.default_rng(0), 1, "carry_4", 0)


def test_no_examples():
    task = qfl.load_task("multiplication", length=9)
    none = task.sample(np.random.default_rng(0), 0)
    assert none.shape == (0, 18)
    batch = task.encode(none)
    assert batch.tokens.shape == batch.loss_mask.shape == (0, 39)
    assert task.decode(batch.tokens).shape == (0, 18)
    assert len(task.canonical(none)) == 0
    for name, feature in task.features.items():
        assert feature.labels(none).shape == feature.positions(none).shape == (0, 9)
        assert task.sample_pairs(np.random.default_rng(0), 0, name, 3).clean.shape == (0, 18)
