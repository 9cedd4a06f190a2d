"""Sparse parity as vectors: what the papers on parities give to networks without tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from qfl_interp.data.task import Feature
from qfl_interp.data.task_options import TaskOption
from qfl_interp.seeding import generator
from qfl_interp.tasks._layout import feature_at
from qfl_interp.tasks._numbered import NumberedSamples
from qfl_interp.tasks.sparse_parity import SparseParity


class ParityVectors(NumberedSamples):
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
        self._answers = self.bits.features["partial_parity"].labels(self._rows)[:, -1]

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
