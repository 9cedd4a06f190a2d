"""Binary multiplication: two L-bit numbers to their 2L-bit product, least significant bit first."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8, UInt64

from qfl_interp.data.baselines import measured_base_rate
from qfl_interp.data.task import Feature, Pairs
from qfl_interp.shapes import Examples
from qfl_interp.tasks._bits import TwoOperandTask, packed
from qfl_interp.tasks._pairs import check_label, pairs_by_edit

# Base 2^16: a word holds the sum of as many products of two digits as a product of 256-bit numbers adds up.
_DIGIT_BITS = 16
_DIGIT = np.uint64(2**_DIGIT_BITS - 1)


class _Factors(NamedTuple):
    """Both operands in base 2^16, least significant digit first."""

    a: UInt64[np.ndarray, "digit batch"]
    b: UInt64[np.ndarray, "digit batch"]


def _factors(examples: Integer[np.ndarray, "batch raw"]) -> _Factors:
    """Both operands of raw rows."""
    n, width = examples.shape
    digits = packed(examples.reshape(2 * n, width // 2), word_bytes=_DIGIT_BITS // 8)
    first_to_last = np.ascontiguousarray(digits.T[::-1])
    return _Factors(first_to_last[:, ::2], first_to_last[:, 1::2])


def _digits(number: int, n_digits: int) -> UInt64[np.ndarray, "{n_digits} 1"]:
    """One number, of any size, in base 2^16, least significant digit first."""
    return np.array([[number >> (_DIGIT_BITS * i) & int(_DIGIT)] for i in range(n_digits)], dtype=np.uint64)


def _bits(digits: UInt64[np.ndarray, "digit batch"]) -> UInt8[np.ndarray, "batch bit"]:
    """The bits of numbers in base 2^16, least significant first."""
    n_digits, n = digits.shape
    words = np.ascontiguousarray(digits.T, dtype="<u2")
    return np.unpackbits(words.view(np.uint8).reshape(-1), bitorder="little").reshape(n, _DIGIT_BITS * n_digits)


def _carried(sums: UInt64[np.ndarray, "digit batch"]) -> UInt64[np.ndarray, "digit batch"]:
    """What exceeds a digit is carried into the next one, in place."""
    for low, high in itertools.pairwise(sums):
        high += low >> np.uint64(_DIGIT_BITS)
        low &= _DIGIT
    return sums


def _product(
    a: UInt64[np.ndarray, "digit batch"], b: UInt64[np.ndarray, "digit batch"]
) -> UInt64[np.ndarray, "product_digit batch"]:
    """Exact long multiplication; twice as many digits."""
    n_digits, n = a.shape
    sums = np.zeros((2 * n_digits, n), dtype=np.uint64)
    for i, digit in enumerate(a):
        sums[i : i + n_digits] += digit * b
    return _carried(sums)


class Multiplication(TwoOperandTask):
    """`a * b` on L-bit operands, as in the quiet-features paper.

    A raw example is 2L bits: operand a, then operand b, each most significant bit first. Its tokens are a least
    significant bit first, `+` (the separator here too), b the same way, `=`, the 2L bits of the product least
    significant first, `<EOS>`: bit i of a at index i, of b at L + 1 + i, `=` at 2L + 1, product bit j at 2L + 2 + j.
    For L = 6, 9 * 12 = 108 reads `100100+001100=001101100000<EOS>`.

    The product is the sum of L partial products, `a 2^i` for every bit i of b that is 1, added one after the other.

    Features:
        first_operand: bit r of a, read at 2L + 1 + r, the position that predicts product bit r.
        carry_k, k = 2..L: carries of the addition of the k-th partial product (bit k - 1 of b) to the sum of those
            before. Label r is the carry into column k + r, read at 2L + 1 + k + r, the position that predicts product
            bit k + r. All labels are 0 where bit k - 1 of b is 0, in half of the examples. carry_3 and up are looked
            at only by name.
        carry: carry_L, the last addition and the one the paper plots, under the name that the paper gives it. The
            reference's plain `carry` holds the labels of carry_16 at every length and reads them 15 positions too
            early; it is not reproduced.

    Operands are drawn independently and uniformly at every length; the reference's negated pairs at L >= 32 are not
    reproduced. Swapped operands share a split.

    References:
        arXiv 2505.03997, multiplication.

    Example:
        >>> task = Multiplication(length=2)
        >>> batch = task.encode(np.array([[1, 1, 1, 1]]))  # 3 * 3: 3 + 6 has a carry from column 1 and from column 2
        >>> "".join(task.str_tokens(batch.tokens[0]))
        '11+11=1001<EOS>'
        >>> task.features["carry_2"].labels(np.array([[1, 1, 1, 1]])).tolist()
        [[1, 1]]
    """

    name = "multiplication"
    lengths = (2, 256)

    @property
    def n_answer_bits(self) -> int:
        """2L: the product of two L-bit numbers."""
        return 2 * self.length

    @functools.cached_property
    def baselines(self) -> Mapping[str, float]:
        """The paper's line (32/34 ln 2 at every length) and the measured entropy of each answer token on its own."""
        # Measured: the high bits of a product have no simple distribution.
        return {"paper": 32 / 34 * math.log(2), "base_rate": measured_base_rate(self)}

    def _features(self) -> Sequence[Feature]:
        """First operand and the carries of every addition; those the paper looks at within a run are the default."""
        return [
            self._bit_feature(
                "first_operand", self._first_operand, "bit r of the first operand, where product bit r is predicted"
            ),
            self._carry_feature("carry", self.length),
            *(self._carry_feature(f"carry_{k}", k, by_default=k == 2) for k in range(2, self.length + 1)),
        ]

    def _carry_feature(self, name: str, k: int, by_default: bool = True) -> Feature:
        """The carries of adding the k-th partial product."""
        return self._bit_feature(
            name,
            functools.partial(self._carry, k),
            f"the carry into column {k} + r as partial product {k} is added, where product bit {k} + r is predicted",
            shift=k,
            by_default=by_default,
        )

    def _answer(self, examples: Examples) -> UInt8[np.ndarray, "batch answer_bit"]:
        """Bits of the product, least significant first."""
        return _bits(_product(*_factors(examples)))[:, : self.n_answer_bits]

    def _carry(self, k: int, examples: Examples) -> UInt8[np.ndarray, "batch label"]:
        """Carries into columns k, k + 1, ... of `s + p`, the k-th partial product p and the sum s of those before.

        A bit of a sum is the exclusive or of both summands' bits and of the carry into it.
        """
        a, b = _factors(examples)
        top = 1 << (k - 1)
        s, p = (_product(a, b & _digits(mask, len(b))) for mask in (top - 1, top))
        return _bits(s ^ p ^ _carried(s + p))[:, k : k + self.length]

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in one feature's value at `label` and in one bit of one operand.

        - first_operand: the bit of a at `label`.
        - carry and carry_k: one of the lowest k bits of b where that changes the label; a stays, hence first_operand.

        The product changes with it, and so do other carries.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range.
        """
        check_label(self, feature, label)
        if feature == "first_operand":
            clean = self.sample(rng, n)
            corrupted = clean.copy()
            corrupted[:, self.length - 1 - label] ^= 1
            return Pairs(clean, corrupted)
        k = self.length if feature == "carry" else int(feature.removeprefix("carry_"))
        # Lower bits of b move the sum by too little to reach column k + label.
        lowest = max(0, k + label - self.length)

        def flip(rng: np.random.Generator, clean: Examples) -> Examples:
            corrupted = clean.copy()
            bit = rng.integers(lowest, k, size=len(clean))
            corrupted[np.arange(len(clean)), 2 * self.length - 1 - bit] ^= 1
            return corrupted

        return pairs_by_edit(self, rng, n, feature, label, flip)
