"""What tasks on bits share: tokens, checks, packed words, and the layout `a+b=answer` of two binary operands."""

from __future__ import annotations

import abc
from collections.abc import Callable

import numpy as np
from jaxtyping import Integer, UInt8, UInt64

from qfl_interp.data.task import MOST_PROBLEMS, Batch, Feature, Task
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._layout import FREE, check_rows, checked_prompt, feature_at, scored_from

# The vocabulary of every bit task.
BIT_TOKENS = ("0", "1", "+", "=", "<EOS>")
PLUS, EQUALS, EOS = 2, 3, 4


def uniform_bits(rng: np.random.Generator, n: int, width: int) -> UInt8[np.ndarray, "{n} {width}"]:
    """Rows of independent fair bits."""
    drawn = rng.integers(0, 256, size=(n, -(-width // 8)), dtype=np.uint8)
    return np.unpackbits(drawn, axis=1, count=width)


def every_row(width: int) -> UInt8[np.ndarray, "row {width}"] | None:
    """Every row of bits, in the order of the numbers they are; None where they are more than a task lists."""
    if 2**width > MOST_PROBLEMS:
        return None
    numbers = np.arange(2**width, dtype=">u4")[:, None].view(np.uint8)
    return np.ascontiguousarray(np.unpackbits(numbers, axis=1)[:, 32 - width :])


def checked_bits(task: Task, examples: Examples, width: int) -> UInt8[np.ndarray, "batch {width}"]:
    """The examples as bytes; `ValueError` unless they are rows of `width` bits."""
    check_rows(task, examples, width, 1, f"{width} bits")
    return examples.astype(np.uint8, copy=False)


def operands(examples: Integer[np.ndarray, "batch raw"]) -> tuple[UInt8[np.ndarray, "bit batch"], ...]:
    """Both operands of raw rows (each most significant bit first), least significant bit first, one row a bit.

    Bits lie along the first axis so that a carry ripples over whole contiguous rows.
    """
    length = examples.shape[1] // 2
    columns = np.ascontiguousarray(examples.T, dtype=np.uint8)
    return columns[length - 1 :: -1], columns[: length - 1 : -1]


def packed(bits: Integer[np.ndarray, "batch bit"], word_bytes: int = 8) -> UInt64[np.ndarray, "batch word"]:
    """Rows of bits (most significant first) as words of 2, 4 or 8 bytes, most significant word first."""
    n, width = bits.shape
    n_words = -(-width // (8 * word_bytes))
    # Bytes of all rows in one go: row by row, and with zeros before each row, is several times slower.
    padding = 8 * word_bytes * n_words - width
    rows = np.hstack([np.zeros((n, padding), dtype=np.uint8), bits]) if padding else np.ascontiguousarray(bits)
    words = np.packbits(rows.astype(np.uint8, copy=False).reshape(-1)).view(f">u{word_bytes}")
    return words.reshape(n, n_words).astype(np.uint64)


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


class TwoOperandTask(Task):
    """A commutative function of two L-bit numbers.

    A raw example is 2L bits: operand a, then operand b, each most significant bit first. Its tokens are a least
    significant bit first, `+`, b the same way, `=`, the answer's bits least significant first, `<EOS>`: bit i of a at
    index i, of b at L + 1 + i, `=` at 2L + 1, answer bit j at 2L + 2 + j.

    A subclass writes the answer, its features (all read at consecutive tokens, see `_bit_feature`) and its pairs.
    """

    vocabulary = BIT_TOKENS
    default_length = 16

    @property
    @abc.abstractmethod
    def n_answer_bits(self) -> int:
        """Bits of the answer, leading zeros included."""

    @abc.abstractmethod
    def _answer(self, examples: UInt8[np.ndarray, "batch raw"]) -> UInt8[np.ndarray, "batch answer_bit"]:
        """The answer's bits, least significant first."""

    @property
    def n_ctx(self) -> int:
        """Two operands, `+`, `=`, the answer, `<EOS>`."""
        return self.equals_position + self.n_answer_bits + 2

    @property
    def equals_position(self) -> int:
        """Token index of `=`."""
        return 2 * self.length + 1

    def _bit_feature(
        self,
        name: str,
        labels: Callable[[Examples], Integer[np.ndarray, "batch label"]],
        description: str,
        shift: int = 0,
        by_default: bool = True,
    ) -> Feature:
        """A binary feature with L labels; label r is read `shift + r` tokens after `=`."""
        reads = self.equals_position + shift + np.arange(self.length)
        return feature_at(name, "binary", reads, labels, description, by_default=by_default)

    def _first_operand(self, examples: Examples) -> UInt8[np.ndarray, "batch label"]:
        """Bits of a, least significant first."""
        return examples[:, self.length - 1 :: -1].astype(np.uint8)

    def _second_operand(self, examples: Examples) -> UInt8[np.ndarray, "batch label"]:
        """Bits of b, least significant first."""
        return examples[:, : self.length - 1 : -1].astype(np.uint8)

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` pairs of independent uniform operands, `[n, 2L]` bits."""
        return uniform_bits(rng, n, 2 * self.length)

    def problems(self) -> Examples | None:
        """Every pair of operands, up to 10 bits each."""
        return every_row(2 * self.length)

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not 2L bits.
        """
        examples = checked_bits(self, examples, 2 * self.length)
        length, equals = self.length, self.equals_position
        rows = np.empty((len(examples), self.n_ctx), dtype=np.uint8)
        rows[:, :length] = examples[:, length - 1 :: -1]
        rows[:, length] = PLUS
        rows[:, length + 1 : equals] = examples[:, : length - 1 : -1]
        rows[:, equals] = EQUALS
        rows[:, equals + 1 : -1] = self._answer(examples)
        rows[:, -1] = EOS
        return scored_from(equals, rows)

    def decode(self, tokens: Tokens) -> Examples:
        """The operands that the prompts hold; what follows `=` is ignored.

        Raises:
            ValueError: A prompt is not L bits, `+`, L bits, `=`.
        """
        length = self.length
        bits = [FREE] * length
        layout = np.array([*bits, PLUS, *bits, EQUALS])
        prompts = checked_prompt(self, tokens, layout, 1, f"{length} bits, '+', {length} bits, '='").astype(np.uint8)
        return np.hstack([prompts[:, length - 1 :: -1], prompts[:, 2 * length : length : -1]])

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """The unordered pair of operands."""
        return unordered_pair(examples)
