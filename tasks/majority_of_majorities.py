"""Majority of majorities: four groups of bits vote, and the groups' votes are counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt64

from qfl_interp.data.task import Batch, Feature, Pairs, Task
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._bits import (
    BIT_TOKENS,
    EOS,
    EQUALS,
    checked_bits,
    every_row,
    packed,
    uniform_bits,
    unordered_pair,
)
from qfl_interp.tasks._layout import FREE, checked_prompt, feature_at, scored_from
from qfl_interp.tasks._pairs import check_label

_N_GROUPS = 4


def _share_of_majorities(p: float, voters: int) -> float:
    """Probability that strictly more than half of independent voters say 1, each with probability `p`."""
    counts = range(voters // 2 + 1, voters + 1)
    return math.fsum(math.comb(voters, count) * p**count * (1 - p) ** (voters - count) for count in counts)


class MajorityOfMajorities(Task):
    """Whether most of four groups of bits have mostly ones, as in the quiet-features paper.

    The nominal length L stands for 2L bits, as in the reference: four groups of L / 2 consecutive bits. A group votes 1
    if strictly more than half of its bits are 1, and the answer is 1 if strictly more than two groups vote 1; ties
    give 0, so that 18 % of the answers are 1 at L = 32.

    A raw example is the 2L bits. Its tokens are the bits in the same order, `=`, the answer bit, `<EOS>`: bit i at
    index i, `=` at 2L, the answer at 2L + 1. For L = 4, the groups 11, 10, 11, 00 read `11101100=0<EOS>`.

    Features, one label a group, r = 0..3:
        group_majority: the vote of group r, read at the group's last bit, index (r + 1) L / 2 - 1. The reference has a
            label for every bit but the first, 0 except at a group's last bit, and leaves the last group out; labels
            that never vary are not kept here, and the last group is in.
        group_counts: how many bits of group r are 1, read at `=`.

    Bits are drawn independently and uniformly at every length; the reference's negated pairs at L >= 32 are not
    reproduced. Examples with their halves swapped share a split.

    References:
        arXiv 2505.03997, majority of majorities.

    Example:
        >>> task = MajorityOfMajorities(length=4)
        >>> examples = np.array([[1, 1, 1, 0, 1, 1, 1, 1]])
        >>> "".join(task.str_tokens(task.encode(examples).tokens[0]))
        '11101111=1<EOS>'
        >>> task.features["group_majority"].labels(examples).tolist()
        [[1, 0, 1, 1]]
    """

    name = "majority_of_majorities"
    vocabulary = BIT_TOKENS
    lengths = (2, 512)
    length_step = 2
    default_length = 32

    @property
    def n_bits(self) -> int:
        """Bits of an example; also the token index of `=`."""
        return 2 * self.length

    @property
    def group_size(self) -> int:
        """Bits of a group."""
        return self.n_bits // _N_GROUPS

    @property
    def n_ctx(self) -> int:
        """2L + 3 tokens: the bits, `=`, the answer, `<EOS>`."""
        return self.n_bits + 3

    @property
    def baselines(self) -> Mapping[str, float]:
        """The paper's line (1/3 ln 2 at every length) and the exact entropy of answer bit and `<EOS>`, in their mean.

        The answer is 1 with the probability that at least 3 of 4 groups vote 1; `<EOS>` is certain. The paper's line
        scores the answer as a fair coin, and `=` with it.
        """
        p = _share_of_majorities(_share_of_majorities(0.5, self.group_size), _N_GROUPS)
        return {"paper": math.log(2) / 3, "base_rate": (-p * math.log(p) - (1 - p) * math.log1p(-p)) / 2}

    def _features(self) -> Sequence[Feature]:
        """Votes and counts of the groups."""
        last_bits, at_equals = (np.arange(_N_GROUPS) + 1) * self.group_size - 1, np.full(_N_GROUPS, self.n_bits)
        majority = "whether most bits of group r are 1, at the group's last bit"
        return [
            feature_at("group_majority", "binary", last_bits, lambda x: self._votes(x).astype(np.uint8), majority),
            feature_at("group_counts", "scalar", at_equals, self._counts, "how many bits of group r are 1, at `=`"),
        ]

    def _counts(self, examples: Examples) -> Int[np.ndarray, "batch group"]:
        """Ones in each group."""
        groups = packed(examples.reshape(_N_GROUPS * len(examples), self.group_size), word_bytes=2)
        # Words along the first axis: sums over a short last axis are slow.
        return np.bitwise_count(groups.T).sum(axis=0, dtype=np.int64).reshape(len(examples), _N_GROUPS)

    def _votes(self, examples: Examples) -> Bool[np.ndarray, "batch group"]:
        """Whether each group has more ones than half its size."""
        return 2 * self._counts(examples) > self.group_size

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` rows of 2L independent fair bits."""
        return uniform_bits(rng, n, self.n_bits)

    def problems(self) -> Examples | None:
        """Every row of bits, up to L = 10."""
        return every_row(self.n_bits)

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not 2L bits.
        """
        examples = checked_bits(self, examples, self.n_bits)
        rows = np.empty((len(examples), self.n_ctx), dtype=np.uint8)
        rows[:, : self.n_bits] = examples
        rows[:, self.n_bits] = EQUALS
        rows[:, self.n_bits + 1] = 2 * self._votes(examples).sum(axis=1) > _N_GROUPS
        rows[:, self.n_bits + 2] = EOS
        return scored_from(self.n_bits, rows)

    def decode(self, tokens: Tokens) -> Examples:
        """The bits that the prompts hold; what follows `=` is ignored.

        Raises:
            ValueError: A prompt is not 2L bits, `=`.
        """
        layout = np.array([*[FREE] * self.n_bits, EQUALS])
        return checked_prompt(self, tokens, layout, 1, f"{self.n_bits} bits, '='")[:, :-1].astype(np.uint8)

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """The unordered pair of both halves, by which the reference splits: the answer hangs on neither's place."""
        return unordered_pair(examples)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in one bit of group `label`; the other groups are untouched.

        - group_majority: the other bits of the group are drawn anew with half of the group's size ones (rounded down),
          so that this bit alone decides the vote.
        - group_counts: any bit of the group.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is not a group.
        """
        check_label(self, feature, label)
        clean = self.sample(rng, n)
        group = slice(label * self.group_size, (label + 1) * self.group_size)
        order = rng.permuted(np.tile(np.arange(self.group_size), (n, 1)), axis=1)
        flipped = order == self.group_size // 2
        if feature == "group_majority":
            clean[:, group] = np.where(flipped, clean[:, group], order < self.group_size // 2)
        corrupted = clean.copy()
        corrupted[:, group] ^= flipped
        return Pairs(clean, corrupted)
