"""The driver of analyses over checkpoints: every item once, in one process or several, and honest failures."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from analyses.checkpoints import over_checkpoints
from qfl_interp.errors import QflError


def context(folder: Path) -> Path:
    """Leaves a mark for every process that prepares."""
    (folder / f"prepared_{os.getpid()}").touch()
    return folder


def write(folder: Path, item: int) -> None:
    """One item: refuses to be done twice."""
    (folder / f"done_{item}").open("x").close()


def write_unless_three(folder: Path, item: int) -> None:
    if item == 3:
        raise QflError("step 3 cannot be read.")
    write(folder, item)


def done(folder: Path) -> set[int]:
    return {int(path.name.removeprefix("done_")) for path in folder.glob("done_*")}


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_is_done_once(tmp_path, jobs):
    over_checkpoints(range(5), functools.partial(context, tmp_path), write, label="x", jobs=jobs, progress=False)
    assert done(tmp_path) == set(range(5))
    prepared = [int(path.name.removeprefix("prepared_")) for path in tmp_path.glob("prepared_*")]
    assert (prepared == [os.getpid()]) if jobs == 1 else (os.getpid() not in prepared and 1 <= len(prepared) <= 2)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failure_is_raised_and_what_was_finished_stays(tmp_path, jobs):
    prepare = functools.partial(context, tmp_path)
    with pytest.raises(QflError, match="step 3 cannot be read"):
        over_checkpoints(range(4), prepare, write_unless_three, label="x", jobs=jobs, progress=False)
    assert done(tmp_path) == {0, 1, 2}


def test_nothing_to_do_prepares_nothing(tmp_path):
    over_checkpoints([], functools.partial(context, tmp_path), write, label="x", progress=False)
    assert not list(tmp_path.iterdir())


def test_jobs_below_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        over_checkpoints([1], functools.partial(context, tmp_path), write, label="x", jobs=0, progress=False)
