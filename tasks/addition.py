"""Binary addition: two L-bit numbers to their (L + 1)-bit sum, least significant bit first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from qfl_interp.data.task import Feature, Pairs
from qfl_interp.shapes import Examples
from qfl_interp.tasks._bits import TwoOperandTask, operands
from qfl_interp.tasks._pairs import check_label


class _Sum(NamedTuple):
    """Sum bits and the carry out of every bit, least significant first, one row a bit."""

    bits: UInt8[np.ndarray, "sum_bit batch"]
    carries: UInt8[np.ndarray, "bit batch"]


def _add(examples: Examples) -> _Sum:
    """Ripple-carry addition of both operands of raw rows."""
    a, b = operands(examples)
    length, n = a.shape
    bits = np.empty((length + 1, n), dtype=np.uint8)
    carries = np.empty((length, n), dtype=np.uint8)
    carry = np.zeros(n, dtype=np.uint8)
    for i in range(length):
        half = a[i] ^ b[i]
        np.bitwise_xor(half, carry, out=bits[i])
        carry = np.bitwise_or(a[i] & b[i], half & carry, out=carries[i])
    bits[length] = carry
    return _Sum(bits, carries)


class Addition(TwoOperandTask):
    """`a + b` on L-bit operands, as in the quiet-features paper.

    A raw example is 2L bits: operand a, then operand b, each most significant bit first. Its tokens are a least
    significant bit first, `+`, b the same way, `=`, the L + 1 bits of the sum least significant first, `<EOS>`:
    bit i of a at index i, of b at L + 1 + i, `=` at 2L + 1, sum bit j at 2L + 2 + j. For L = 6, 50 + 13 = 63 reads
    `010011+101100=1111110<EOS>`.

    Features:
        first_operand: bit r of a, read at 2L + 1 + r, the position that predicts sum bit r.
        carry: the carry out of bit r, read at 2L + 2 + r, the position of sum bit r, which predicts bit r + 1. The
            last carry *is* the last sum bit, the very next token, so it is loud by construction.
        second_operand, and, xor, or: bit r of b and of `a & b`, `a ^ b`, `a | b`, read like first_operand. The paper
            does not probe them, so analyses look at them only by name.

    Operands are drawn independently and uniformly at every length; the reference's negated pairs at L >= 32 are not
    reproduced. Swapped operands share a split.

    References:
        arXiv 2505.03997, addition.

    Example:
        >>> task = Addition(length=2)
        >>> batch = task.encode(np.array([[1, 1, 0, 1]]))  # 3 + 1
        >>> "".join(task.str_tokens(batch.tokens[0]))
        '11+10=001<EOS>'
        >>> task.features["carry"].labels(np.array([[1, 1, 0, 1]])).tolist()
        [[1, 1]]
    """

    name = "addition"
    lengths = (1, 512)

    @property
    def n_answer_bits(self) -> int:
        """L + 1: the sum of two L-bit numbers."""
        return self.length + 1

    @property
    def baselines(self) -> Mapping[str, float]:
        """The paper's line (18/19 ln 2 at every length) and the exact entropy of each answer token on its own.

        Every sum bit but the last is a fair coin; the last is 1 with probability `(2^L - 1) / 2^(L + 1)`; `<EOS>` is
        certain. The paper's line scores 18 of 19 tokens as coins although only the 17 sum bits are.
        """
        top = (1 - 2.0**-self.length) / 2
        top_entropy = -top * math.log(top) - (1 - top) * math.log1p(-top)
        return {
            "paper": 18 / 19 * math.log(2),
            "base_rate": (self.length * math.log(2) + top_entropy) / (self.length + 2),
        }

    def _features(self) -> Sequence[Feature]:
        """Both features the paper probes, then the ones it only defines."""
        where = "where sum bit r is predicted"
        bitwise = {"and": np.bitwise_and, "xor": np.bitwise_xor, "or": np.bitwise_or}
        return [
            self._bit_feature("first_operand", self._first_operand, f"bit r of the first operand, {where}"),
            self._bit_feature(
                "carry", self._carry, "the carry out of bit r, where sum bit r + 1 is predicted", shift=1
            ),
            self._bit_feature(
                "second_operand", self._second_operand, f"bit r of the second operand, {where}", by_default=False
            ),
            *(
                self._bit_feature(name, self._of_both(gate), f"bit r of a {name} b, {where}", by_default=False)
                for name, gate in bitwise.items()
            ),
        ]

    def _of_both(self, gate: np.ufunc) -> Callable[[Examples], UInt8[np.ndarray, "batch label"]]:
        """The labels that a bitwise operation of both operands gives."""
        return lambda examples: gate(self._first_operand(examples), self._second_operand(examples))

    def _answer(self, examples: Examples) -> UInt8[np.ndarray, "batch answer_bit"]:
        """Bits of the sum, least significant first."""
        return _add(examples).bits.T

    def _carry(self, examples: Examples) -> UInt8[np.ndarray, "batch label"]:
        """Carry out of each bit, least significant first."""
        return _add(examples).carries.T

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in one feature's value at bit `label` and in as little else as can be.

        - first_operand, second_operand: the two bits at `label` are swapped where they differ, so both features
          change, and no other feature, no carry and no sum bit does.
        - carry: the bit of b at `label` is flipped where it alone decides the carry out of `label`; a's bits, hence
          first_operand, stay, and the bits above are set so that no other carry follows.
        - xor: the bit of b at `label` is flipped where no carry hangs on it.
        - and, or: the same bit is flipped where that of a is 1 or 0. It may change the carry out of `label`, no other.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is not a bit of the operands.
        """
        check_label(self, feature, label)
        clean = self.sample(rng, n)
        if feature not in ("first_operand", "second_operand"):
            return self._flipped_pairs(rng, clean, feature, label)
        bit_a, bit_b = self.length - 1 - label, 2 * self.length - 1 - label
        clean[:, bit_b] = 1 - clean[:, bit_a]
        corrupted = clean.copy()
        corrupted[:, [bit_a, bit_b]] = clean[:, [bit_b, bit_a]]
        return Pairs(clean, corrupted)

    def _flipped_pairs(self, rng: np.random.Generator, clean: Examples, feature: str, label: int) -> Pairs:
        """Pairs with the same a whose b differs in bit `label`, and every carry equal but perhaps the one out of it.

        The carry out of bit r is the majority of (a_r, b_r, carry in). It hangs on b_r exactly where a_r differs from
        the carry in. The next carry must not follow: bits a and b above are made equal.
        """
        top = self.length - 1
        carries = _add(clean).carries
        carry_in = carries[label - 1] if label else np.zeros(len(clean), dtype=np.uint8)
        clean[:, top - label] = {"carry": 1 - carry_in, "xor": carry_in, "and": 1, "or": 0}[feature]
        if label < top:
            clean[:, 2 * self.length - 2 - label] = clean[:, top - 1 - label]
        corrupted = clean.copy()
        corrupted[:, 2 * self.length - 1 - label] ^= 1
        flip = rng.integers(0, 2, size=(len(clean), 1), dtype=np.uint8).astype(bool)
        return Pairs(np.where(flip, corrupted, clean), np.where(flip, clean, corrupted))
