"""Images as a task: how they are split and scaled, copies of MNIST, what names them."""

from __future__ import annotations

import gzip
import math
import struct

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import qfl_interp as qfl
from qfl_interp.data.examples import in_split
from qfl_interp.data.training_stream import training_problems
from qfl_interp.errors import QflError
from qfl_interp.tasks._images import _digits_table, digits, mnist, prepare


def test_the_digits_are_scikit_learns():
    x, y = load_digits(return_X_y=True)
    np.testing.assert_array_equal(_digits_table(), np.column_stack([x, y]))


def test_digits_are_split_and_scaled():
    data = digits()
    assert (len(data.train_x), len(data.test_x), data.n_classes) == (1437, 360, 10)
    torch.testing.assert_close(data.train_x.norm(dim=1), torch.full((1437,), 8.0))
    rows = {tuple(row) for row in torch.cat([data.train_x, data.test_x]).tolist()}
    assert len(rows) > 1790  # each image once
    assert torch.equal(digits().train_x, data.train_x)
    assert not torch.equal(digits(seed=1).train_x, data.train_x)
    # Nearest neighbours are right: images and labels belong together.
    nearest = (data.test_x @ data.train_x.T).argmax(1)
    assert float((data.train_y[nearest] == data.test_y).float().mean()) > 0.95


def test_prepare_by_hand():
    train, test = prepare(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[4.0, 5.0]]))
    torch.testing.assert_close(train, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    torch.testing.assert_close(test, torch.tensor([[3.0, 4.0]]) / 5 * 2**0.5)
    with pytest.raises(
        ValueError, match=r"test_x must be finite and differ from the training mean, got a norm of 0.0 in row 1"
    ):
        prepare(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[4.0, 5.0], [1.0, 1.0]]))


def idx(array):
    """The IDX format, written out."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def tiny_mnist(tmp_path):
    """Four 2 x 3 training images and two test images as IDX files, one of them compressed."""
    arrays = {
        "train-images-idx3-ubyte": np.arange(24, dtype=np.uint8).reshape(4, 2, 3) ** 2,
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 1], dtype=np.uint8),
        "t10k-images-idx3-ubyte": np.arange(12, dtype=np.uint8).reshape(2, 2, 3)[::-1].copy(),
        "t10k-labels-idx1-ubyte": np.array([2, 0], dtype=np.uint8),
    }
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, array in arrays.items():
        if "t10k-images" in name:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return folder, arrays


def test_mnist_from_idx_and_npz(tiny_mnist, tmp_path):
    folder, arrays = tiny_mnist
    found = mnist(folder)
    train = arrays["train-images-idx3-ubyte"].reshape(4, 6).astype(float)
    centred = train - train.mean(0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True) * math.sqrt(6)
    np.testing.assert_allclose(found.train_x, expected, rtol=1e-6)
    assert found.train_y.tolist() == [0, 1, 2, 1]
    assert found.test_y.tolist() == [2, 0]
    assert (found.name, found.n_classes, found.test_x.shape) == ("mnist", 3, (2, 6))
    keys = dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays.values(), strict=True))
    np.savez(tmp_path / "copy.npz", **keys)
    again = mnist(tmp_path / "copy.npz")
    assert all(torch.equal(a, b) for a, b in zip(found[1:5], again[1:5], strict=True))


def test_bad_copies_of_mnist_are_refused(tiny_mnist, tmp_path):
    folder, arrays = tiny_mnist
    with pytest.raises(QflError, match="does not exist"):
        mnist(tmp_path / "nowhere")
    labels = folder / "train-labels-idx1-ubyte"
    for data, message in (
        (idx(np.zeros(3, np.uint8)), "as many labels as images"),
        (labels.read_bytes()[:-1], "must hold 4 bytes"),
        (b"PK\x03\x04", "is no IDX file"),
    ):
        labels.write_bytes(data)
        with pytest.raises(QflError, match=message):
            mnist(folder)
    labels.unlink()
    with pytest.raises(QflError, match="has neither train-labels-idx1-ubyte nor"):
        mnist(folder)
    np.savez(tmp_path / "part.npz", x_train=arrays["train-images-idx3-ubyte"])
    with pytest.raises(QflError, match="lacks"):
        mnist(tmp_path / "part.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(QflError, match=r"is no \.npz file"):
        mnist(tmp_path / "text.npz")


# The task


def test_a_sample_is_its_number_and_its_class():
    task, data = qfl.load_task("digits"), digits()
    assert (task.length, task.d_vocab, task.n_ctx, len(task.problems())) == (64, 10, 2, 1797)
    assert torch.equal(task.samples, torch.cat([data.train_x, data.test_x]))
    batch = task.encode(np.array([[0], [1437]], dtype=np.int32))
    assert batch.tokens.tolist() == [[0, int(data.train_y[0])], [1437, int(data.test_y[0])]]
    assert batch.loss_mask.tolist() == [[False, True]] * 2
    odd = task.features["is_odd"].labels(task.problems())[:, 0]
    np.testing.assert_array_equal(odd, torch.cat([data.train_y, data.test_y]) % 2)
    assert task.baselines["base_rate"] == pytest.approx(math.log(10), abs=1e-3)


def test_the_images_own_split_is_the_tasks():
    task = qfl.load_task("digits")
    problems = task.problems()
    members = {split: np.flatnonzero(in_split(task, problems, split)) for split in ("train", "val", "test")}
    np.testing.assert_array_equal(members["train"], np.arange(1437))
    assert [len(members[split]) for split in ("val", "test")] == [180, 180]
    np.testing.assert_array_equal(np.concatenate([members["val"], members["test"]]), np.arange(1437, 1797))


def test_fewer_training_samples_leave_the_others_out():
    task = qfl.load_task("digits", n_train=256)
    np.testing.assert_array_equal(training_problems(task)[:, 0], np.arange(256))
    left = np.arange(256, 1437, dtype=np.int32)[:, None]
    assert not any(in_split(task, left, split).any() for split in ("train", "val", "test"))
    held = np.arange(1437, 1797, dtype=np.int32)[:, None]
    assert (in_split(task, held, "val") | in_split(task, held, "test")).all()
    with pytest.raises(ValueError, match="n_train must be at most the 1437 training samples, got 1438"):
        qfl.load_task("digits", n_train=1438)
    with pytest.raises(ValueError, match="length of these images must be their 64 pixels, got 63"):
        qfl.load_task("digits", 63)


def test_a_copy_is_named_by_its_images_and_not_by_its_place(tiny_mnist, tmp_path):
    folder, arrays = tiny_mnist
    task = qfl.load_task("digits", 6, path=str(folder))
    assert task.problems()[:, 0].tolist() == [*range(6)]
    assert task.encode(task.problems()).tokens[:, 1].tolist() == [0, 1, 2, 1, 2, 0]
    moved = folder.rename(tmp_path / "moved")
    assert qfl.load_task("digits", 6, path=str(moved)).parameters == task.parameters
    other = arrays["train-labels-idx1-ubyte"].copy()
    other[0] = 2
    (moved / "train-labels-idx1-ubyte").write_bytes(idx(other))
    assert qfl.load_task("digits", 6, path=str(moved)).parameters != task.parameters
    assert task.parameters != qfl.load_task("digits").parameters


def test_numbers_beyond_the_samples_are_refused():
    task = qfl.load_task("digits")
    with pytest.raises(ValueError, match=r"a sample's number in \[0, 1796\]"):
        task.encode(np.array([[1797]], dtype=np.int32))
