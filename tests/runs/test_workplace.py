"""Runs whose folder cannot be written: results go to the user's folder, finished tables are read where they are."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.activations.store import store_of
from qfl_interp.analyses import capture, probe, report
from qfl_interp.errors import QflError
from qfl_interp.runs import workplace
from qfl_interp.runs.checkpoint import write_atomic

PROBES = qfl.ProbeConfig(n_train=60, n_test=40)


def files(folder: Path) -> dict[str, float]:
    """Everything below a folder, and when it was written."""
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The user's folder; nothing was said yet."""
    monkeypatch.setenv("QFL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(workplace, "_SAID", [])
    return tmp_path / "home"


@pytest.fixture
def read_only(run_copy, home, monkeypatch) -> qfl.Run:
    """A run with a finished probe of one feature, that nobody may write to: tests may run as root."""
    probe(run_copy, "carry", steps="last", config=PROBES, progress=False)
    own = run_copy.path.absolute()
    monkeypatch.setattr(workplace, "is_writable", lambda folder: own not in (folder, *folder.parents))
    return run_copy


def test_finished_tables_are_shown_and_nothing_is_written(read_only, home, capsys):
    before = files(read_only.path)
    found = probe(read_only, "carry", steps="last", config=PROBES, progress=False)
    assert set(found.rows.step) == {0, 40}
    assert files(read_only.path) == before
    assert not home.exists()
    assert capsys.readouterr().err == ""


def test_new_parts_go_to_the_users_folder_and_are_found_there(read_only, home, capsys, monkeypatch):
    before = files(read_only.path)
    first = probe(read_only, "carry", steps="all", config=PROBES, progress=False)
    assert files(read_only.path) == before
    (own,) = home.iterdir()
    assert own == read_only.workplace
    assert own.name.startswith(f"{read_only.run_id}-")
    # What was finished before is not computed again.
    assert not list((own / "analyses" / "probe").glob("_step_00000040*"))
    said = capsys.readouterr().err
    assert said.count("cannot be written, so results go to") == 1
    assert str(read_only.path) in said
    assert str(own) in said
    monkeypatch.setattr(type(read_only), "load_model", lambda *_, **__: pytest.fail("computed again"))
    again = probe(read_only, "carry", steps="all", config=PROBES, progress=False)
    pd.testing.assert_frame_equal(first.rows, again.rows)


def test_another_copy_of_the_run_has_a_folder_of_its_own(read_only, tmp_path, monkeypatch):
    monkeypatch.setattr(workplace, "is_writable", lambda folder: False)
    other = qfl.Run.open(shutil.copytree(read_only.path, tmp_path / "other"))
    assert other.run_id == read_only.run_id
    assert other.workplace != read_only.workplace


@pytest.mark.slow
def test_activations_and_pages_too(read_only, home):
    before = files(read_only.path)
    capture(read_only, "resid_post", n=20, n_test=10, progress=False)
    written = report(read_only, "carry", "all", config=PROBES, n_trials=2, progress=False)
    assert written == read_only.workplace / "report.html"
    assert written.exists()
    assert len(store_of(read_only).entries()) == 2 * 2
    assert files(read_only.path) == before


def test_activations_of_the_run_itself_are_read(run_copy, home, monkeypatch):
    capture(run_copy, "resid_post", n=20, n_test=10, progress=False)
    monkeypatch.setattr(workplace, "is_writable", lambda folder: False)
    monkeypatch.setattr(type(run_copy), "load_model", lambda *_, **__: pytest.fail("captured again"))
    assert len(capture(run_copy, "resid_post", n=20, n_test=10, progress=False).rows) == 2 * 2
    assert not home.exists()


def test_a_users_folder_that_cannot_be_made_is_one_clear_error(read_only, home):
    home.write_text("a file")
    with pytest.raises(QflError, match=r"writing .*home.* failed"):
        probe(read_only, "carry", steps="all", config=PROBES, progress=False)


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_is_writable_where_files_can_be_made(tmp_path, monkeypatch, there):
    asked = tmp_path if there else tmp_path / "not" / "yet"
    assert workplace.is_writable(asked)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert not workplace.is_writable(asked)


def test_tensors_come_from_where_their_part_is(read_only):
    table = read_only.table("probe")
    (part,) = [part for part in table.parts() if part.startswith("step_00000040")]
    assert table.read_tensors(part).keys() == read_only.table("probe").read_tensors(part).keys()
    table.write("new", pd.DataFrame({"step": [1]}), {"w": torch.ones(2)})
    np.testing.assert_array_equal(table.read_tensors("new")["w"], np.ones(2))
    assert {part, "new"} <= set(table.parts())
    assert table.verify() == []


def test_files_are_written_with_the_mode_of_the_umask(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "page.html", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o640
