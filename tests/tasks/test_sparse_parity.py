"""Sparse parity against counting by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

import qfl_interp as qfl
from qfl_interp.data.examples import ExampleStream, held_out


def check_by_counting(task, strings: list[str]) -> None:
    """Tokens, mask, labels and positions of strings of bits, from `relevant` alone."""
    n = task.length
    examples = np.array([[int(c) for c in s] for s in strings], dtype=np.uint8)
    batch = task.encode(examples)
    labels = {name: f.labels(examples).tolist() for name, f in task.features.items()}
    for i, s in enumerate(strings):
        chosen = "".join(s[place] for place in task.relevant)
        assert "".join(task.str_tokens(batch.tokens[i])) == f"{s}={chosen.count('1') % 2}"
        assert labels["relevant_bit"][i] == [int(c) for c in chosen]
        assert labels["partial_parity"][i] == [chosen[:2].count("1") % 2, chosen.count("1") % 2]
    np.testing.assert_array_equal(batch.loss_mask, np.tile(np.arange(n + 2) >= n, (len(strings), 1)))
    for feature in task.features.values():
        np.testing.assert_array_equal(feature.positions(examples), np.full((len(strings), feature.n_labels), n))
    np.testing.assert_array_equal(task.decode(batch.tokens), examples)


@pytest.mark.parametrize("length", [3, 4, 10])
def test_all_small_inputs(length):
    check_by_counting(
        qfl.load_task("sparse_parity", length), ["".join(s) for s in itertools.product("01", repeat=length)]
    )


@pytest.mark.parametrize(("length", "n"), [(40, 10_000), (1024, 50)])
def test_random_inputs(length, n):
    task = qfl.load_task("sparse_parity", length)
    check_by_counting(task, ["".join(map(str, bits)) for bits in task.sample(np.random.default_rng(length), n)])


def test_relevant_places_are_fixed_and_spread():
    """Pinned: another choice would make every run that exists unreadable."""
    assert qfl.load_task("sparse_parity").relevant == (18, 25, 34)
    assert qfl.load_task("sparse_parity", 3).relevant == (0, 1, 2)
    drawn = [qfl.load_task("sparse_parity", n).relevant for n in range(3, 1025)]
    for n, relevant in enumerate(drawn, start=3):
        assert len(set(relevant)) == 3
        assert list(relevant) == sorted(relevant)
        assert 0 <= relevant[0] < relevant[2] < n
    shares = [(place + 0.5) / n for n, relevant in enumerate(drawn, start=3) for place in relevant]
    assert abs(np.mean(shares) - 0.5) < 4 / math.sqrt(12 * len(shares)), "four standard errors of uniform shares"
    assert np.histogram(shares, bins=6, range=(0, 1))[0].min() > len(shares) / 6 * 0.8, "no stretch is avoided"


@given(length=st.integers(3, 200), data=st.data())
def test_only_the_same_bits_are_the_same_problem(length, data):
    task = qfl.load_task("sparse_parity", length)
    one = np.array([data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))])
    other = one.copy()
    other[0, data.draw(st.integers(0, length - 1))] ^= 1
    np.testing.assert_array_equal(task.canonical(one), task.canonical(one.astype(np.uint8)))
    assert (task.canonical(one) != task.canonical(other)).any()


def test_pairs_of_one_bit_flip_it_and_the_parities_with_it():
    task = qfl.load_task("sparse_parity")
    for label, parities in ((0, [1, 1]), (1, [1, 1]), (2, [0, 1])):
        pairs = task.sample_pairs(np.random.default_rng(label), 200, "relevant_bit", label)
        np.testing.assert_array_equal(
            (pairs.clean != pairs.corrupted).mean(axis=0), np.arange(40) == task.relevant[label]
        )
        clean, corrupted = (task.features["partial_parity"].labels(x) for x in pairs)
        np.testing.assert_array_equal((clean != corrupted).mean(axis=0), parities)


def test_pairs_of_one_parity_leave_the_other():
    task = qfl.load_task("sparse_parity")
    for label, flipped in ((0, task.relevant[1:]), (1, task.relevant[2:])):
        pairs = task.sample_pairs(np.random.default_rng(label), 200, "partial_parity", label)
        np.testing.assert_array_equal((pairs.clean != pairs.corrupted).mean(axis=0), np.isin(np.arange(40), flipped))
        clean, corrupted = (task.features["partial_parity"].labels(x) for x in pairs)
        np.testing.assert_array_equal((clean != corrupted).mean(axis=0), np.arange(2) == label)


def test_sampling_is_uniform():
    examples = qfl.load_task("sparse_parity", 10).sample(np.random.default_rng(0), 102_400)
    counts = np.bincount(examples @ (1 << np.arange(10)), minlength=1024)
    assert ((counts - 100) ** 2 / 100).sum() < chi2.ppf(0.999, 1023)


def test_baselines():
    """The answer is odd for half of all inputs, so that no constant guess beats a coin."""
    task = qfl.load_task("sparse_parity", 6)
    every = np.array(list(itertools.product((0, 1), repeat=6)))
    odd = task.encode(every).tokens[:, -1].double().mean().item()
    assert task.baselines["base_rate"] == pytest.approx(-math.log(odd), rel=1e-12)


def test_fresh_bits_at_every_step_and_none_held_out():
    task = qfl.load_task("sparse_parity")
    stream = ExampleStream(task, seed=0, batch_size=2000)
    trained = np.concatenate([stream.examples(step) for step in range(5)])
    assert len(np.unique(trained, axis=0)) == 10_000
    tested = held_out(task, "test", 2000, seed=0, stream="test")
    assert len(np.unique(np.concatenate([trained, tested]), axis=0)) == 12_000


def test_no_examples():
    task = qfl.load_task("sparse_parity")
    none = task.sample(np.random.default_rng(0), 0)
    batch = task.encode(none)
    assert batch.tokens.shape == batch.loss_mask.shape == (0, 42)
    assert task.decode(batch.tokens).shape == (0, 40)
    assert task.canonical(none).shape == (0, 1)
    for feature in task.features.values():
        assert feature.labels(none).shape == feature.positions(none).shape == (0, feature.n_labels)


def test_bad_examples_and_prompts():
    task = qfl.load_task("sparse_parity", 4)
    with pytest.raises(ValueError, match=r"length of task 'sparse_parity' must be an integer in \[3, 1024\], got 2"):
        qfl.load_task("sparse_parity", 2)
    with pytest.raises(ValueError, match=r"must be rows of 4 bits, got shape \(1, 4\) with values in \[0, 2\]"):
        task.encode(np.array([[0, 1, 2, 0]]))
    with pytest.raises(ValueError, match=r"must be rows of 4 bits, got shape \(1, 5\)"):
        task.encode(np.array([[0, 1, 1, 0, 1]]))
    tokens = task.encode(np.array([[0, 0, 0, 0], [0, 1, 1, 0]])).tokens
    with pytest.raises(ValueError, match="5 tokens, got 4"):
        task.decode(tokens[:, :4])
    for at, wrong in ((0, 2), (3, -1), (4, 1)):
        bad = tokens.clone()
        bad[1, at] = wrong
        with pytest.raises(ValueError, match=r"must be 4 bits, '='; row 1 holds the ids"):
            task.decode(bad)
    with pytest.raises(ValueError, match=r"label of partial_parity must lie in \[0, 2\), got 2"):
        task.sample_pairs(np.random.default_rng(0), 1, "partial_parity", 2)
