"""The driver of analyses over checkpoints: every item once, in one process or several, and honest failures."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qfl_interp.analyses.checkpoints import over_checkpoints
from qfl_interp.errors import QflError
from qfl_interp.runs import workplace


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


def write_unless_killed(folder: Path, item: int) -> None:
    """Like a worker that the system kills where memory runs out."""
    if item == 1:
        while not (folder / "done_0").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, item)


@pytest.mark.slow
def test_a_killed_worker_is_one_clear_error_and_finished_work_stays(tmp_path):
    prepare = functools.partial(context, tmp_path)
    with pytest.raises(QflError, match=r"fitting: a worker process died at 1.*memory.*kept.*fewer jobs than 2"):
        over_checkpoints([0, 1], prepare, write_unless_killed, label="fitting", jobs=2, progress=False)
    assert done(tmp_path) == {0}


# Two workers that compute for longer than any test: the second half of the file is what each of them imports.
_LONG = """
import functools, os, sys, time
from pathlib import Path
from qfl_interp.analyses.checkpoints import over_checkpoints

def nothing():
    return None

def work(folder, _context, item):
    (folder / f"pid_{os.getpid()}").touch()
    time.sleep(300)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    over_checkpoints([0, 1], nothing, functools.partial(work, folder), label="x", jobs=2, progress=False)
"""


def group_members(group: int) -> set[int]:
    """Live processes of a process group."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(its_group) == group and state != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, how):
    script = tmp_path / "long.py"
    script.write_text(_LONG)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("pid_*"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(group_members(process.pid)) >= 3  # the parent and its workers
        process.send_signal(how)
        process.wait(timeout=10)
        deadline = time.monotonic() + 5
        while group_members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert group_members(process.pid) == set()
    finally:
        if group_members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def enter_elsewhere(folder: Path, item: int) -> None:
    """Write where a run's own folder cannot be, once both workers are there."""
    (folder / f"here_{os.getpid()}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("here_*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workplace.enter(folder / "own", folder / "home")
    write(folder, item)


@pytest.mark.slow
def test_workers_say_once_where_they_write(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(workplace, "_SAID", [])
    prepare = functools.partial(context, tmp_path)
    over_checkpoints(range(4), prepare, enter_elsewhere, label="x", jobs=2, progress=False)
    assert done(tmp_path) == set(range(4))
    assert len(list(tmp_path.glob("here_*"))) == 2
    workplace.enter(tmp_path / "own", tmp_path / "home")
    assert capfd.readouterr().err.count("cannot be written, so results go to") == 1


@pytest.mark.slow
def test_a_single_item_that_is_left_is_done_as_the_others_were(tmp_path):
    """In a process of its own, on one thread: an interrupted call ends in the bits of an uninterrupted one."""
    over_checkpoints([4], functools.partial(context, tmp_path), write, label="x", jobs=2, progress=False)
    assert done(tmp_path) == {4}
    (mark,) = tmp_path.glob("prepared_*")
    assert mark.name != f"prepared_{os.getpid()}"
