"""Classification of images: scikit-learn's digits, or a copy of MNIST, as samples with numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from qfl_interp.data.task import Feature
from qfl_interp.data.task_options import TaskOption
from qfl_interp.digests import digest
from qfl_interp.shapes import Examples
from qfl_interp.tasks._images import Labelled, digits, mnist
from qfl_interp.tasks._layout import feature_at
from qfl_interp.tasks._numbered import NumberedSamples


class Digits(NumberedSamples):
    """A sample to its class; the task's length is the number of pixels.

    A raw example is the number of a sample. The tokens are that number and the class; the class alone is scored, and a
    model reads `samples[number]`, a vector, in the number's place: it has to be one of vectors (style "homogeneous").

    scikit-learn's 8 x 8 digits are 1437 samples to train on and 360 others, split at random; with `path` it is a copy
    of MNIST or of a set in its format, split as it comes. Of those that are not trained on the first half is the split
    "val" and the rest the split "test".

    Features, both read at the sample's number:
        is_odd: whether the class is odd.
        below_five: whether it is below 5.

    Attributes:
        path: A folder of IDX files or an .npz file (`_images.mnist`); "": scikit-learn's digits.
        n_train: Training samples, from the first on; 0: all. The other ones are then in no split.

    Raises:
        QflError: The copy of MNIST is not there or damaged.
        ValueError: The length is not the number of the images' pixels.

    Example:
        >>> task = Digits()
        >>> batch = task.encode(np.array([[3]]))
        >>> task.str_tokens(batch.tokens[0]), tuple(task.samples.shape)
        (['#3', '8'], (1797, 64))
    """

    name = "digits"
    lengths = (1, 2**20)
    default_length = 64
    own_options = (
        TaskOption("path", "a folder of MNIST's IDX files or an .npz file, instead of scikit-learn's digits"),
        TaskOption("n_train", "training samples, from the first on; 0 for all", low=0),
    )
    path: str = ""
    n_train: int = 0

    def __init__(self, length: int | None = None, **options: Any) -> None:
        path = str(options.get("path", ""))
        data = mnist(Path(path)) if path else digits()
        self._answers = torch.cat([data.train_y, data.test_y]).numpy()
        self._samples = torch.cat([data.train_x, data.test_x])
        self._n_first = len(data.train_y)
        self._digest = data_digest(data)
        self.vocabulary = tuple(map(str, range(data.n_classes)))
        self.train_fraction = self._n_first / len(self._answers)
        super().__init__(length, **options)
        n_pixels = data.train_x.shape[1]
        if self.length != n_pixels:
            raise ValueError(f"length of these images must be their {n_pixels} pixels, got {self.length}.")
        if self.n_train > self._n_first:
            raise ValueError(f"n_train must be at most the {self._n_first} training samples, got {self.n_train}.")

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What decides the problems: the images' digest among it, and not where they lie."""
        own = {name: value for name, value in super().parameters.items() if name != "path"}
        return own | {"images": self._digest}

    @property
    def baselines(self) -> Mapping[str, float]:
        """The entropy of the classes."""
        shares = np.unique(self._answers, return_counts=True)[1] / len(self._answers)
        return {"base_rate": float(-(shares * np.log(shares)).sum())}

    def _features(self) -> Sequence[Feature]:
        """What can be told of a class."""
        at = np.zeros(1, dtype=np.int64)
        return [
            feature_at("is_odd", "binary", at, lambda x: self._classes(x) % 2, "whether the class is odd"),
            feature_at(
                "below_five",
                "binary",
                at,
                lambda x: (self._classes(x) < 5).astype(np.uint8),
                "whether the class is below 5",
            ),
        ]

    def _classes(self, examples: Examples) -> UInt8[np.ndarray, "batch 1"]:
        """The classes of samples."""
        return self._answers[examples].astype(np.uint8)

    def split_share(self, examples: Examples) -> Float64[np.ndarray, " batch"]:
        """The samples in their order: the training ones come first."""
        number = examples[:, 0].astype(np.float64)
        left_out = (number >= (self.n_train or self._n_first)) & (number < self._n_first)
        return np.where(left_out, np.nan, super().split_share(examples))


def data_digest(data: Labelled) -> str:
    """Twelve hexadecimal digits of the data's bytes."""
    parts = (data.train_x, data.train_y, data.test_x, data.test_y)
    return digest(*(x for p in parts for x in (f"{p.dtype}{tuple(p.shape)}", p.contiguous().numpy().data)))
