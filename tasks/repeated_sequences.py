"""Repeated sequences: different random tokens, and then the same again; what induction heads are for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from qfl_interp.data.task import Batch, Feature, Pairs, Task
from qfl_interp.data.task_options import TaskOption
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._layout import check_array, feature_at, scored_from
from qfl_interp.tasks._pairs import pairs_by_edit


class RepeatedSequences(Task):
    """Different random tokens that start again after a period of half to all of n, the task's length.

    A sequence has 2 n tokens. The first P are drawn without replacement from `vocab`, P uniformly from ceil(n / 2) to
    n; each later one is the one P places before it. The second half is scored, but for its first token: there each
    token has occurred before, and what followed it then comes next. One layer of attention does not find it: the period
    changes from sequence to sequence, so that no place is always the right one to look at, and what followed a token
    stands at another place than the token. There is no `=` and no `<EOS>`.

    A raw example is the first n + 1 tokens, which decide the others: the first one is among them twice.

    Features:
        next_token: label r is the token that comes after index n + r, read there: the one that followed the earlier
            occurrence, so the answer, loud by construction.
        previous_token: label r is the token at index r, read at r + 1: what the first of the two heads writes.
        seen_before: label r is whether the token at ceil(n / 2) + r is a repeated one, read there.

    Attributes:
        vocab: How many different tokens there are, an option; 0: twice the length.

    References:
        arXiv 2209.11895 (In-context Learning and Induction Heads), where repeated random tokens tell induction heads.

    Example:
        >>> task = RepeatedSequences(length=4)
        >>> batch = task.encode(np.array([[5, 2, 7, 5, 2]]))
        >>> task.str_tokens(batch.tokens[0]), batch.loss_mask[0].int().tolist()
        (['5', '2', '7', '5', '2', '7', '5', '2'], [0, 0, 0, 0, 0, 1, 1, 1])
    """

    name = "repeated_sequences"
    lengths = (4, 1024)
    default_length = 32
    own_options = (
        TaskOption("vocab", "how many different tokens there are; 0 for twice the length", low=0, high=2**16),
    )
    vocab: int = 0

    def __init__(self, length: int | None = None, **options: Any) -> None:
        super().__init__(length, **options)
        n_tokens = self.vocab or 2 * self.length
        if n_tokens <= self.length:
            raise ValueError(
                f"vocab of task {self.name!r} must be above the length {self.length}, got {self.vocab}: the tokens of "
                "a period are all different. Leave it out for twice the length."
            )
        self.vocabulary = tuple(map(str, range(n_tokens)))

    @property
    def n_ctx(self) -> int:
        """Twice the length."""
        return 2 * self.length

    @property
    def shortest(self) -> int:
        """The shortest period, half the length."""
        return (self.length + 1) // 2

    @property
    def baselines(self) -> Mapping[str, float]:
        """One token in all; the papers draw no line."""
        return {"base_rate": math.log(self.d_vocab)}

    def _features(self) -> Sequence[Feature]:
        """The next token and what the two heads that find it need."""
        n, low = self.length, self.shortest
        return [
            feature_at(
                "next_token",
                "categorical",
                np.arange(n, 2 * n - 1),
                lambda x: self._sequences(x)[:, n + 1 :],
                "the token that followed the same token before, which is the answer, at index n + r",
            ),
            feature_at(
                "previous_token",
                "categorical",
                np.arange(1, n + 1),
                lambda x: self._sequences(x)[:, :n],
                "the token before the one at index r + 1, at that one",
            ),
            feature_at(
                "seen_before",
                "binary",
                np.arange(low, n),
                lambda x: (_periods(x)[:, None] <= np.arange(low, n)).astype(np.uint8),
                "whether the token at index ceil(n / 2) + r stood in the sequence before",
            ),
        ]

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` sequences of independent periods and tokens."""
        order = rng.random((n, self.d_vocab)).argsort(axis=1)[:, : self.length]
        return _repeated(order, rng.integers(self.shortest, self.length + 1, size=n), self.length + 1)

    def _sequences(self, examples: Examples) -> Int32[np.ndarray, "batch pos"]:
        """All 2 n tokens."""
        return _repeated(examples, _periods(examples), self.n_ctx)

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not n + 1 tokens, of which the first P are different and then start again.
        """
        check_array(self, examples)
        self._check(examples)
        return scored_from(self.length + 1, self._sequences(examples))._replace(prompt_end=False)

    def _check(self, rows: np.ndarray) -> None:
        """Raise `ValueError` unless each row is a raw example."""
        n, low = self.length, self.shortest
        wrong = f"rows of {self!r} must be {n + 1} tokens in [0, {self.d_vocab}), of which the first {low} to {n} are "
        wrong += "different and then start again"
        if rows.shape[1] != n + 1 or rows.min(initial=0) < 0 or rows.max(initial=0) >= self.d_vocab:
            raise ValueError(f"{wrong}; got shape {rows.shape} of {rows.ravel()[:20].tolist()}.")
        if not len(rows):
            return
        periods = _periods(rows)
        # As many different tokens as the period has: none stands twice within it.
        different = (np.diff(np.sort(rows, axis=1), axis=1) != 0).sum(axis=1) + 1
        bad = (rows != _repeated(rows, periods, n + 1)).any(axis=1) | (periods < low) | (different != periods)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"{wrong}; row {row} holds {rows[row].tolist()}.")

    def decode(self, tokens: Tokens) -> Examples:
        """The first n + 1 tokens; what follows them is ignored.

        Raises:
            ValueError: They are no example of this task.
        """
        rows = tokens[:, : self.length + 1].cpu().numpy()
        self._check(rows)
        return rows.astype(np.int32)

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """The tokens themselves: no two different sequences are the same problem."""
        return examples.astype(np.uint64)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in one token of the period, or in the period.

        - next_token, previous_token: the token that the label is becomes one that the sequence does not have, wherever
          it stands.
        - seen_before: the period is another one; the tokens until the shorter one's end stay.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range.
        """

        def moved(rng: np.random.Generator, clean: Examples) -> Examples:
            periods, width = _periods(clean), self.length + 1
            order = self._prolonged(rng, clean)
            if feature == "seen_before":
                return _repeated(order, rng.integers(self.shortest, width, size=len(clean)), width)
            at = (label + (width if feature == "next_token" else 0)) % periods
            rows = np.arange(len(clean))
            fresh = order.copy()
            fresh[rows, at] = order[rows, periods]
            return _repeated(fresh, periods, width)

        return pairs_by_edit(self, rng, n, feature, label, moved)

    def _prolonged(self, rng: np.random.Generator, examples: Examples) -> Int64[np.ndarray, "batch token"]:
        """All tokens there are: a sequence's in their order, then the others in a random one."""
        places = rng.random((len(examples), self.d_vocab))
        periods = _periods(examples)
        for at in range(int(periods.max(initial=0))):
            rows = np.flatnonzero(at < periods)
            places[rows, examples[rows, at]] = at - self.length
        return places.argsort(axis=1)


def _periods(examples: Examples) -> Int64[np.ndarray, " batch"]:
    """After how many tokens the first one comes again."""
    return (examples[:, 1:] == examples[:, :1]).argmax(axis=1) + 1


def _repeated(tokens: np.ndarray, periods: np.ndarray, width: int) -> Int32[np.ndarray, "batch pos"]:
    """Sequences of this width that start again after their periods."""
    return np.take_along_axis(tokens, np.arange(width) % periods[:, None], axis=1).astype(np.int32)
