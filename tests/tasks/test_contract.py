"""Every registered task keeps the contract; a broken one is caught."""

from __future__ import annotations

import numpy as np
import pytest
from task_contract import LENGTHS

import qfl_interp as qfl
from qfl_interp.data.registry import task_names
from qfl_interp.testing import check_task
from qfl_interp.testing import task_contract as contract


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    ("name", "length"), [(n, length) for n in task_names() for length in (None, *LENGTHS.get(n, ()))]
)
def test_contract(name, length, check):
    check(qfl.load_task(name, length))


def _broken(method: str, replacement):
    task = qfl.load_task("addition", 4)
    setattr(task, method, replacement(task))
    return task


@pytest.mark.parametrize(
    ("check", "method", "replacement"),
    [
        ("check_encoding", "decode", lambda t: lambda tokens: np.zeros((len(tokens), 8), dtype=np.uint8)),
        ("check_splits", "canonical", lambda t: lambda e: np.arange(len(e), dtype=np.uint64)[:, None] * 3),
        ("check_determinism", "sample", lambda t: lambda rng, n: np.random.randint(0, 2, (n, 8)).astype(np.uint8)),  # noqa: NPY002
        ("check_pairs", "sample_pairs", lambda t: lambda rng, n, f, r: qfl.Pairs(t.sample(rng, n), t.sample(rng, n))),
    ],
)  # fmt: skip
def test_a_broken_task_is_caught(check, method, replacement):
    with pytest.raises(AssertionError):
        getattr(contract, check)(_broken(method, replacement))


def test_all_that_is_broken_is_listed():
    task = qfl.load_task("addition", 4)
    check_task(task)
    task.sample_pairs = lambda rng, n, feature, label: 1 / 0
    task.canonical = lambda examples: np.arange(len(examples), dtype=np.uint64)[:, None] * 3
    with pytest.raises(qfl.QflError) as caught:
        check_task(task)
    said = str(caught.value)
    assert "breaks 2 of the 9 rules of a task" in said
    assert "check_pairs: ZeroDivisionError: division by zero" in said
    assert "check_splits: examples of one canonical form are in one split" in said or "check_splits: no canon" in said
