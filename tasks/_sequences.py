"""What tasks on sequences of small integers share: letters, sampling of multisets, canonical form, checks."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import ClassVar, no_type_check

import numpy as np
import torch
from jaxtyping import Int, Int8, Int64, Integer, UInt64

from qfl_interp.data.baselines import measured_base_rate
from qfl_interp.data.task import Batch, Task
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._kernels import kernel
from qfl_interp.tasks._layout import check_array, scored_between

# The vocabulary of every sequence task: 19 letters for 19 small integers.
SEQUENCE_TOKENS = (*"ABCDEFGHIJKLMNOPQRS", "=", "<EOS>")
EQUALS, EOS = 19, 20


def shuffled_multisets(
    rng: np.random.Generator, n: int, n_entries: int, low: int, high: int
) -> Int8[np.ndarray, "batch entry"]:
    """Uniform multisets of `n_entries` integers of [low, high], each row in uniformly random order.

    Drawn as a Polya urn, which needs no shuffle: the urn starts with one ball of each of the N values, and every ball
    drawn goes back with a copy of itself. So entry k, with `c_v` equal values before it, is v with probability
    `(c_v + 1) / (k + N)`. The probability of a whole row of K entries with counts `c_v` is the product of these,
    `prod(c_v!) (N - 1)! / (N + K - 1)!`, the same for each of its `K! / prod(c_v!)` orders; together they have
    `1 / C(N + K - 1, K)`, the same for every multiset.
    """
    rows = np.empty((n, n_entries), dtype=np.int8)
    # The balls: the values, then room for the copies.
    balls = np.pad(np.arange(low, high + 1, dtype=np.int8), (0, n_entries))
    # A uniform of 53 bits times at most a few hundred picks each ball with the same probability up to 1e-15.
    _draw_from_urn(rng.random((n, n_entries)), balls, rows)
    return rows


@kernel
@no_type_check
def _draw_from_urn(picks, balls, rows):
    """One row an urn, all in `balls`, whose last entries are the copies that a row's draws add in their order."""
    n_values = len(balls) - rows.shape[1]
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            ball = balls[int(picks[i, k] * (n_values + k))]
            rows[i, k] = balls[n_values + k] = ball


def packed_counts(examples: Examples, low: int, high: int) -> UInt64[np.ndarray, "batch word"]:
    """How often each value of [low, high] occurs in each row, packed: equal for permuted rows and only for these."""
    bits = examples.shape[1].bit_length()
    word, place = np.divmod(np.arange(high - low + 1), 64 // bits)
    words = np.zeros((len(examples), word[-1] + 1), dtype=np.uint64)
    unit = np.uint64(1) << (bits * place).astype(np.uint64)
    _count(np.ascontiguousarray(examples, dtype=np.int8), low, word, unit, words)
    return words


@kernel
@no_type_check
def _count(rows, low, word, unit, words):
    """Add the unit of each entry's value in that value's word."""
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            value = rows[i, k] - low
            words[i, word[value]] += unit[value]


def as_batch(tokens: Int[np.ndarray, "batch pos"], equals: int, n_answer: Int[np.ndarray, " batch"]) -> Batch:
    """Tokens with `=` at `equals`, then `n_answer` letters, then end-of-sequence tokens, and what of it is scored."""
    last = torch.from_numpy(n_answer + (equals + 1))
    return Batch(torch.from_numpy(tokens), scored_between(torch.full_like(last, equals), last, tokens.shape[1]))


def prompt_letters(task: Task, tokens: Tokens, n_letters: int) -> Int[np.ndarray, "batch letter"]:
    """The ids before `=`; `ValueError` unless it stands at index `n_letters`."""
    ids = tokens[:, : n_letters + 1].cpu().numpy()
    if ids.shape[1] <= n_letters or (ids[:, n_letters] != EQUALS).any():
        found = sorted(set(ids[:, n_letters:].ravel().tolist())) or "no such token"
        raise ValueError(f"prompts of {task!r} must have '=' (id {EQUALS}) at index {n_letters}, got {found}.")
    return ids[:, :n_letters]


def other_integers(
    rng: np.random.Generator, old: Integer[np.ndarray, " n"], low: int, high: int
) -> Integer[np.ndarray, " n"]:
    """Uniform integers of [low, high] that differ from the old ones."""
    n_values = high - low + 1
    return low + (old.astype(np.int64) - low + rng.integers(1, n_values, size=len(old))) % n_values


class SequenceTask(Task):
    """A problem whose raw row is `n_entries` integers of [low, high].

    Rows are uniform over multisets of entries, each in uniformly random order; rows whose entries are permuted share a
    split.
    """

    vocabulary = SEQUENCE_TOKENS
    low: ClassVar[int]
    high: ClassVar[int]
    entries_per_length: ClassVar[int] = 1

    @property
    def n_entries(self) -> int:
        """Integers of a raw row."""
        return self.entries_per_length * self.length

    @functools.cached_property
    def baselines(self) -> Mapping[str, float]:
        """The paper's line (20 equally likely tokens at every length) and the measured base rate."""
        return {"paper": math.log(20), "base_rate": measured_base_rate(self)}

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` uniform multisets of entries, each in uniformly random order."""
        return shuffled_multisets(rng, n, self.n_entries, self.low, self.high)

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """The multiset of all entries."""
        # The kernel that counts would write beyond its array for another value.
        self._check(examples)
        return packed_counts(examples, self.low, self.high)

    def _check(self, rows: Integer[np.ndarray, "batch raw"], what: str = "examples") -> None:
        """Raise `ValueError` unless these are raw rows; `what` names them in the message."""
        check_array(self, rows)
        width, low, high = self.n_entries, self.low, self.high
        fits = rows.shape[1] == width
        if not fits or (rows.size and (rows.min() < low or rows.max() > high)):
            bad = int(((rows < low) | (rows > high)).any(axis=1).argmax()) if fits else 0
            raise ValueError(
                f"{what} of {self!r} must be rows of {width} integers in [{low}, {high}], got shape {rows.shape} with "
                f"row {bad} {rows[bad : bad + 1].ravel().tolist()}. Draw them with sample, or check their layout."
            )

    def _replace(self, rng: np.random.Generator, clean: Examples, column: Int64[np.ndarray, " batch"]) -> Examples:
        """The rows with another entry in each row's column."""
        rows, corrupted = np.arange(len(clean)), clean.copy()
        corrupted[rows, column] = other_integers(rng, clean[rows, column], self.low, self.high)
        return corrupted
