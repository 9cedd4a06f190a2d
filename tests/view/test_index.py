"""The list of the viewer: what it finds below a folder and says of it; it reads again only what changed."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qfl_interp.analyses.view.index import Index, as_json, losses, spark
from qfl_interp.runs import folder_lock
from qfl_interp.runs.listing import places


def copy(run, place: Path) -> Path:
    return Path(shutil.copytree(run.path, place))


@pytest.fixture
def folder(tiny_run, tmp_path) -> Path:
    """A finished run, one that was stopped, a damaged one in each way, a suite file and a sweep."""
    copy(tiny_run, tmp_path / "seeds" / "done")
    stopped = copy(tiny_run, tmp_path / "seeds" / "stopped <img src=x onerror=alert(1)>")
    shutil.rmtree(stopped / "checkpoints" / f"step_{tiny_run.steps[-1]:08d}")
    (copy(tiny_run, tmp_path / "no json") / "config.json").write_text("{")
    (copy(tiny_run, tmp_path / "no config") / "config.json").unlink()
    with open(copy(tiny_run, tmp_path / "no row") / "metrics.jsonl", "ab") as file:
        file.write(b"[]\n")
    (tmp_path / "pythia.suite").write_text('{"folder": "models"}')
    (tmp_path / "bad.suite").write_text("[]")
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "sweep.json").write_text('{"name": "widths"}')
    (tmp_path / "a model").mkdir()
    (tmp_path / "a model" / "config.json").write_text('{"model_type": "gpt2"}')
    return tmp_path


def test_entries_name_what_there_is(folder, tiny_run):
    found = {entry.key: entry for entry in Index(folder).entries()}
    assert {key: entry.state for key, entry in found.items()} == {
        "seeds/done": "finished",
        "seeds/stopped <img src=x onerror=alert(1)>": "stopped",
        "no json": "damaged",
        "no config": "damaged",
        "no row": "damaged",
        "pythia.suite": "suite",
        "bad.suite": "damaged",
        "grid": "sweep",
    }
    done = found["seeds/done"]
    last = tiny_run.metrics.iloc[-1]
    assert (done.task, done.seed, done.run_id) == ("addition 6", 3, tiny_run.run_id)
    assert (done.step, done.n_steps) == (40, 40)
    assert done.loss == last["val_loss_answer"]
    assert done.size == f"{tiny_run.n_parameters:,} parameters"
    assert "config.json" in found["no json"].fault
    assert "has no config.json" in found["no config"].fault
    assert "metrics.jsonl is damaged" in found["no row"].fault
    assert "bad.suite" in found["bad.suite"].fault


def test_a_damaged_run_leaves_the_others(folder):
    (folder / "seeds" / "done" / "metrics.jsonl").write_bytes(b"\xff\xfe")
    states = {entry.key: entry.state for entry in Index(folder).entries()}
    assert states["seeds/done"] == "finished"  # no whole row yet: none is wrong
    assert len(states) == 8


def test_what_lies_inside_a_run_is_not_searched(folder, tiny_run):
    inside = folder / "seeds" / "done"
    copy(tiny_run, inside / "checkpoints" / "x")
    copy(tiny_run, inside / "fork")
    keys = [place.path.relative_to(folder).as_posix() for place in places(folder) if place.kind == "run"]
    assert "seeds/done/fork" in keys
    assert "seeds/done/checkpoints/x" not in keys


def test_entries_follow_their_files(folder, monkeypatch):
    index = Index(folder)
    index.entries()
    read = []
    monkeypatch.setattr("qfl_interp.analyses.view.index.last_metrics", lambda path: read.append(path) or {"step": 7})
    index.entries(anew=True)
    assert read == []
    metrics = folder / "seeds" / "done" / "metrics.jsonl"
    os.utime(metrics, ns=(1, 1))
    assert {e.key: e.step for e in index.entries(watch=["seeds/done"])}["seeds/done"] == 7
    assert read == [metrics]
    shutil.rmtree(folder / "seeds")
    assert "seeds/done" not in {entry.key for entry in index.entries(anew=True)}
    assert index.path("seeds/done") is None


def test_a_run_that_a_process_writes_is_training(folder):
    stopped = folder / "seeds" / "stopped <img src=x onerror=alert(1)>"
    with folder_lock.FolderLock(stopped, "somebody trains in"):
        states = {entry.key: entry.state for entry in Index(folder).entries()}
    assert states[f"seeds/{stopped.name}"] == "training"
    assert not folder_lock.is_claimed(stopped)


def test_keys_open_nothing_that_is_not_listed(folder):
    index = Index(folder / "seeds")
    assert index.path("done") == folder / "seeds" / "done"
    assert index.path("../no json") is None
    assert index.path("/etc") is None


def test_losses_are_those_of_the_metrics(tiny_run):
    validated = tiny_run.metrics.dropna(subset=["val_loss_answer"])
    found = losses(tiny_run.path / "metrics.jsonl")
    assert found == list(zip(validated["step"], validated["val_loss_answer"], strict=True))


def test_losses_of_a_large_file_are_samples(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "train_loss": 1 / (step + 1), "sha256": "0" * 16} for step in range(5_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("qfl_interp.analyses.view.index._WHOLE_BYTES", 1)
    monkeypatch.setattr("qfl_interp.analyses.view.index._SAMPLE_BYTES", 300)
    found = losses(path)
    assert 20 <= len(found) <= 200
    assert all(loss == 1 / (step + 1) for step, loss in found)
    assert found[-1][0] == 4_999
    assert losses(tmp_path / "none.jsonl") == []


def test_a_spark_spans_its_box():
    points = spark([(0, 2.0), (9, 1.0), (99, 0.0)])
    assert points == ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0))
    assert spark([(5, 1.0)]) == ()
    assert spark([(1, math.nan), (2, 1.0), (8, 1.0)])[-1] == (1.0, 0.0)


def test_json_has_no_nan(folder):
    index = Index(folder)
    (entry,) = (one for one in index.entries() if one.key == "seeds/done")
    (row,) = json.loads(as_json([entry._replace(loss=math.nan)]))
    assert row["loss"] is None
    assert row["key"] == "seeds/done"


def test_listing_loads_no_torch_and_no_dash(folder):
    code = (
        "import sys; from pathlib import Path; from qfl_interp.analyses.view.index import Index; "
        f"found = Index(Path({str(folder)!r})).entries(); "
        "print(len(found), {'torch', 'dash', 'pandas', 'plotly'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["8", "set()\n"]
