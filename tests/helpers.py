"""Golden vectors, covering sets, folders built once, and other things several tests take."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp.training.loop import TrainingLoop

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """One file of golden vectors."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def check_golden(task: qfl.Task, group: dict[str, Any], keys: dict[str, str]) -> None:
    """Everything a group of golden examples pins; `keys` says which of its features is which of ours."""
    examples = np.array([e["input"] for e in group["examples"]])
    batch = task.encode(examples)
    assert batch.tokens.tolist() == [e["ids"] for e in group["examples"]]
    assert batch.loss_mask.tolist() == [[bool(m) for m in e["loss_mask"]] for e in group["examples"]]
    assert ["".join(task.str_tokens(row)) for row in batch.tokens] == [e["text"] for e in group["examples"]]
    assert task.n_ctx == group["sequence_tokens"]
    for key, name in keys.items():
        feature = task.features[name]
        expected = [e["features"][key] for e in group["examples"]]
        assert feature.labels(examples).tolist() == [e["labels"] for e in expected]
        assert feature.positions(examples).tolist() == [e["token_index"] for e in expected]
    np.testing.assert_array_equal(task.decode(batch.tokens), examples)


def pairwise(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Rows of one value an axis in which any two values of two axes meet: far fewer than all combinations."""
    values = [list(axis) for axis in axes]

    def meetings(row: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(row), 2))

    left = {row: meetings(row) for row in itertools.product(*(range(len(axis)) for axis in values))}
    wanted = set().union(*left.values())
    chosen = []
    while wanted:
        best = max(left, key=lambda row: len(left[row] & wanted))
        wanted -= left.pop(best)
        chosen.append(tuple(axis[index] for axis, index in zip(values, best, strict=True)))
    return chosen


class BuiltOnce:
    """Folders that the first process of a session to ask for them builds, and the others read.

    Args:
        basetemp: pytest's folder of this process.
        is_worker: Whether xdist started it: then the session's folder is the one above.
    """

    def __init__(self, basetemp: Path, is_worker: bool) -> None:
        self.folder = (basetemp.parent if is_worker else basetemp) / "built_once"
        self.folder.mkdir(exist_ok=True)

    def __call__(self, name: str, build: Callable[[Path], object]) -> Path:
        """The folder `name`, which `build` has filled."""
        done = self.folder / f"{name}.done"
        with filelock.FileLock(self.folder / f"{name}.lock"):
            if not done.exists():
                build(self.folder / name)
                done.touch()
        return self.folder / name


class FullDisk:
    """Makes the n-th flush to disk, counted from 0, and all later ones fail as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int, number: int = errno.ENOSPC) -> None:
        self.calls = 0
        true_fsync = os.fsync

        def fsync(descriptor: int) -> None:
            self.calls += 1
            if self.calls > fails_at:
                raise OSError(number, os.strerror(number))
            true_fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)


@contextmanager
def stopped_after(n_updates: int) -> Iterator[None]:
    """Training within is stopped before its next update, as by a kill: nothing is saved on the way out."""
    update, done = TrainingLoop._update, []

    def stops(loop: TrainingLoop) -> None:
        if len(done) == n_updates:
            raise KeyboardInterrupt
        done.append(1)
        update(loop)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingLoop, "_update", stops)
        with pytest.raises(KeyboardInterrupt):
            yield
