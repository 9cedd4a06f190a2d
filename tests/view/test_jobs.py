"""Lenses in the background: what is said of a job at each moment, whoever looks."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

import qfl_interp as qfl
from qfl_interp.analyses.view import jobs
from qfl_interp.cli.options import options_of, words_of
from qfl_interp.progress import PROGRESS_FILE, progress_bar
from qfl_interp.runs.folder_lock import process_mark


def write_job(run: qfl.Run, *, process: dict, state: dict | None = None, log: str = "") -> None:
    """The files of a job of `probe`."""
    folder = run.workplace / jobs.JOBS / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    said = {"command": ["probe", "--", "run"], "at": 1.0, "process": process}
    (folder / jobs.STARTED).write_text(json.dumps(said))
    if state is not None:
        (folder / jobs.STATE).write_text(json.dumps(state))
    (folder / jobs.LOG).write_text(log)


def test_a_job_is_what_its_process_and_its_files_say(run_copy):
    assert jobs.jobs(run_copy) == []
    alive, gone = process_mark(os.getpid()), process_mark(os.getpid()) | {"started": "1"}
    write_job(run_copy, process=alive)
    (job,) = jobs.jobs(run_copy)
    assert (job.lens, job.state, job.is_over, job.progress) == ("probe", "queued", False, None)
    write_job(run_copy, process=alive, state={"state": "running"})
    done = {"what": "probing", "done": 2, "total": 5, "detail": "step_00000003"}
    (run_copy.workplace / jobs.JOBS / "probe" / jobs.PROGRESS).write_text(json.dumps(done))
    (job,) = jobs.jobs(run_copy)
    assert job.state == "running"
    assert job.progress == ("probing", 2.0, 5.0, "step_00000003")
    write_job(run_copy, process=gone, state={"state": "running"}, log="\x1b[31merror:\x1b[0m first\nlast")
    (job,) = jobs.jobs(run_copy)
    assert (job.state, job.ended, job.is_over) == ("failed", None, True)
    assert job.lines.startswith("error: first\nlast\nIts process is gone")
    (run_copy.workplace / jobs.JOBS / "probe" / jobs.STOP).touch()
    assert [job.state for job in jobs.jobs(run_copy)] == ["stopped"]
    write_job(run_copy, process=gone, state={"state": "finished", "ended": 9.0})
    assert [(job.state, job.ended) for job in jobs.jobs(run_copy)] == [("finished", 9.0)]
    (run_copy.workplace / jobs.JOBS / "probe" / jobs.STARTED).write_text("[")  # damaged: no job, and no error
    assert jobs.jobs(run_copy) == []


def test_one_job_of_a_lens_at_a_time(run_copy, monkeypatch):
    monkeypatch.setattr(jobs, "_spawn", lambda *_: pytest.fail("no process is started"))
    write_job(run_copy, process=process_mark(os.getpid()), state={"state": "running"})
    with pytest.raises(qfl.QflError, match=r"probe of .* is running already. Stop it first"):
        jobs.start(run_copy, "probe")


def test_what_is_wrong_is_said_before_a_process_starts(run_copy, monkeypatch):
    monkeypatch.setattr(jobs, "_spawn", lambda *_: pytest.fail("no process is started"))
    for lens, options, message in (
        ("prob", {}, r"no lens is named 'prob'. Did you mean 'probe'"),
        ("probe", {"stepz": "all"}, r"no option of probe is named 'stepz'. Did you mean 'steps'"),
        ("probe", {"n_train": "many"}, r"probe: Invalid value for '--n-train'"),
        ("train", {}, "no lens is named 'train'"),
        ("report", {}, "no lens is named 'report'"),
        ("../../probe", {}, "no lens is named '../../probe'"),
    ):
        with pytest.raises(qfl.QflError, match=message):
            jobs.start(run_copy, lens, options)
    assert jobs.jobs(run_copy) == []


def test_words_are_those_of_the_command_line(run_copy):
    path = run_copy.path
    given = {"features": "carry --out=/x", "labels": ["1", "2"], "steps": "last", "attribution": False, "n_pairs": "8"}
    assert words_of("patch", path, given) == [
        "patch", "--label=1", "--label=2", "--no-attribution", "--pairs=8", "--quiet", "--", str(path), "carry",
        "--out=/x",
    ]  # fmt: skip
    assert words_of("ablate_units", path, {"site": "--out=/x"})[1] == "--site=--out=/x"
    options = {one.name: one for one in options_of("patch")}
    assert not {"run", "out", "as_json", "quiet", "replay"} & set(options)
    assert (options["n_pairs"].kind, options["n_pairs"].default) == ("int", 64)
    assert (options["features"].kind, options["features"].words) == ("list", ())
    assert (options["attribution"].kind, options["attribution"].default) == ("flag", True)
    assert options["steps"].help.startswith("all, last, log:20")


def test_every_registered_lens_can_be_started_with_its_defaults(run_copy):
    for lens in jobs.startable(run_copy):
        assert words_of(lens, run_copy.path, {})[-2:] == ["--", str(run_copy.path)]


def test_a_bar_writes_how_far_it_is_where_somebody_asks(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    with progress_bar(enabled=False) as bar:
        bar.update(bar.add_task("probing", total=2, detail=""), advance=1)
    assert not file.exists()
    monkeypatch.setenv(PROGRESS_FILE, str(file))
    with progress_bar(enabled=False) as bar:
        task = bar.add_task("probing", total=2, detail="")
        assert json.loads(file.read_text()) == {"what": "probing", "done": 0, "total": 2, "detail": ""}
        bar.update(task, advance=2, detail="step_00000010")
    assert json.loads(file.read_text()) == {"what": "probing", "done": 2, "total": 2, "detail": "step_00000010"}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def wait(run: qfl.Run, lens: str, *states: str, seconds: float = 200) -> jobs.Job:
    """The job of a lens once it is in one of these states."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = {job.lens: job for job in jobs.jobs(run)}
        if lens in found and found[lens].state in states:
            return found[lens]
        time.sleep(0.1)
    raise AssertionError(f"{lens} is not {states}: {jobs.jobs(run)}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lens_runs_beside_the_viewer_and_others_wait_stop_and_go_with_their_run(run_copy):
    first = jobs.start(run_copy, "ablate_units", {"n": 8, "steps": "log:2"})
    assert not first.is_over
    jobs.start(run_copy, "validate", {"steps": "last"})
    jobs.start(run_copy, "patch", {"features": "nothing"})
    jobs.stop(run_copy, "validate")
    done = wait(run_copy, "ablate_units", "finished", "failed")
    assert done.state == "finished", done.lines
    assert done.progress is not None
    assert (done.progress.done, done.progress.total) == (2, 2)
    assert done.ended > first.started
    assert set(run_copy.table("ablate_units").read()["step"]) == {run_copy.steps[0], run_copy.steps[-1]}
    assert "stopped" in wait(run_copy, "validate", "stopped", "finished").lines
    assert not run_copy.table("validate").parts()
    failed = wait(run_copy, "patch", "failed")
    assert "'nothing'" in failed.lines.replace("\n", " ")
    # A run that is deleted under its job takes it along, and does not come back.
    jobs.start(run_copy, "curvature", {})
    started = json.loads((run_copy.path / jobs.JOBS / "curvature" / jobs.STARTED).read_text())
    shutil.rmtree(run_copy.path)
    from qfl_interp.runs.folder_lock import runs

    until = time.monotonic() + 200
    while runs(started["process"]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not runs(started["process"])
    assert not run_copy.path.exists()
    assert jobs.jobs(run_copy) == []
