"""Sparse parity as vectors: what the papers on parities give to networks without tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8, UInt64
from torch import Tensor

from qfl_interp.data.task import Batch, Feature, Pairs, Task
from qfl_interp.data.task_options import TaskOption
from qfl_interp.seeding import generator
from qfl_interp.shapes import Examples, Tokens
from tasks._layout import FREE, check_rows, checked_prompt, feature_at
from tasks._pairs import pairs_by_edit
from tasks.sparse_parity import SparseParity


class ParityVectors(Task):
    """Rows of fair bits to the parity of k of them, posed to a network of vectors; the length is that of the vectors.

    A vector has `length - 1` bits as -1 and 1, and a last entry of 1, whose weights are what biases are elsewhere. The
    places that count are those of `sparse_parity` with as many bits. `n_samples` vectors are drawn once and for all; a
    raw example is the number of one. The tokens are that number and the parity; the parity alone is scored, and a model
    reads `samples[number]` in the number's place (style "homogeneous"). With more samples than training takes and
    `draw="epoch"` no vector is seen twice: the online setting.

    Features, all read at the sample's number:
        relevant_bit: label r is the r-th relevant bit, r = 0 .. k - 1.
        partial_parity: label r is the parity of the first r + 2 relevant bits; the last one is the answer.

    Attributes:
        bits: The task of the same bits as a sequence, which has the places that count (`bits.relevant`).
        k: How many bits count.
        n_samples: How many vectors there are.

    References:
        arXiv 2207.08799 (Hidden Progress in Deep Learning).

    Example:
        >>> task = ParityVectors(length=6)
        >>> task.bits.relevant, task.samples[0].tolist(), task.encode(np.array([[0]])).tokens.tolist()
        ((0, 1, 3), [1.0, -1.0, -1.0, 1.0, 1.0, 1.0], [[0, 0]])
    """

    name = "parity_vectors"
    vocabulary = ("0", "1")
    lengths = (4, 1025)
    default_length = 41
    train_fraction = 0.95
    own_options = (
        TaskOption("k", "how many bits are relevant", low=2, high="length"),
        TaskOption("n_samples", "how many vectors are drawn once and for all", low=1000, high=2**20),
    )
    k: int = 3
    n_samples: int = 2**15

    def __init__(self, length: int | None = None, **options: Any) -> None:
        super().__init__(length, **options)
        if self.k >= self.length:
            raise ValueError(f"k of task {self.name!r} must be at most the {self.length - 1} bits, got {self.k}.")
        self.bits = SparseParity(self.length - 1, k=self.k)
        rng = generator(0, f"task/{self.name}/{self.n_samples}", self.length)
        self._rows: UInt8[np.ndarray, "sample bit"] = self.bits.sample(rng, self.n_samples)
        signs = torch.from_numpy(self._rows).float().mul_(2).sub_(1)
        self._samples = torch.cat([signs, torch.ones(self.n_samples, 1)], dim=1)
        self._parities = self.bits.features["partial_parity"].labels(self._rows)[:, -1:]

    @property
    def n_ctx(self) -> int:
        """A sample's number and its parity."""
        return 2

    @property
    def samples(self) -> Float[Tensor, "sample d_in"]:
        """The vectors, each of norm `sqrt(length)`."""
        return self._samples

    @property
    def baselines(self) -> Mapping[str, float]:
        """A fair coin."""
        return {"base_rate": float(np.log(2))}

    def _features(self) -> Sequence[Feature]:
        """The relevant bits and the parities of the first of them."""

        def of_bits(name: str, n_labels: int) -> Feature:
            return feature_at(
                name,
                "binary",
                np.zeros(n_labels, dtype=np.int64),
                lambda x: self.bits.features[name].labels(self._rows[x[:, 0]]),
                "the r-th relevant bit" if name == "relevant_bit" else "the parity of the first r + 2 relevant bits",
            )

        return [of_bits("relevant_bit", self.k), of_bits("partial_parity", self.k - 1)]

    def sample(self, rng: np.random.Generator, n: int) -> Examples:
        """`n` numbers of samples, each as likely as any other."""
        return rng.integers(0, self.n_samples, size=(n, 1), dtype=np.int32)

    def problems(self) -> Examples:
        """All samples in their order."""
        return np.arange(self.n_samples, dtype=np.int32)[:, None]

    def split_share(self, examples: Examples) -> Float64[np.ndarray, " batch"]:
        """The samples in their order, those to train on first."""
        return (examples[:, 0] + 0.5) / self.n_samples

    def encode(self, examples: Examples) -> Batch:
        """Tokens and loss mask of raw examples.

        Raises:
            ValueError: The rows are not numbers of samples.
        """
        last = self.n_samples - 1
        check_rows(self, examples, 1, last, f"a sample's number in [0, {last}]")
        tokens = np.concatenate([examples, self._parities[examples[:, 0]]], axis=1).astype(np.int64)
        mask = torch.tensor([False, True]).repeat(len(examples), 1)
        return Batch(torch.from_numpy(tokens), mask, prompt_end=False)

    def decode(self, tokens: Tokens) -> Examples:
        """The samples' numbers; the parity is ignored.

        Raises:
            ValueError: The first token is no sample's number.
        """
        last = self.n_samples - 1
        rule = f"a sample's number in [0, {last}]"
        return checked_prompt(self, tokens, np.array([FREE]), last, rule).astype(np.int32)

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
        """A sample's number behind `#`, and the parity."""
        number, *rest = (int(token) for token in tokens)
        return [f"#{number}", *(self.vocabulary[token] for token in rest)]
