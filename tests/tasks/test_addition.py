"""Addition against the golden vectors, big integers and hand-made cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from helpers import check_golden, golden
from hypothesis import given
from hypothesis import strategies as st

import qfl_interp as qfl

_GROUPS = golden("addition")["groups"]
_KEYS = {
    "retrieve_first_op": "first_operand",
    "carry": "carry",
    "retrieve_second_op": "second_operand",
    "and": "and",
    "xor": "xor",
    "or": "or",
}


def bits(value: int, width: int) -> list[int]:
    """Most significant bit first."""
    return [int(c) for c in format(value, f"0{width}b")]


@pytest.mark.parametrize("group", _GROUPS, ids=lambda g: f"{g['kind']}-{g['length']}")
def test_golden(group):
    task = qfl.load_task("addition", length=group["length"])
    check_golden(task, group, _KEYS)


def test_spec_example():
    task = qfl.load_task("addition", length=6)
    batch = task.encode(np.array([bits(50, 6) + bits(13, 6)]))
    assert "".join(task.str_tokens(batch.tokens[0])) == "010011+101100=1111110<EOS>"


def read_sum(task, tokens) -> int:
    """The number after `=`."""
    answer = tokens[2 * task.length + 2 : -1]
    return sum(int(bit) << i for i, bit in enumerate(answer))


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_all_small_sums(length):
    task = qfl.load_task("addition", length=length)
    numbers = list(itertools.product(range(2**length), repeat=2))
    batch = task.encode(np.array([bits(a, length) + bits(b, length) for a, b in numbers]))
    assert [read_sum(task, row) for row in batch.tokens.tolist()] == [a + b for a, b in numbers]


@pytest.mark.parametrize("length", [16, 63, 64, 65, 512])
def test_random_sums_and_carries_of_any_length(length):
    task = qfl.load_task("addition", length=length)
    examples = task.sample(np.random.default_rng(length), 10_000 if length == 16 else 50)
    tokens = task.encode(examples).tokens.tolist()
    carries = task.features["carry"].labels(examples)
    for row, token_row, carry_row in zip(examples, tokens, carries, strict=True):
        a, b = (int("".join(map(str, half)), 2) for half in (row[:length], row[length:]))
        assert read_sum(task, token_row) == a + b
        for r in (0, length // 2, length - 1):
            low = (1 << (r + 1)) - 1
            assert carry_row[r] == ((a & low) + (b & low)) >> (r + 1)


@pytest.mark.slow
@given(length=st.integers(1, 40), data=st.data())
def test_swapped_operands_are_the_same_problem(length, data):
    task = qfl.load_task("addition", length=length)
    a, b = (data.draw(st.integers(0, 2**length - 1)) for _ in range(2))
    ab, ba = np.array([bits(a, length) + bits(b, length)]), np.array([bits(b, length) + bits(a, length)])
    np.testing.assert_array_equal(task.canonical(ab), task.canonical(ba))
    other = np.array([bits(a, length) + bits(b ^ 1, length)])
    if {a, b} != {a, b ^ 1}:
        assert (task.canonical(ab) != task.canonical(other)).any()


@pytest.mark.parametrize("length", [64, 65, 130])
def test_canonical_of_long_operands(length):
    task = qfl.load_task("addition", length=length)
    examples = task.sample(np.random.default_rng(0), 200)
    swapped = np.hstack([examples[:, length:], examples[:, :length]])
    np.testing.assert_array_equal(task.canonical(examples), task.canonical(swapped))
    assert len(np.unique(task.canonical(examples), axis=0)) == 200


@pytest.mark.parametrize(("feature", "label"), list(itertools.product(["first_operand", "carry"], [0, 1, 9, 15])))
def test_pairs_differ_in_one_feature_value_only(feature, label):
    task = qfl.load_task("addition", length=16)
    pairs = task.sample_pairs(np.random.default_rng(1), 300, feature, label)
    for name, other in task.features.items():
        if not other.by_default:
            continue
        changed = (other.labels(pairs.clean) != other.labels(pairs.corrupted)).sum(axis=0)
        expected = np.zeros(16, dtype=int)
        expected[label] = 300 if name == feature else 0
        np.testing.assert_array_equal(changed, expected)
    clean = task.features[feature].labels(pairs.clean)[:, label]
    assert 0.35 < clean.mean() < 0.65, "the clean value is 0 or 1 about equally often"


def test_sampling_is_uniform():
    task = qfl.load_task("addition", length=2)
    examples = task.sample(np.random.default_rng(0), 16_000)
    counts = np.bincount(examples @ [8, 4, 2, 1], minlength=16)
    chi2 = ((counts - 1000) ** 2 / 1000).sum()
    assert chi2 < 37.7, "the 0.999 quantile with 15 degrees of freedom"


def test_base_rate_is_the_best_constant_guess():
    task = qfl.load_task("addition", length=4)
    every = np.array([bits(a, 4) + bits(b, 4) for a, b in itertools.product(range(16), repeat=2)])
    answers = task.encode(every).tokens[:, 10:].numpy()
    entropy = 0.0
    for column in answers.T:
        share = np.bincount(column) / len(column)
        entropy -= sum(p * math.log(p) for p in share if p > 0)
    assert task.baselines["base_rate"] == pytest.approx(entropy / answers.shape[1], rel=1e-12)
    assert task.baselines["paper"] == pytest.approx(0.6567, abs=5e-5)


@pytest.mark.parametrize("length", [0, -1, 513, True])
def test_length_out_of_range(length):
    with pytest.raises(ValueError, match=r"length of task 'addition' must be an integer in \[1, 512\]"):
        qfl.load_task("addition", length=length)


def test_bad_examples_and_prompts():
    task = qfl.load_task("addition", length=3)
    with pytest.raises(ValueError, match="must be rows of 6 bits"):
        task.encode(np.array([[0, 1, 2, 0, 1, 1]]))
    with pytest.raises(ValueError, match="must be rows of 6 bits"):
        task.encode(np.array([[0, 1, 0, 1]]))
    tokens = task.encode(np.array([[0, 1, 1, 0, 1, 1]])).tokens
    tokens[0, 3] = 0
    with pytest.raises(ValueError, match="prompts of"):
        task.decode(tokens)
    with pytest.raises(ValueError, match=r"label of carry must lie in \[0, 3\)"):
        task.sample_pairs(np.random.default_rng(0), 1, "carry", 3)
    with pytest.raises(ValueError, match=r"3 bits, '\+', 3 bits, '='; row 0 holds the ids \[1, 1, 0, 0, "):
        task.decode(tokens)
    with pytest.raises(ValueError, match="8 tokens, got 5"):
        task.decode(tokens[:, :5])
    with pytest.raises(qfl.QflError, match="no feature of addition"):
        task.sample_pairs(np.random.default_rng(0), 1, "borrow", 0)


@pytest.mark.parametrize("place", [0, 4])
@pytest.mark.parametrize("token", [2, -1])
def test_a_prompt_must_hold_bits(place, token):
    task = qfl.load_task("addition", length=3)
    tokens = task.encode(np.array([[0, 1, 1, 0, 1, 1]])).tokens
    tokens[0, place] = token
    with pytest.raises(ValueError, match="prompts of"):
        task.decode(tokens)


def test_only_the_features_the_paper_probes_are_looked_at_by_default():
    features = qfl.load_task("addition", length=3).features
    assert list(features) == ["first_operand", "carry", "second_operand", "and", "xor", "or"]
    assert [name for name, feature in features.items() if feature.by_default] == ["first_operand", "carry"]


@pytest.mark.parametrize("length", [1, 5, 65])
def test_bitwise_features_against_integers(length):
    task = qfl.load_task("addition", length=length)
    examples = task.sample(np.random.default_rng(length), 100)
    found = {name: task.features[name].labels(examples) for name in ("second_operand", "and", "xor", "or")}
    for i, row in enumerate(examples):
        a, b = (int("".join(map(str, half)), 2) for half in (row[:length], row[length:]))
        for name, value in {"second_operand": b, "and": a & b, "xor": a ^ b, "or": a | b}.items():
            assert found[name][i].tolist() == bits(value, length)[::-1], name


@pytest.mark.parametrize("label", [0, 1, 9, 15])
@pytest.mark.parametrize(
    ("feature", "may_change"),
    [
        ("second_operand", {"first_operand", "second_operand"}),
        ("xor", {"second_operand", "and", "xor", "or"}),
        ("and", {"second_operand", "carry", "and", "xor"}),
        ("or", {"second_operand", "carry", "xor", "or"}),
    ],
)
def test_pairs_of_the_other_features(feature, may_change, label):
    task = qfl.load_task("addition", length=16)
    pairs = task.sample_pairs(np.random.default_rng(1), 300, feature, label)
    for name, other in task.features.items():
        changed = (other.labels(pairs.clean) != other.labels(pairs.corrupted)).sum(axis=0)
        assert changed[label] == 300 if name == feature else changed[label] <= 300 * (name in may_change), name
        assert changed.sum() == changed[label], name
    clean = task.features[feature].labels(pairs.clean)[:, label]
    assert 0.35 < clean.mean() < 0.65, "the clean value is 0 or 1 about equally often"


def test_no_examples():
    task = qfl.load_task("addition", length=9)
    none = task.sample(np.random.default_rng(0), 0)
    assert none.shape == (0, 18)
    assert task.decode(task.encode(none).tokens).shape == (0, 18)
    assert task.canonical(none).shape == (0, 2)
    for name, feature in task.features.items():
        assert feature.labels(none).shape == feature.positions(none).shape == (0, 9)
        assert task.sample_pairs(np.random.default_rng(0), 0, name, 3).clean.shape == (0, 18)
