"""What tasks on pairs of binary numbers share: layout of the operands, canonical form."""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer, UInt8, UInt64

# The vocabulary of every bit task.
BIT_TOKENS = ("0", "1", "+", "=", "<EOS>")
PLUS, EQUALS, EOS = 2, 3, 4


def operands(examples: Integer[np.ndarray, "batch raw"]) -> tuple[UInt8[np.ndarray, "bit batch"], ...]:
    """Both operands of raw rows (each most significant bit first), least significant bit first, one row a bit.

    Bits lie along the first axis so that a carry ripples over whole contiguous rows.
    """
    length = examples.shape[1] // 2
    columns = np.ascontiguousarray(examples.T, dtype=np.uint8)
    return columns[length - 1 :: -1], columns[: length - 1 : -1]


def packed(bits: Integer[np.ndarray, "batch bit"]) -> UInt64[np.ndarray, "batch word"]:
    """Rows of bits (most significant first) as 64-bit words, most significant word first."""
    n, width = bits.shape
    padded = np.zeros((n, -width % 64 + width), dtype=np.uint8)
    padded[:, padded.shape[1] - width :] = bits
    return np.packbits(padded, axis=1).view(">u8").astype(np.uint64)


def unordered_pair(examples: Integer[np.ndarray, "batch raw"]) -> UInt64[np.ndarray, "batch word"]:
    """The two halves of each row, the smaller number first: equal for (a, b) and (b, a)."""
    length = examples.shape[1] // 2
    a, b = packed(examples[:, :length]), packed(examples[:, length:])
    swap = np.zeros(len(a), dtype=bool)
    decided = np.zeros(len(a), dtype=bool)
    for word_a, word_b in zip(a.T, b.T, strict=True):
        swap |= ~decided & (word_a > word_b)
        decided |= word_a != word_b
    return np.where(swap[:, None], np.hstack([b, a]), np.hstack([a, b]))
