"""Golden vectors and other things several tests read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qfl_interp as qfl

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
