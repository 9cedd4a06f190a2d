"""Files that cannot be used and memory that cannot be had: one line and exit status 1, in every command."""

from __future__ import annotations

import errno
import shutil
import sys

import numpy as np
import pytest
import torch

from qfl_interp.cli.faults import sentence
from qfl_interp.cli.main import main

SMALL = ["--n-train", "60", "--n-test", "40", "--quiet"]


def spoken(error: Exception) -> str:
    text = sentence(error)
    assert text is not None
    assert "\n" not in text
    return text


def raised(function, *arguments) -> Exception:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        function(*arguments)
    return caught.value


def test_memory_that_cannot_be_had_is_one_line():
    for error in (raised(torch.empty, 2**50), raised(np.empty, 2**50), MemoryError()):
        assert spoken(error).startswith("out of memory: ")
        assert "--jobs" in spoken(error)
    assert "4,194,304.00 GiB" in spoken(raised(torch.empty, 2**50))
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")
    assert spoken(cuda).startswith("out of the GPU's memory: 20.00 GiB could not be had")


def test_what_is_our_mistake_keeps_its_traceback():
    assert sentence(RuntimeError("shape '[2]' is invalid for input of size 3")) is None
    assert sentence(KeyError("x")) is None


def test_files_that_cannot_be_used_are_named():
    text = spoken(PermissionError(errno.EACCES, "Permission denied", "runs/a/x.json"))
    assert text == "runs/a/x.json: Permission denied. Check what is there and its permissions."


def call(monkeypatch, capsys, *arguments) -> str:
    """The one line that a failing command prints."""
    monkeypatch.setattr(sys, "argv", ["qfl", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert error.startswith("error: ")
    return error


READING = ["probe", "report", "timeline", "patch", "curvature", "capture", "resume", "verify"]


@pytest.mark.slow
@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("place", ["checkpoints", "config.json"])
def test_a_file_for_a_folder_and_the_other_way_round(monkeypatch, capsys, run_copy, command, place):
    path = run_copy.path / place
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("a file")
    else:
        path.unlink()
        path.mkdir()
    quiet = [] if command == "verify" else ["--quiet"]
    assert place in call(monkeypatch, capsys, command, run_copy.path, *quiet)


@pytest.mark.parametrize("command", [["probe", "carry", *SMALL], ["patch", "carry", "--pairs", "8", "--quiet"]])
def test_a_file_where_tables_belong(monkeypatch, capsys, run_copy, command):
    (run_copy.path / "analyses").write_text("a file")
    assert "analyses" in call(monkeypatch, capsys, command[0], run_copy.path, *command[1:])


def test_a_run_is_not_trained_into_a_url(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = call(monkeypatch, capsys, "train", "addition", "--steps", 3, "--quiet", "--out", "s3://bucket/run")
    assert "got the URL 's3:/bucket/run'" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--lr", "nan", "lr"), ("--lr", "inf", "lr"), ("--weight-decay", "inf", "weight_decay"),
        ("--seed", "-1", "seed"),
        ("--warmup", "nan", "warmup_fraction"), ("--d-model", "1000000000000", "d_model"), ("--n-val", "0", "n_val"),
        ("--batch-size", str(10**30), "batch_size"), ("--budget", "nan", "budget_flops"),
    ],
)  # fmt: skip
def test_training_options_that_make_no_sense(monkeypatch, capsys, tmp_path, option, value, named):
    monkeypatch.chdir(tmp_path)
    steps = [] if option == "--budget" else ["--steps", "3"]
    assert named in call(monkeypatch, capsys, "train", "addition", "--length", 6, *steps, "--quiet", option, value)
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "option", "value", "named"),
    [
        ("probe", "--c", "nan", "c must"), ("probe", "--path", "1,inf", "path"), ("probe", "--n-train", "0", "n_train"),
        ("probe", "--jobs", "0", "jobs"), ("polca", "--tol", "nan", "tol"), ("curvature", "--seed", "-1", "seed"),
        ("curvature", "--tol", "inf", "tol"), ("probe", "--n-test", str(10**30), "n_test"),
    ],
)  # fmt: skip
def test_options_of_lenses_that_make_no_sense(monkeypatch, capsys, tiny_run, command, option, value, named):
    assert named in call(monkeypatch, capsys, command, tiny_run.path, "--quiet", option, value)
