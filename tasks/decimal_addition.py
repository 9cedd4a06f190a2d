"""Decimal addition: two L-digit numbers to their (L + 1)-digit sum, most significant digit first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt64

from qfl_interp.data.task import MOST_PROBLEMS, Batch, Feature, Pairs, Task
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._layout import FREE, check_rows, checked_prompt, feature_at, scored_from
from qfl_interp.tasks._pairs import check_label, pairs_by_edit

_TOKENS = (*"0123456789", "+", "=")
_PLUS, _EQUALS = 10, 11


class _Sum(NamedTuple):
    """Digits of the sum and the carry out of every place, most significant first, one row a place."""

    digits: UInt8[np.ndarray, "sum_place batch"]
    carries: UInt8[np.ndarray, "place batch"]


def _operands(examples: Examples) -> tuple[UInt8[np.ndarray, "place batch"], UInt8[np.ndarray, "place batch"]]:
    """Both operands, most significant first, one row a place, so that a carry ripples over whole contiguous rows."""
    columns = np.ascontiguousarray(examples.T, dtype=np.uint8)
    length = len(columns) // 2
    return columns[:length], columns[length:]


def _add(examples: Examples) -> _Sum:
    """Addition by hand, from the ones place up."""
    a, b = _operands(examples)
    length, n = a.shape
    digits = np.empty((length + 1, n), dtype=np.uint8)
    carries = np.empty((length, n), dtype=np.uint8)
    carry = np.zeros(n, dtype=np.uint8)
    for i in reversed(range(length)):
        total = a[i] + b[i] + carry
        carry = np.greater_equal(total, 10, out=carries[i])
        np.subtract(total, 10 * carry, out=digits[i + 1])
    digits[0] = carry
    return _Sum(digits, carries)


class DecimalAddition(Task):
    """`a + b` on L-digit operands, the arithmetic setting of Hidden Breakthroughs in Language Model Training (POLCA).

    A raw example is 2L digits: operand a, then operand b, each most significant digit first. Its tokens are the digits
    of a, `+`, the digits of b, `=`, the L + 1 digits of the sum, leading zero kept: digit i of a (from the left) at
    index i, of b at L + 1 + i, `=` at 2L + 1, answer digit j at 2L + 2 + j. For L = 3, 57 + 968 reads `057+968=1025`.
    There is no `<EOS>`: the answer's length is fixed. `=` is scored too; it is certain, so the loss over the answer
    alone is the literature's.

    Features:
        carry: label j is whether the places below carry into answer digit j, j = 0 (the most significant) .. L - 1,
            read at 2L + 1 + j, the position that predicts answer digit j. Nothing carries into the ones. Carry 0 *is*
            answer digit 0, the very next token, so it is loud by construction.
        digit_sum: label j is (a_j + b_j) mod 10, what answer digit j + 1 would be without a carry, j = 0 .. L - 1,
            read at 2L + 2 + j, the position that predicts answer digit j + 1. The last one is the ones digit itself.
            Not looked at by default.
        digit: label j is answer digit j itself, j = 0 .. L, read at 2L + 1 + j, where it is predicted: the loudest
            quantity there can be, a control. Not looked at by default.

    Operands are drawn independently and uniformly from 0 .. 10^L - 1. Swapped operands share a split.

    References:
        arXiv 2506.15872, section 4.

    Example:
        >>> task = DecimalAddition(length=3)
        >>> examples = np.array([[0, 5, 7, 9, 6, 8]])  # 57 + 968
        >>> "".join(task.str_tokens(task.encode(examples).tokens[0]))
        '057+968=1025'
        >>> task.features["carry"].labels(examples).tolist()
        [[1, 1, 1]]
        >>> task.features["digit_sum"].labels(examples).tolist()
        [[9, 1, 5]]
    """

    name = "decimal_addition"
    vocabulary = _TOKENS
    lengths = (1, 18)
    default_length = 3

    @property
    def n_ctx(self) -> int:
        """3L + 3 tokens: two operands, the sum, `+`, `=`."""
        return 3 * self.length + 3

    @property
    def equals_position(self) -> int:
        """Token index of `=`."""
        return 2 * self.length + 1

    @property
    def baselines(self) -> Mapping[str, float]:
        """The exact entropy of each answer digit; the paper draws no line.

        Every answer digit but the first is uniform; the first is 1 with probability `(1 - 10^-L) / 2`.
        """
        top = (1 - 10.0**-self.length) / 2
        top_entropy = -top * math.log(top) - (1 - top) * math.log1p(-top)
        return {"base_rate": (self.length * math.log(10) + top_entropy) / (self.length + 1)}

    def _features(self) -> Sequence[Feature]:
        """Carries, and two kinds of digits as controls."""
        digits = self.equals_position + np.arange(self.length + 1)
        return [
            feature_at(
                "carry", "binary", digits[:-1], lambda examples: _add(examples).carries.T,
                "whether the places below carry into answer digit j, where that digit is predicted",
            ),
            feature_at(
                "digit_sum", "categorical", digits[1:], _digit_sums,
                "answer digit j + 1 without the carry into it, where that digit is predicted", by_default=False,
            ),
            feature_at(
                "digit", "categorical", digits, lambda examples: _add(examples).digits.T,
                "answer digit j, where it is predicted", by_default=False,
            ),
        ]  # fmt: skip

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` pairs of independent uniform operands, `[n, 2L]` digits."""
        return rng.integers(0, 10, size=(n, 2 * self.length), dtype=np.uint8)

    def problems(self) -> Examples | None:
        """Every pair of operands, up to 3 digits each."""
        n_digits = 2 * self.length
        if 10**n_digits > MOST_PROBLEMS:
            return None
        places = 10 ** np.arange(n_digits - 1, -1, -1)
        return (np.arange(10**n_digits)[:, None] // places % 10).astype(np.uint8)

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not 2L digits.
        """
        width = 2 * self.length
        check_rows(self, examples, width, 9, f"{width} digits in 0..9, operand a then b")
        length, equals = self.length, self.equals_position
        a, b = _operands(examples)
        columns = np.empty((self.n_ctx, len(examples)), dtype=np.uint8)
        columns[:length] = a
        columns[length] = _PLUS
        columns[length + 1 : equals] = b
        columns[equals] = _EQUALS
        columns[equals + 1 :] = _add(examples).digits
        return scored_from(equals, np.ascontiguousarray(columns.T))

    def decode(self, tokens: Tokens) -> Examples:
        """The operands that the prompts hold; what follows `=` is ignored.

        Raises:
            ValueError: A prompt is not L digits, `+`, L digits, `=`.
        """
        length = self.length
        digits = [FREE] * length
        layout = np.array([*digits, _PLUS, *digits, _EQUALS])
        rule = f"{length} digits, '+' (id {_PLUS}), {length} digits, '=' (id {_EQUALS})"
        ids = checked_prompt(self, tokens, layout, 9, rule).astype(np.uint8)
        return np.hstack([ids[:, :length], ids[:, length + 1 : -1]])

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """Both operands as numbers, the smaller first."""
        numbers = [_number(digits) for digits in _operands(examples)]
        return np.sort(np.stack(numbers, axis=1), axis=1)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in one digit of b.

        - carry: digit `label` of b is changed where it alone decides the carry. With it changes that place's own digit
          sum and answer digit, and the answer digit that the carry enters; every other carry and digit stays.
        - digit_sum: digit `label` of b is changed so that no carry changes; the place's answer digit changes with it.
        - digit: as the digit sum of the place; answer digit 0 is carry 0 and changes as that does.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range.
        """
        check_label(self, feature, label)
        if feature == "carry" or (feature == "digit" and label == 0):
            return self._carry_pairs(rng, n, label)
        place = label if feature == "digit_sum" else label - 1
        return pairs_by_edit(self, rng, n, feature, label, lambda r, clean: self._other_digit(r, clean, place))

    def _carries_in(self, examples: Examples, place: int) -> UInt8[np.ndarray, " batch"]:
        """The carry into place `place`, from the left."""
        below = _add(examples).carries
        return below[place + 1] if place + 1 < self.length else np.zeros(len(examples), dtype=np.uint8)

    def _carry_pairs(self, rng: np.random.Generator, n: int, place: int) -> Pairs:
        """Pairs that differ in digit `place` of b and in the carry out of it, and in no other carry.

        With t = a + carry in, a place carries exactly where b >= 10 - t: t is drawn from 1 .. 9 so that b decides. The
        carry must end in the next place, so that there a + b is not 9.
        """
        clean = self.sample(rng, n)
        carry_in = self._carries_in(clean, place)
        t = rng.integers(1, 10, size=n, dtype=np.uint8)
        clean[:, place] = t - carry_in
        if place > 0:
            above = rng.integers(0, 9, size=n, dtype=np.uint8)
            clean[:, self.length + place - 1] = (10 - clean[:, place - 1] + above) % 10
        corrupted = clean.copy()
        clean[:, self.length + place] = rng.integers(0, 10 - t)
        corrupted[:, self.length + place] = rng.integers(10 - t, 10)
        flip = rng.integers(0, 2, size=(n, 1), dtype=np.uint8).astype(bool)
        return Pairs(np.where(flip, corrupted, clean), np.where(flip, clean, corrupted))

    def _other_digit(self, rng: np.random.Generator, clean: Examples, place: int) -> Examples:
        """Digit `place` of b drawn anew among those with the same carry (it may come out the same)."""
        column = self.length + place
        first_to_carry = 10 - (clean[:, place] + self._carries_in(clean, place))
        carries = clean[:, column] >= first_to_carry
        corrupted = clean.copy()
        corrupted[:, column] = rng.integers(np.where(carries, first_to_carry, 0), np.where(carries, 10, first_to_carry))
        return corrupted


def _digit_sums(examples: Examples) -> UInt8[np.ndarray, "batch label"]:
    """Sums of the places modulo 10, most significant first."""
    a, b = _operands(examples)
    return ((a + b) % 10).T


def _number(digits: UInt8[np.ndarray, "place batch"]) -> UInt64[np.ndarray, " batch"]:
    """The numbers with these digits, most significant first; 18 digits fit."""
    number = np.zeros(digits.shape[1], dtype=np.uint64)
    for digit in digits:
        number = number * np.uint64(10) + digit
    return number
