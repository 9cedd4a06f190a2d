"""Binary addition: two L-bit numbers to their (L + 1)-bit sum, least significant bit first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8, UInt64

from qfl_interp.shapes import Examples, Tokens
from qfl_interp.task import Batch, Feature, Pairs, Task
from tasks._bits import BIT_TOKENS, EOS, EQUALS, PLUS, operands, unordered_pair


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


class Addition(Task):
    """`a + b` on L-bit operands, as in the quiet-features paper.

    A raw example is 2L bits: operand a, then operand b, each most significant bit first. Its tokens are a least
    significant bit first, `+`, b the same way, `=`, the L + 1 bits of the sum least significant first, `<EOS>`:
    bit i of a at index i, of b at L + 1 + i, `=` at 2L + 1, sum bit j at 2L + 2 + j. For L = 6, 50 + 13 = 63 reads
    `010011+101100=1111110<EOS>`.

    Features:
        first_operand: bit r of a, read at 2L + 1 + r, the position that predicts sum bit r.
        carry: the carry out of bit r, read at 2L + 2 + r, the position of sum bit r, which predicts bit r + 1. The
            last carry *is* the last sum bit, the very next token, so it is loud by construction.

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
    vocabulary = BIT_TOKENS
    lengths = (1, 512)

    @property
    def n_ctx(self) -> int:
        """3L + 4 tokens: two operands, the sum, `+`, `=`, `<EOS>`."""
        return 3 * self.length + 4

    @property
    def equals_position(self) -> int:
        """Token index of `=`."""
        return 2 * self.length + 1

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
        """Both features the paper probes."""
        return [
            Feature(
                name="first_operand",
                kind="binary",
                n_labels=self.length,
                labels=self._first_operand,
                positions=lambda examples: self._read_positions(examples, self.equals_position),
                description="bit r of the first operand, where sum bit r is predicted",
            ),
            Feature(
                name="carry",
                kind="binary",
                n_labels=self.length,
                labels=self._carry,
                positions=lambda examples: self._read_positions(examples, self.equals_position + 1),
                description="the carry out of bit r, where sum bit r + 1 is predicted",
            ),
        ]

    def _first_operand(self, examples: Examples) -> Integer[np.ndarray, "batch label"]:
        """Bits of a, least significant first."""
        return operands(examples)[0].T.astype(np.int64)

    def _carry(self, examples: Examples) -> Integer[np.ndarray, "batch label"]:
        """Carry out of each bit, least significant first."""
        return _add(examples).carries.T.astype(np.int64)

    def _read_positions(self, examples: Examples, first: int) -> Int[np.ndarray, "batch label"]:
        """Consecutive token indices from `first`, the same for every example."""
        return np.broadcast_to(np.arange(first, first + self.length), (len(examples), self.length))

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` pairs of independent uniform operands, `[n, 2L]` bits."""
        width = 2 * self.length
        packed = rng.integers(0, 256, size=(n, -(-width // 8)), dtype=np.uint8)
        return np.unpackbits(packed, axis=1, count=width)

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not 2L bits.
        """
        if examples.shape[1] != 2 * self.length or (examples.size and (examples.min() < 0 or examples.max() > 1)):
            raise ValueError(
                f"examples of {self!r} must be rows of {2 * self.length} bits, got shape {examples.shape} with values "
                f"in [{examples.min(initial=0)}, {examples.max(initial=0)}]."
            )
        n, length, equals = len(examples), self.length, self.equals_position
        a, b = operands(examples)
        columns = np.empty((self.n_ctx, n), dtype=np.uint8)
        columns[:length] = a
        columns[length] = PLUS
        columns[length + 1 : equals] = b
        columns[equals] = EQUALS
        columns[equals + 1 : -1] = _add(examples).bits
        columns[-1] = EOS
        tokens = torch.from_numpy(np.ascontiguousarray(columns.T)).long()
        scored = torch.arange(self.n_ctx) >= equals
        return Batch(tokens, scored.repeat(n, 1))

    def decode(self, tokens: Tokens) -> Examples:
        """The operands that the prompts hold; what follows `=` is ignored.

        Raises:
            ValueError: A prompt is not L bits, `+`, L bits, `=`.
        """
        ids = tokens.cpu().numpy()
        length, equals = self.length, self.equals_position
        a, b = ids[:, :length], ids[:, length + 1 : equals]
        fits = ids.shape[1] > equals and bool((ids[:, length] == PLUS).all() and (ids[:, equals] == EQUALS).all())
        if not fits or ((a > 1) | (a < 0) | (b > 1) | (b < 0)).any():
            raise ValueError(f"prompts of {self!r} must be {length} bits, '+', {length} bits, '='.")
        return np.hstack([a[:, ::-1], b[:, ::-1]]).astype(np.uint8)

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """The unordered pair of operands."""
        return unordered_pair(examples)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in one feature's value at bit `label` and agree in the other's.

        - first_operand: the two bits at `label` are swapped where they differ, so a's bit flips and no sum bit does.
        - carry: the bit of b at `label` is flipped where it alone decides the carry out of `label`; a's bits, hence
          first_operand, stay, and the bits above are set so that no other carry follows.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range.
        """
        self.feature(feature)
        if not 0 <= label < self.length:
            raise ValueError(f"label of {feature} must lie in [0, {self.length}), got {label}. Bits count from 0.")
        clean = self.sample(rng, n)
        bit_a, bit_b = self.length - 1 - label, 2 * self.length - 1 - label
        corrupted = clean.copy()
        if feature == "first_operand":
            corrupted[:, bit_b] = 1 - corrupted[:, bit_a]
            clean[:, bit_b] = corrupted[:, bit_b]
            corrupted[:, [bit_a, bit_b]] = corrupted[:, [bit_b, bit_a]]
            return Pairs(clean, corrupted)
        return self._carry_pairs(rng, clean, label)

    def _carry_pairs(self, rng: np.random.Generator, clean: Examples, label: int) -> Pairs:
        """Pairs with the same a and every carry equal but the one out of `label`.

        The carry out of bit r is the majority of (a_r, b_r, carry in). It hangs on b_r exactly where a_r differs from
        the carry in; there b_r is flipped. The next carry must not follow: bits a and b above are made equal.
        """
        top = self.length - 1
        below = _add(clean).carries
        carry_in = below[label - 1] if label else np.zeros(len(clean), dtype=np.uint8)
        # a_r is set against the carry in, so that b_r alone decides the carry out.
        clean[:, top - label] = 1 - carry_in
        if label < top:
            clean[:, 2 * self.length - 2 - label] = clean[:, top - 1 - label]
        corrupted = clean.copy()
        corrupted[:, 2 * self.length - 1 - label] ^= 1
        flip = rng.integers(0, 2, size=(len(clean), 1), dtype=np.uint8).astype(bool)
        return Pairs(np.where(flip, corrupted, clean), np.where(flip, clean, corrupted))
