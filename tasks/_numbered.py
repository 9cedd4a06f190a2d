"""Tasks whose examples are numbers of samples: vectors that are drawn or read once, each with an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Integer, UInt64
from torch import Tensor

from qfl_interp.data.task import Batch, Pairs, Task
from qfl_interp.shapes import Examples, Tokens
from qfl_interp.tasks._layout import FREE, check_rows, checked_prompt
from qfl_interp.tasks._pairs import pairs_by_edit


class NumberedSamples(Task):
    """A sample's number to its answer: two tokens, the answer alone scored.

    A raw example is the number, and a model reads `samples[number]`, a vector, in its place. The samples to train on
    come first. A subclass sets the two attributes below.

    Attributes:
        _samples: The vectors.
        _answers: The answer of each, an id of the vocabulary.
    """

    _samples: Float[Tensor, "sample d_in"]
    _answers: Integer[np.ndarray, " sample"]

    @property
    def n_ctx(self) -> int:
        """A sample's number and its answer."""
        return 2

    @property
    def samples(self) -> Float[Tensor, "sample d_in"]:
        """The vectors, those to train on first, each of norm `sqrt(length)`."""
        return self._samples

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` numbers of samples, each as likely as any other."""
        return rng.integers(0, len(self._answers), size=(n, 1), dtype=np.int32)

    def problems(self) -> Examples:
        """All samples in their order."""
        return np.arange(len(self._answers), dtype=np.int32)[:, None]

    def split_share(self, examples: Examples) -> Float64[np.ndarray, " batch"]:
        """The samples in their order, those to train on first."""
        return (examples[:, 0] + 0.5) / len(self._answers)

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not numbers of samples.
        """
        check_rows(self, examples, 1, self._last, self._rule)
        tokens = np.concatenate([examples, self._answers[examples]], axis=1).astype(np.int64)
        mask = torch.tensor([False, True]).repeat(len(examples), 1)
        return Batch(torch.from_numpy(tokens), mask, prompt_end=False)

    def decode(self, tokens: Tokens) -> Examples:
        """The samples' numbers; the answer is ignored.

        Raises:
            ValueError: The first token is no sample's number.
        """
        return checked_prompt(self, tokens, np.array([FREE]), self._last, self._rule).astype(np.int32)

    def canonical(self, examples: Examples) -> UInt64[np.ndarray, "batch word"]:
        """The number itself."""
        return examples.astype(np.uint64)

    def sample_pairs(self, rng: np.random.Generator, n: int, feature: str, label: int) -> Pairs:
        """Pairs of two samples that differ in the feature.

        Raises:
            QflError: Unknown feature.
            ValueError: `label` is out of range.
        """
        return pairs_by_edit(self, rng, n, feature, label, lambda rng, clean: self.sample(rng, len(clean)))

    def str_tokens(self, tokens: Any) -> list[str]:
        """A sample's number behind `#`, and the answer."""
        number, *rest = (int(token) for token in tokens)
        return [f"#{number}", *(self.vocabulary[token] for token in rest)]

    @property
    def _last(self) -> int:
        """The largest number."""
        return len(self._answers) - 1

    @property
    def _rule(self) -> str:
        """What an example is, in words."""
        return f"a sample's number in [0, {self._last}]"
