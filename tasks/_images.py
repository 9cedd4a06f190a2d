"""Labelled vectors to train on: scikit-learn's digits, MNIST from a file, and the one preprocessing of both."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from qfl_interp.errors import QflError
from qfl_interp.seeding import generator

# The four files of an IDX copy of MNIST, by what they hold.
_IDX = {
    "train_x": "train-images-idx3-ubyte", "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte", "test_y": "t10k-labels-idx1-ubyte",
}  # fmt: skip
# Keys of the npz copy that Keras spread.
_NPZ = {"train_x": "x_train", "train_y": "y_train", "test_x": "x_test", "test_y": "y_test"}


class Labelled(NamedTuple):
    """A classification problem: inputs prepared as `prepare` does.

    Attributes:
        name: What tables call it.
        train_x: Training inputs.
        train_y: Their classes, from 0.
        test_x: Test inputs.
        test_y: Their classes.
        n_classes: How many classes there are.
    """

    name: str
    train_x: Float[Tensor, "train d_in"]
    train_y: Int[Tensor, " train"]
    test_x: Float[Tensor, "test d_in"]
    test_y: Int[Tensor, " test"]
    n_classes: int

    def __repr__(self) -> str:
        d_in = self.train_x.shape[1]
        return f"Labelled({self.name!r}, {len(self.train_x)} + {len(self.test_x)} x {d_in}, {self.n_classes} classes)"


def prepare(
    train_x: Float[np.ndarray, "train d_in"], test_x: Float[np.ndarray, "test d_in"]
) -> tuple[Float[Tensor, "train d_in"], Float[Tensor, "test d_in"]]:
    """Inputs less the training mean, each row scaled to the norm `sqrt(d_in)`; float32 [R].

    Raises:
        ValueError: An entry is not finite, or a row equals the training mean and has no direction.
    """
    mean = train_x.mean(axis=0)
    scaled = []
    for name, x in (("train_x", train_x), ("test_x", test_x)):
        centred = x - mean
        norms = np.linalg.norm(centred, axis=1, keepdims=True)
        bad = ~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"rows of {name} must be finite and differ from the training mean, got a norm of {norms[row, 0]} in "
                f"row {row}. Leave it out."
            )
        scaled.append(torch.from_numpy(centred / norms * math.sqrt(x.shape[1])).float())
    return scaled[0], scaled[1]


@functools.cache
def digits(*, seed: int = 0) -> Labelled:
    """scikit-learn's 8 x 8 digits: 1437 to train on and 360 to test, split at random.

    They are read once a process, and shared: not to be changed.

    Args:
        seed: Decides the split.
    """
    table = _digits_table()
    x, y = table[:, :-1], torch.from_numpy(table[:, -1].astype(np.int64))
    order = generator(seed, "images/digits").permutation(len(x))
    train, test = order[:1437], order[1437:]
    train_x, test_x = prepare(x[train], x[test])
    return Labelled("digits", train_x, y[train], test_x, y[test], 10)


def _digits_table() -> Float64[np.ndarray, "sample entry"]:
    """Pixels and, last, the class: scikit-learn's file, without its imports, which take long."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")


def mnist(path: Path) -> Labelled:
    """MNIST, or a data set in its format, from a copy on disk; nothing is downloaded.

    Args:
        path: A folder with the four IDX files (`train-images-idx3-ubyte`, ..., perhaps ending in `.gz`), or an `.npz`
            file with `x_train`, `y_train`, `x_test` and `y_test`.

    Raises:
        QflError: A file is missing, is no IDX file, or does not hold what its name says.
    """
    path = Path(path)
    if not path.exists():
        raise QflError(f"{path} does not exist. Give a folder with the IDX files of MNIST, or an .npz file.")
    found = {key: _read_idx(path, name) for key, name in _IDX.items()} if path.is_dir() else _read_npz(path)
    for part in ("train", "test"):
        x, y = found[f"{part}_x"], found[f"{part}_y"]
        if x.ndim < 2 or y.shape != (len(x),) or len(x) < 2:
            raise QflError(
                f"{path} must hold as many labels as images, 2 at least, got {part} images of shape {x.shape} and "
                f"labels of shape {y.shape}. Is the file another one's?"
            )
    train_x, test_x = (found[key].reshape(len(found[key]), -1).astype(float) for key in ("train_x", "test_x"))
    train_y, test_y = (torch.from_numpy(found[key].astype(np.int64)) for key in ("train_y", "test_y"))
    n_classes = 1 + int(max(train_y.max(), test_y.max()))
    train_x, test_x = prepare(train_x, test_x)
    return Labelled(path.stem, train_x, train_y, test_x, test_y, n_classes)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; nothing in it is executed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _NPZ.values() if name not in file]
            if missing:
                raise QflError(f"{path} must hold {list(_NPZ.values())}, but lacks {missing}; it has {file.files}.")
            return {key: file[name] for key, name in _NPZ.items()}
    except (OSError, ValueError) as error:
        raise QflError(f"{path} is no .npz file of arrays: {error}.") from error


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """One IDX file of unsigned bytes, compressed or not."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if not plain.exists() and not packed.exists():
        raise QflError(f"{folder} has neither {name} nor {name}.gz. An IDX copy of MNIST has {list(_IDX.values())}.")
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError) as error:
        raise QflError(f"{packed} cannot be unpacked: {error}.") from error
    # Two zero bytes, 8 for unsigned bytes, the number of axes; then each axis's length, big-endian.
    if data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise QflError(f"{name} in {folder} is no IDX file of unsigned bytes: it starts with {data[:4]!r}.")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3])
    if len(values) != math.prod(shape):
        raise QflError(f"{name} in {folder} must hold {math.prod(shape)} bytes for {shape}, got {len(values)}.")
    return values.reshape(shape)
