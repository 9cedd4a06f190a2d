"""Sequence tasks draw multisets uniformly, in uniformly random order, and tell them apart by counts."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qfl_interp.tasks._sequences import other_integers, packed_counts, shuffled_multisets


def rejected(observed, probability) -> bool:
    """Chi-square at the 0.999 quantile of counts against probabilities that sum to 1."""
    observed, expected = np.asarray(observed, dtype=float), np.sum(observed) * np.asarray(probability)
    assert abs(expected.sum() - observed.sum()) < 1e-6
    assert expected.min() > 5
    return ((observed - expected) ** 2 / expected).sum() > stats.chi2.ppf(0.999, len(observed) - 1)


def row_probability(row, n_values: int) -> float:
    """One over the number of multisets, one over the orders of this one."""
    orders = math.factorial(len(row)) // math.prod(math.factorial(c) for c in Counter(row).values())
    return 1 / math.comb(n_values + len(row) - 1, len(row)) / orders


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high", "n_entries"), [(0, 1, 1), (0, 1, 6), (-1, 1, 4), (1, 4, 3), (-9, 9, 2)])
def test_every_multiset_and_every_order_is_equally_likely(low, high, n_entries):
    rows = shuffled_multisets(np.random.default_rng(n_entries), 60_000, n_entries, low, high)
    assert rows.dtype == np.int8
    found = Counter(map(tuple, rows.tolist()))
    every = list(itertools.product(range(low, high + 1), repeat=n_entries))
    assert set(found) <= set(every)
    assert not rejected([found[row] for row in every], [row_probability(row, high - low + 1) for row in every])
    multisets = list(itertools.combinations_with_replacement(range(low, high + 1), n_entries))
    counts = Counter(tuple(sorted(row)) for row in rows.tolist())
    assert not rejected([counts[m] for m in multisets], [1 / len(multisets)] * len(multisets))


def test_the_chi_square_sees_independent_values():
    rows = np.random.default_rng(0).integers(0, 2, (2000, 6)).tolist()
    found, every = Counter(map(tuple, rows)), list(itertools.product((0, 1), repeat=6))
    assert rejected([found[row] for row in every], [row_probability(row, 2) for row in every])


@pytest.mark.parametrize(("low", "high", "n_entries", "variance"), [(1, 9, 32, 12.963), (-9, 9, 64, 13.243)])
def test_counts_of_a_value_at_paper_length(low, high, n_entries, variance):
    n, n_values = 40_000, high - low + 1
    rows = shuffled_multisets(np.random.default_rng(1), n, n_entries, low, high)
    of_stars_and_bars = [
        math.comb(n_entries - c + n_values - 2, n_values - 2) / math.comb(n_entries + n_values - 1, n_values - 1)
        for c in range(n_entries + 1)
    ]
    rare = next(c for c in range(n_entries + 1) if n * sum(of_stars_and_bars[c:]) < 20)
    probability = [*of_stars_and_bars[:rare], sum(of_stars_and_bars[rare:])]
    for value in range(low, high + 1):
        counts = (rows == value).sum(axis=1)
        squares = (counts - n_entries / n_values) ** 2
        assert abs(squares.mean() - variance) < 4 * squares.std() / math.sqrt(n), "3.2 if drawn independently"
        # One of 28 tests may pass its quantile: the bound is that of all together.
        observed = np.bincount(np.minimum(counts, rare), minlength=rare + 1)
        assert stats.chisquare(observed, n * np.array(probability) / sum(probability)).pvalue > 0.001 / 28


@pytest.mark.slow
@pytest.mark.parametrize("places", [(0, 1), (0, 63), (31, 62), (62, 63)])
def test_any_two_entries_have_the_same_law(places):
    rows = shuffled_multisets(np.random.default_rng(2), 40_000, 64, -9, 9)
    pairs = list(itertools.product(range(-9, 10), repeat=2))
    found = Counter(map(tuple, rows[:, places].tolist()))
    assert not rejected([found[pair] for pair in pairs], [(1 + (a == b)) / (19 * 20) for a, b in pairs])


def test_draws_depend_on_the_generator_alone():
    one, same, other = (shuffled_multisets(np.random.default_rng(s), 50, 8, 1, 9) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert shuffled_multisets(np.random.default_rng(0), 0, 8, 1, 9).shape == (0, 8)


@given(data=st.data(), limits=st.sampled_from([(1, 9), (-9, 9), (0, 1)]), n_entries=st.integers(1, 70))
def test_words_are_equal_for_equal_multisets_only(data, limits, n_entries):
    low, high = limits
    values = st.lists(st.integers(low, high), min_size=n_entries, max_size=n_entries)
    row, other = data.draw(values), data.draw(values)
    # Often one entry alone is different, where the words are most alike.
    other = data.draw(st.sampled_from([other, [other[0], *row[1:]]]))
    permuted = data.draw(st.permutations(row))
    words = packed_counts(np.array([row, permuted, other]), low, high)
    assert words.dtype == np.uint64
    np.testing.assert_array_equal(words[0], words[1])
    assert (words[0] == words[2]).all() == (sorted(row) == sorted(other))


@pytest.mark.parametrize("n_entries", [1, 2, 3, 4, 16, 63, 64, 255, 256, 512])
def test_words_of_equal_entries_hold_the_whole_count(n_entries):
    rows = np.repeat(np.arange(-9, 10)[:, None], n_entries, axis=1)
    one_less = rows.copy()
    one_less[:, 0] = -rows[:, 0] + (rows[:, 0] == 0)
    words = packed_counts(np.vstack([rows, one_less]), -9, 9)
    different = {tuple(sorted(row)) for row in np.vstack([rows, one_less]).tolist()}
    assert len(np.unique(words, axis=0)) == len(different)


def test_a_replaced_integer_is_any_other_one():
    for old in (-9, 0, 9):
        new = other_integers(np.random.default_rng(5), np.full(18_000, old, dtype=np.int8), -9, 9)
        found = Counter(new.tolist())
        others = [value for value in range(-9, 10) if value != old]
        assert set(found) == set(others)
        assert not rejected([found[value] for value in others], [1 / 18] * 18)
