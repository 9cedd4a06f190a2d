"""The metrics file: no line is taken for what it is not, and nothing that was cut off goes unseen."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp.runs import checkpoint as ckpt
from qfl_interp.runs.config import METRICS_FILE, TASK_FILE
from qfl_interp.runs.metrics import all_lines, metric_lines, read_metrics
from qfl_interp.runs.writer import RunWriter

ROWS = [{"step": step, "train_loss": 1 / (step + 1), "seconds": 0.1 * step} for step in range(6)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines, state = all_lines(ROWS[:2], "run")
    path.write_bytes(lines + metric_lines(ROWS[2:], state)[0])
    return path


def test_rows_come_back_whatever_pieces_they_were_written_in(file):
    found = read_metrics(file, "run")
    assert found.rows == ROWS
    assert found.checked
    assert file.read_bytes() == all_lines(ROWS, "run")[0]
    assert found.state == all_lines(ROWS, "run")[1]
    for line in file.read_text().splitlines():
        assert len(json.loads(line)["sha256"]) == 16, "plain JSON for everybody else"


def test_no_flipped_bit_goes_unseen(file):
    whole = file.read_bytes()
    for place in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(qfl.QflError, match=r"line \d of .*metrics.jsonl"):
            read_metrics(file, "run")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:2], b"", *lines[2:]],
        lambda lines: [*lines, b"[" * 100_000],
        lambda lines: [*lines, b"3"],
        lambda lines: [*lines, b"{}"],
        lambda lines: [*lines, b'{"step": "6"}'],
        lambda lines: [*lines, b'{"step": 6, "train_loss": NaN}'],
        lambda lines: all_lines(ROWS, "another run")[0].splitlines(),
    ],
    ids=["first", "middle", "order", "twice", "empty", "bomb", "number", "object", "text", "bare", "another run"],
)
def test_lines_that_are_not_the_runs_are_named(file, change):
    file.write_bytes(b"\n".join(change(file.read_bytes().splitlines())) + b"\n")
    with pytest.raises(qfl.QflError, match=r"line \d of .*metrics.jsonl"):
        read_metrics(file, "run")


def test_lines_of_before_are_taken_and_covered_by_what_follows(file):
    bare = [json.dumps(row).encode() for row in ROWS[:3]]
    file.write_bytes(b"\n".join(bare) + b"\n")
    old = read_metrics(file, "run")
    assert old.rows == ROWS[:3]
    assert not old.checked
    file.write_bytes(file.read_bytes() + metric_lines(ROWS[3:], old.state)[0])
    assert read_metrics(file, "run").rows == ROWS
    changed = file.read_bytes().replace(b"0.5", b"0.6", 1)
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    with pytest.raises(qfl.QflError, match=r"line 4 of .*or one before it, is not what was written"):
        read_metrics(file, "run")


@pytest.mark.parametrize("what", ["folder", "bytes"])
def test_what_cannot_be_read_is_named(file, what):
    file.unlink()
    file.mkdir() if what == "folder" else file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(qfl.QflError, match=r"metrics.jsonl"):
        read_metrics(file, "run")


# A run's


def test_a_run_without_digests_is_of_before_or_damaged(run_copy):
    file = run_copy.path / METRICS_FILE
    rows = read_metrics(file, run_copy.config.digest).rows
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(qfl.QflError, match="have lost their digests"):
        _ = run_copy.metrics
    (run_copy.path / TASK_FILE).unlink()
    assert len(run_copy.metrics) == 41
    found = run_copy.verify()
    assert found
    assert any("lines without a checksum" in sentence for sentence in found.unchecked)


def test_verify_names_checkpoints_that_should_be_there(run_copy):
    assert run_copy.verify()
    for step in run_copy.steps:
        shutil.rmtree(run_copy.path / "checkpoints" / ckpt.step_name(step))
    found = run_copy.verify()
    assert "that were saved: 0, 1, 3" in found.problems[0]
    assert not found.finished


def test_metrics_that_lost_their_end_are_trained_again(tmp_path, addition, model_config):
    """After a power cut the disk may hold a checkpoint and not the rows before it."""
    train = qfl.TrainConfig(n_steps=12, batch_size=8, n_val=16, n_checkpoints=6, save_optimizer=True)
    run = qfl.train(addition, model_config, train, tmp_path / "run", progress=False)
    file = run.path / METRICS_FILE
    whole, lines = run.metrics, file.read_bytes().splitlines(True)
    file.write_bytes(b"".join(lines[:6]))
    with pytest.raises(qfl.QflError, match="ends at step 5, but there is a checkpoint of step 12"):
        _ = run.metrics
    assert any("ends at step 5" in problem for problem in run.verify().problems)
    again = qfl.resume(run.path, progress=False)
    columns = [name for name in whole if name not in ("seconds", "tokens_per_s")]
    np.testing.assert_array_equal(again.metrics[columns], whole[columns])
    assert again.verify()


def test_a_hole_is_never_trained_over(run_copy):
    """A file of before, whose lines are not checked, with a stretch missing in the middle."""
    file = run_copy.path / METRICS_FILE
    (run_copy.path / TASK_FILE).unlink()
    rows = read_metrics(file, run_copy.config.digest).rows
    file.write_text("".join(json.dumps(row) + "\n" for row in rows if not 12 <= row["step"] <= 40))
    file.write_text(file.read_text() + json.dumps(rows[-1]) + "\n")
    shutil.rmtree(run_copy.path / "checkpoints" / "step_00000040")
    before = {path: path.read_bytes() for path in run_copy.path.rglob("*") if path.is_file()}
    with pytest.raises(qfl.QflError, match="must have a row for every step, but 40 follows 11"):
        qfl.resume(run_copy.path, progress=False)
    assert {path: path.read_bytes() for path in run_copy.path.rglob("*") if path.is_file()} == before


def test_rows_are_on_the_disk_before_the_checkpoint_that_follows(run_copy, monkeypatch):
    order = []
    monkeypatch.setattr("os.fsync", lambda number: order.append("sync"))
    monkeypatch.setattr(ckpt, "save_checkpoint", lambda folder, checkpoint: order.append(folder.name) or folder)
    with RunWriter(run_copy.path, run_copy.config, run_copy.task, resume=True) as writer:
        writer.truncate_metrics(40)
        order.clear()
        writer.append_metrics([{"step": 41}])
        writer.save(run_copy.load_checkpoint(40), keep_optimizer=True)
    assert order == ["sync", "checkpoints"]


def test_another_runs_configuration_touches_nothing(run_copy, tmp_path, addition, model_config):
    """With `config.json` of another run, checkpoints that were refused must not be overwritten."""
    train = qfl.TrainConfig(n_steps=40, batch_size=16, n_val=32, n_checkpoints=8, seed=9)
    other = qfl.train(addition, model_config, train, tmp_path / "other", progress=False)
    shutil.copy(other.path / "config.json", run_copy.path / "config.json")
    before = {path: path.read_bytes() for path in run_copy.path.rglob("*") if path.is_file()}
    for damage in (lambda: None, lambda: (run_copy.path / METRICS_FILE).unlink()):
        damage()
        before = {path: data for path, data in before.items() if path.exists()}
        with pytest.raises(qfl.QflError, match=r"is not what was written|is of another run"):
            qfl.resume(run_copy.path, progress=False)
        assert {path: path.read_bytes() for path in run_copy.path.rglob("*") if path.is_file()} == before
