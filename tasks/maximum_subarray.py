"""Maximum subarray: the contiguous segment of a sequence of small integers with the largest sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import numpy as np
from jaxtyping import Int16, Integer

from qfl_interp.data.task import Batch, Feature, Pairs
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._kernels import kernel
from qfl_interp.tasks._layout import feature_at
from qfl_interp.tasks._pairs import pairs_by_edit
from qfl_interp.tasks._sequences import EOS, EQUALS, SequenceTask, as_batch, prompt_letters


def _ending_here(examples: Examples) -> Int16[np.ndarray, "batch value"]:
    """The largest sum of a segment that ends at each value: Kadane's scan."""
    sums = np.empty(examples.shape, dtype=np.int16)
    _scan(np.ascontiguousarray(examples, dtype=np.int8), sums)
    return sums


@kernel
@no_type_check
def _scan(rows, sums):
    """A segment starts anew only after a sum below 0."""
    for i in range(rows.shape[0]):
        current = 0
        for r in range(rows.shape[1]):
            current = max(current, 0) + rows[i, r]
            sums[i, r] = current


@kernel
@no_type_check
def _write_best(sums, tokens, n_answer):
    """Copy each row's best segment behind `=`: it ends at the first largest sum, and starts after the last one below 0.

    `n_answer` is filled with the lengths of the segments.
    """
    answer = sums.shape[1] + 1
    for i in range(sums.shape[0]):
        last = 0
        for r in range(1, sums.shape[1]):
            if sums[i, r] > sums[i, last]:
                last = r
        first = last
        while first > 0 and sums[i, first - 1] >= 0:
            first -= 1
        n_answer[i] = last - first + 1
        for k in range(n_answer[i]):
            tokens[i, answer + k] = tokens[i, first + k]


class MaximumSubarray(SequenceTask):
    """The contiguous non-empty segment with the largest sum, as in the quiet-features paper.

    A raw example is L integers in -9..9. Its tokens are the values as letters (`A` = -9, ..., `S` = 9), `=`, the best
    segment in its order, `<EOS>` to the end: value r at index r, `=` at L, the segment from L + 1. For
    3, -4, 5, 6 it reads `MFOP=OP<EOS><EOS><EOS>`.

    Of segments with equal sums the one that ends first wins, and of these the one that starts first. Rows are uniform
    over multisets of values, not over rows: a few values are often frequent. Permuted rows share a split.

    Features, with `current(r)` the largest sum of a segment that ends at value r:
        is_prev_negative: 1 if value r < 0, for r = 0..L-2, read at r + 1, one token after the value.
        max_ending_here: current(r), read at r + 1, where the model has seen value r + 1 already (r = L - 1 at `=`).
        starts_subarray: 1 if current(r - 1) < 0, so that the scan starts anew at r, read at r + 1; not by default.
        max_so_far: the largest of current(0..r), read at r + 1; not by default.
        is_nonnegative: 1 if value r >= 0, read at r + 1; not by default.
        is_max_ending_here_negative: 1 if current(r) < 0, for r = 0..L-2, read at r + 1; not by default.

    Label 0 of max_ending_here, starts_subarray, max_so_far and is_nonnegative is 0 in every example, as in the
    reference, whatever the first value.

    References:
        arXiv 2505.03997, maximum subarray.

    Example:
        >>> task = MaximumSubarray(length=4)
        >>> "".join(task.str_tokens(task.encode(np.array([[3, -4, 5, 6]])).tokens[0]))
        'MFOP=OP<EOS><EOS><EOS>'
        >>> task.features["max_ending_here"].labels(np.array([[3, -4, 5, 6]])).tolist()
        [[0, -1, 5, 11]]
    """

    name = "maximum_subarray"
    low, high = -9, 9
    lengths = (2, 512)
    default_length = 64

    @property
    def n_ctx(self) -> int:
        """2L + 2 tokens: the values, `=`, a segment of at most L values, `<EOS>`."""
        return 2 * self.length + 2

    def _features(self) -> Sequence[Feature]:
        """The two features the paper probes and four it defines."""
        after = 1 + np.arange(self.length)
        return [
            feature_at(
                "is_prev_negative", "binary", after[:-1], lambda examples: (examples[:, :-1] < 0).astype(np.uint8),
                "whether value r is negative, one token later",
            ),
            feature_at(
                "max_ending_here", "scalar", after,
                lambda examples: _without_first(_ending_here(examples)).astype(np.int64),
                "the largest sum of a segment that ends at value r, one token later",
            ),
            feature_at(
                "starts_subarray", "binary", after, self._starts_subarray,
                "whether the scan starts a new segment at value r, one token later", by_default=False,
            ),
            feature_at(
                "max_so_far", "scalar", after,
                lambda examples: _without_first(np.maximum.accumulate(_ending_here(examples), axis=1)).astype(np.int64),
                "the largest sum of a segment among the values up to r, one token later", by_default=False,
            ),
            feature_at(
                "is_nonnegative", "binary", after,
                lambda examples: _without_first((examples >= 0).astype(np.uint8)),
                "whether value r is at least 0, one token later", by_default=False,
            ),
            feature_at(
                "is_max_ending_here_negative", "binary", after[:-1],
                lambda examples: (_ending_here(examples)[:, :-1] < 0).astype(np.uint8),
                "whether the largest sum of a segment that ends at value r is negative, one token later",
                by_default=False,
            ),
        ]  # fmt: skip

    def _starts_subarray(self, examples: Examples) -> Integer[np.ndarray, "batch label"]:
        """1 where the sum before value r is negative."""
        labels = np.zeros(examples.shape, dtype=np.uint8)
        np.less(_ending_here(examples)[:, :-1], 0, out=labels[:, 1:], casting="unsafe")
        return labels

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not L integers in -9..9.
        """
        self._check(examples)
        tokens = np.full((len(examples), self.n_ctx), EOS, dtype=np.int64)
        tokens[:, : self.length] = examples - self.low
        tokens[:, self.length] = EQUALS
        n_answer = np.empty(len(examples), dtype=np.int64)
        _write_best(_ending_here(examples), tokens, n_answer)
        return as_batch(tokens, self.length, n_answer)

    def decode(self, tokens: Tokens) -> Examples:
        """The values that the prompts hold; what follows `=` is ignored.

        Raises:
            ValueError: A prompt is not L letters, `=`.
        """
        values = prompt_letters(self, tokens, self.length) + self.low
        self._check(values, "values in prompts")
        return values.astype(np.int8)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in one value of the prompt, and so in the feature's value at `label`.

        The value at `label` is replaced (for starts_subarray the one before, for max_so_far any up to `label`). Other
        features that hang on that value change with it: later sums, and the answer, may differ.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range, or it is the constant label 0.
        """

        def edit(rng: np.random.Generator, clean: Examples) -> Examples:
            column = np.full(len(clean), label - (feature == "starts_subarray"))
            if feature == "max_so_far":
                column = rng.integers(0, label + 1, size=len(clean))
            return self._replace(rng, clean, column)

        return pairs_by_edit(self, rng, n, feature, label, edit)


def _without_first(labels: Integer[np.ndarray, "batch label"]) -> Integer[np.ndarray, "batch label"]:
    """The same array with label 0 set to 0, as the reference has it."""
    labels[:, 0] = 0
    return labels
