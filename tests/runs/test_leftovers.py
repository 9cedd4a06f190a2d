"""What killed writers leave behind goes with the next writer: at once where a lock says so, else after a day."""

from __future__ import annotations

import os
import time
from pathlib import Path

import filelock
import pandas as pd
import pytest

from qfl_interp.activations.store_writing import locked
from qfl_interp.report.writing import write_page
from qfl_interp.runs.scratch import scratch_folder
from qfl_interp.runs.table import Table


def aged(path: Path, days: float) -> Path:
    """The file or folder as if it had been written so long ago."""
    then = time.time() - days * 86_400
    os.utime(path, (then, then))
    return path


def left(path: Path, days: float) -> Path:
    """A file that a writer left so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    return aged(path, days)


def test_tables_lose_what_is_a_day_old(tmp_path):
    old, young = left(tmp_path / ".tmp-a.parquet-1", 1.1), left(tmp_path / ".tmp-b.parquet-2", 0.9)
    other = left(tmp_path / "_old.json", 3)
    Table(tmp_path).write("c", pd.DataFrame({"step": [1]}))
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


def test_pages_lose_their_own_leftovers_alone(tmp_path):
    own, young = left(tmp_path / ".tmp-report.html-1", 2), left(tmp_path / ".tmp-report.html-2", 0.5)
    others = left(tmp_path / ".tmp-somebody", 9)
    assert write_page(tmp_path / "report.html", "new").read_text() == "new"
    assert (own.exists(), young.exists(), others.exists()) == (False, True, True)


def test_the_holder_of_a_stores_lock_removes_them_at_once(tmp_path):
    young = left(tmp_path / ".tmp-resid_post.json-1", 0)
    with locked(tmp_path):
        assert not young.exists()


@pytest.mark.parametrize("held", [True, False])
def test_scratch_folders_of_dead_processes_go(tmp_path, monkeypatch, held):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, young = tmp_path / "qfl-test-old", tmp_path / "qfl-test-young"
    for folder in (old, young):
        (folder / "run").mkdir(parents=True)
    aged(old, 2)
    lock = filelock.FileLock(old / ".lock")
    if held:
        lock.acquire()
        aged(old, 2)
    with scratch_folder("qfl-test-") as mine:
        assert mine.is_dir()
        assert young.is_dir()
        assert old.exists() == held
    assert not mine.exists()
    lock.release()
