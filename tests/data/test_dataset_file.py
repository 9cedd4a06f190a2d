"""A dataset as a file: the same task comes back, and what is no such file or was changed is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import qfl_interp as qfl
from tests.helpers_suite import tiny_text_task


def several_kinds() -> qfl.FixedTask:
    """Every kind of feature, a vocabulary, pairs, baselines, a split and an answer alone."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 9, size=(40, 6))
    scored = np.zeros(tokens.shape, bool)
    scored[:, 4:] = True
    at = np.full((40, 2), 2)
    at[0, 1] = -1
    features = {
        "a/b": qfl.FixedFeature("binary", tokens[:, :2] % 2, at, "One with a slash.", by_default=False),
        "categorical": qfl.FixedFeature("categorical", torch.from_numpy(tokens[:, 2:4]), torch.from_numpy(at)),
        "multilabel": qfl.FixedFeature("multilabel", rng.integers(0, 2, (40, 2, 3)), at),
        "scalar": qfl.FixedFeature("scalar", rng.normal(size=(40, 2)), at),
    }
    pairs = {"a/b": [[0, 1], [2, 3]]}
    return qfl.FixedTask(
        "kinds", tokens, scored, features, str_tokens=[*"abcdefgh", "="], train_fraction=0.25, prompt_end=False,
        pairs={name: np.array(rows) for name, rows in pairs.items()}, baselines={"base_rate": 1.5},
    )  # fmt: skip


@pytest.mark.parametrize("make", [tiny_text_task, several_kinds])
def test_what_is_saved_comes_back(make, tmp_path):
    task = make()
    again = qfl.FixedTask.load(task.save(tmp_path / "data.safetensors"))
    assert again.digest == task.digest
    assert repr(again) == repr(task)
    assert (again.vocabulary, dict(again.baselines)) == (task.vocabulary, dict(task.baselines))
    rows = task.problems()
    for name in ("tokens", "loss_mask", "answer_mask"):
        assert torch.equal(getattr(again.encode(rows), name), getattr(task.encode(rows), name))
    for name, feature in task.features.items():
        found = again.features[name]
        assert (found.kind, found.description, found.by_default) == (
            feature.kind,
            feature.description,
            feature.by_default,
        )
        np.testing.assert_array_equal(found.labels(rows), feature.labels(rows))
        np.testing.assert_array_equal(found.positions(rows), feature.positions(rows))
    assert list(tmp_path.iterdir()) == [tmp_path / "data.safetensors"]


def head_of(file) -> dict:
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        return json.loads(opened.metadata()["dataset"])


def test_what_is_no_dataset_or_was_changed_is_named(tmp_path):
    file = tiny_text_task().save(tmp_path / "data.safetensors")
    whole, head, arrays = file.read_bytes(), head_of(file), load_file(file)
    with pytest.raises(qfl.QflError, match=r"none\.safetensors cannot be read"):
        qfl.FixedTask.load(tmp_path / "none.safetensors")
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(qfl.QflError, match=r"data\.safetensors cannot be read"):
        qfl.FixedTask.load(file)
    save_file(arrays, file)
    with pytest.raises(qfl.QflError, match="is no dataset of this version"):
        qfl.FixedTask.load(file)
    save_file(arrays, file, metadata={"dataset": json.dumps(head | {"given": 3})})
    with pytest.raises(qfl.QflError, match="holds no dataset that can be made"):
        qfl.FixedTask.load(file)
    name = next(name for name in arrays if arrays[name].shape == (240, 10) and arrays[name].dtype != bool)
    changed = arrays[name].copy()
    changed[0, 0] += 1
    save_file({**arrays, name: changed}, file, metadata={"dataset": json.dumps(head)})
    with pytest.raises(qfl.QflError, match="was changed since it was saved"):
        qfl.FixedTask.load(file)
