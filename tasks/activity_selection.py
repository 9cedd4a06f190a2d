"""Activity selection: the largest set of activities that do not overlap, by the greedy rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import numpy as np
from jaxtyping import Integer

from qfl_interp.data.task import Batch, Feature, Pairs
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._kernels import kernel
from qfl_interp.tasks._layout import feature_at
from qfl_interp.tasks._pairs import pairs_by_edit
from qfl_interp.tasks._sequences import EOS, EQUALS, SequenceTask, as_batch, other_integers, prompt_letters

# The latest that an activity ends.
_LATEST = 18


@kernel
@no_type_check
def _write_selected(rows, tokens, n_selected):
    """Write (start, end) of each row's selected activities after `=`.

    The rule goes through the activities by end time and takes each that starts no earlier than the last one taken
    ends. As no activity is empty, the next one taken is the first to end of all that start then or later.
    """
    length = rows.shape[1] // 2
    for i in range(rows.shape[0]):
        free, at = 0, 2 * length + 1
        while True:
            chosen, end = -1, _LATEST + 1
            for j in range(length):
                if rows[i, j] >= free and rows[i, j] + rows[i, length + j] < end:
                    chosen, end = j, rows[i, j] + rows[i, length + j]
            if chosen < 0:
                break
            tokens[i, at], tokens[i, at + 1] = rows[i, chosen], end
            free, at = end, at + 2
        n_selected[i] = (at - 2 * length - 1) // 2


class ActivitySelection(SequenceTask):
    """Activities with a start and an end time each; which to take, as in the quiet-features paper.

    A raw example is 2L integers in 1..9: L start times, then L durations; activity i ends at start + duration, in
    2..18. Its tokens are the start times, the end times, `=`, start and end of each selected activity in the order of
    selection, `<EOS>` to the end; the letter of t is the t-th after `A`. Start time i is at index i, end time i at
    L + i, `=` at 2L, the j-th selected activity at 2L + 1 + 2j. For activities 3-7, 1-4 and 4-6 it reads
    `DBEHEG=BEEG<EOS><EOS><EOS>`.

    Activities are gone through by end time, the first in the prompt first among equal ones, and selected if they start
    no earlier than the last selected one ends. Rows are uniform over multisets of all 2L numbers, not over rows: a few
    numbers are often frequent. Rows whose 2L numbers are permuted share a split.

    Features:
        start_times: start time r, read at L + r, the token of end time r.
        running_min: the smallest of end times 0..r, read at L + r; not by default.
        is_min_updated: 1 if end time r is smaller than all before it, read at L + r; label 0 is 0 in every example, as
            in the reference; not by default.
        is_greater_than_prev: 1 if end time r + 1 is greater than end time r, for r = 0..L-2, read at L + 1 + r; not by
            default.

    References:
        arXiv 2505.03997, activity selection.

    Example:
        >>> task = ActivitySelection(length=3)
        >>> "".join(task.str_tokens(task.encode(np.array([[3, 1, 4, 4, 3, 2]])).tokens[0]))
        'DBEHEG=BEEG<EOS><EOS><EOS>'
        >>> task.features["running_min"].labels(np.array([[3, 1, 4, 4, 3, 2]])).tolist()
        [[7, 4, 4]]
    """

    name = "activity_selection"
    low, high = 1, 9
    # L start times, then L durations.
    entries_per_length = 2
    lengths = (2, 256)
    default_length = 16

    @property
    def n_ctx(self) -> int:
        """4L + 2 tokens: start and end times, `=`, at most L selected activities, `<EOS>`."""
        return 4 * self.length + 2

    def _features(self) -> Sequence[Feature]:
        """The feature the paper probes and three it defines."""
        ends = self.length + np.arange(self.length)
        return [
            feature_at(
                "start_times", "scalar", ends, lambda examples: examples[:, : self.length].astype(np.int64),
                "start time r, where end time r is read",
            ),
            feature_at(
                "running_min", "scalar", ends, lambda examples: self._running_min(examples).astype(np.int64),
                "the smallest end time up to r, where end time r is read", by_default=False,
            ),
            feature_at(
                "is_min_updated", "binary", ends, self._is_min_updated,
                "whether end time r is the smallest so far, where it is read", by_default=False,
            ),
            feature_at(
                "is_greater_than_prev", "binary", ends[1:], self._is_greater_than_prev,
                "whether end time r + 1 is greater than end time r, where end time r + 1 is read", by_default=False,
            ),
        ]  # fmt: skip

    def _ends(self, examples: Examples) -> Integer[np.ndarray, "batch activity"]:
        """End times."""
        return examples[:, : self.length] + examples[:, self.length :]

    def _running_min(self, examples: Examples) -> Integer[np.ndarray, "batch label"]:
        """The smallest end time up to each."""
        return np.minimum.accumulate(self._ends(examples), axis=1)

    def _is_min_updated(self, examples: Examples) -> Integer[np.ndarray, "batch label"]:
        """1 where the running minimum falls."""
        running = self._running_min(examples)
        labels = np.zeros(running.shape, dtype=np.uint8)
        np.less(running[:, 1:], running[:, :-1], out=labels[:, 1:], casting="unsafe")
        return labels

    def _is_greater_than_prev(self, examples: Examples) -> Integer[np.ndarray, "batch label"]:
        """1 where an end time is greater than the one before it."""
        ends = self._ends(examples)
        return (ends[:, 1:] > ends[:, :-1]).astype(np.uint8)

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not 2L integers in 1..9.
        """
        length, equals = self.length, 2 * self.length
        self._check(examples)
        rows = np.ascontiguousarray(examples, dtype=np.int8)
        tokens = np.full((len(rows), self.n_ctx), EOS, dtype=np.int64)
        tokens[:, :length] = rows[:, :length]
        tokens[:, length:equals] = self._ends(rows)
        tokens[:, equals] = EQUALS
        n_selected = np.empty(len(rows), dtype=np.int64)
        _write_selected(rows, tokens, n_selected)
        return as_batch(tokens, equals, 2 * n_selected)

    def decode(self, tokens: Tokens) -> Examples:
        """The start times and durations that the prompts hold; what follows `=` is ignored.

        Raises:
            ValueError: A prompt is not L start times, L end times, `=`, or a duration is out of range.
        """
        times = prompt_letters(self, tokens, 2 * self.length)
        starts, ends = times[:, : self.length], times[:, self.length :]
        rows = np.hstack([starts, ends - starts])
        self._check(rows, "start times and durations in prompts")
        return rows.astype(np.int8)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in one token of the prompt, and so in the feature's value at `label`.

        - start_times: the start time at `label` is another one; its end time stays, hence the duration differs.
        - is_min_updated: the end time at `label` is another one.
        - is_greater_than_prev: the end time at `label + 1` is another one.
        - running_min: the first of the smallest end times up to `label` is another one.

        Other features that hang on that time change with it, and the answer may.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range, or it is the constant label 0 of is_min_updated.
        """

        def edit(rng: np.random.Generator, clean: Examples) -> Examples:
            if feature == "start_times":
                corrupted, start, duration = clean.copy(), clean[:, label], clean[:, self.length + label]
                moved = other_integers(rng, start, self.low, self.high)
                left = start + duration - moved
                fits = (left >= self.low) & (left <= self.high)
                corrupted[:, label] = np.where(fits, moved, start)
                corrupted[:, self.length + label] = np.where(fits, left, duration)
                return corrupted
            activity = np.full(len(clean), label + (feature == "is_greater_than_prev"))
            if feature == "running_min":
                activity = self._ends(clean)[:, : label + 1].argmin(axis=1)
            return self._replace(rng, clean, self.length + activity)

        return pairs_by_edit(self, rng, n, feature, label, edit)
