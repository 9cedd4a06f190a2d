"""Sparse parity: the parity of a few bits at fixed, unknown places among n."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt64

from qfl_interp.data.task import Batch, Feature, Pairs, Task
from qfl_interp.data.task_options import TaskOption
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._bits import checked_bits, every_row, packed, uniform_bits
from qfl_interp.tasks._layout import FREE, checked_prompt, feature_at, scored_from
from qfl_interp.tasks._pairs import check_label

_TOKENS = ("0", "1", "=")
_EQUALS = 2


class SparseParity(Task):
    """The (n, k)-sparse parity problem, posed to a sequence model; k = 3 where nothing else is said.

    A raw example is n bits; the tokens are the bits in order, `=` at index n, and the parity of the relevant bits at
    n + 1. The relevant places are drawn once for each n and k and never change; the model has to find them. There is no
    `<EOS>`: the answer is one token. `=` is scored too; it is certain, so the loss over the answer alone is the
    literature's. Every step sees fresh bits (the online setting), so nothing can be memorised at large n.

    Features, all read at `=`:
        relevant_bit: label r is the r-th relevant bit, r = 0 .. k - 1.
        partial_parity: label r is the parity of the first r + 2 relevant bits, r = 0 .. k - 2. The last one *is* the
            answer, the very next token, so it is loud by construction.

    Attributes:
        relevant: The relevant places, in increasing order.
        k: How many there are, an option: `load_task("sparse_parity", length=40, k=4)`.

    References:
        arXiv 2207.08799 (Hidden Progress in Deep Learning).

    Example:
        >>> task = SparseParity(length=5)
        >>> task.relevant
        (0, 1, 3)
        >>> examples = np.array([[1, 0, 1, 1, 1]], dtype=np.uint8)
        >>> "".join(task.str_tokens(task.encode(examples).tokens[0]))
        '10111=0'
        >>> task.features["partial_parity"].labels(examples).tolist()
        [[1, 0]]
    """

    name = "sparse_parity"
    vocabulary = _TOKENS
    lengths = (3, 1024)
    default_length = 40
    own_options = (TaskOption("k", "how many bits are relevant", low=2, high="length"),)
    k: int = 3

    def __init__(self, length: int | None = None, **options: Any) -> None:
        super().__init__(length, **options)
        # The places belong to the problem, not to a run: the generator's only keys are the task and n.
        places = generator(0, "task/sparse_parity", self.length).choice(self.length, self.k, replace=False)
        self.relevant: tuple[int, ...] = tuple(sorted(places.tolist()))

    @property
    def n_ctx(self) -> int:
        """The bits, `=` and the parity: n + 2 tokens."""
        return self.length + 2

    @property
    def baselines(self) -> Mapping[str, float]:
        """A fair coin; the paper draws no line."""
        return {"base_rate": math.log(2)}

    def _features(self) -> Sequence[Feature]:
        """The relevant bits and what has been accumulated of their parity."""
        at_equals = np.full(self.k, self.length)
        parity = "the parity of the first r + 2 relevant bits, at '='; the last is the answer"
        return [
            feature_at("relevant_bit", "binary", at_equals, self._relevant_bits, "the r-th relevant bit, at '='"),
            feature_at("partial_parity", "binary", at_equals[1:], self._parities, parity),
        ]

    def _relevant_bits(self, examples: Examples) -> UInt8[np.ndarray, "batch label"]:
        """Bits at the relevant places."""
        return examples[:, self.relevant].astype(np.uint8)

    def _parities(self, examples: Examples) -> UInt8[np.ndarray, "batch label"]:
        """Parities of the first two, three, ... relevant bits."""
        return np.bitwise_xor.accumulate(self._relevant_bits(examples), axis=1)[:, 1:]

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` rows of independent fair bits."""
        return uniform_bits(rng, n, self.length)

    def problems(self) -> Examples | None:
        """Every row of bits, up to n = 20."""
        return every_row(self.length)

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not n bits.
        """
        examples = checked_bits(self, examples, self.length)
        rows = np.empty((len(examples), self.n_ctx), dtype=np.uint8)
        rows[:, : self.length] = examples
        rows[:, self.length] = _EQUALS
        rows[:, -1] = self._parities(examples)[:, -1]
        return scored_from(self.length, rows)

    def decode(self, tokens: Tokens) -> Examples:
        """The bits that the prompts hold; what follows `=` is ignored.

        Raises:
            ValueError: A prompt is not n bits and `=`.
        """
        layout = np.array([*[FREE] * self.length, _EQUALS])
        return checked_prompt(self, tokens, layout, 1, f"{self.length} bits, '='")[:, :-1].astype(np.uint8)

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """The bits themselves: no two different prompts are the same problem."""
        return packed(examples)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs that differ in one or two relevant bits.

        - relevant_bit: bit `label` alone is flipped; every parity that contains it, hence the answer, changes too.
        - partial_parity: the last bit of that parity is flipped, and the relevant bit after it where there is one, so
          that no other parity changes: the answer changes with the last label only.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range.
        """
        check_label(self, feature, label)
        flipped = self.relevant[label : label + 1]
        if feature == "partial_parity":
            flipped = self.relevant[label + 1 : label + 3]
        clean = self.sample(rng, n)
        corrupted = clean.copy()
        corrupted[:, flipped] ^= 1
        return Pairs(clean, corrupted)
