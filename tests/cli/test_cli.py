"""The command line: every command, JSON output, errors in one message, a quick start."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qfl_interp as qfl
from qfl_interp.cli import main as cli

COMMANDS = (
    "train",
    "resume",
    "runs",
    "tasks",
    "verify",
    "explore",
    "probe",
    "ablate",
    "emergence",
    "timeline",
    "report",
)
PROBES = ["--n-train", "60", "--n-test", "40", "--quiet"]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `qfl ...` in this process; returns the exit status, standard output and standard error."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qfl", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        out, error = capsys.readouterr()
        return status, out, error

    return run


@pytest.fixture(scope="module")
def probed(tiny_run, tmp_path_factory) -> Path:
    """A copy of the tiny run that this module's analyses write into."""
    return Path(shutil.copytree(tiny_run.path, tmp_path_factory.mktemp("cli") / "run"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0
    assert f"qfl {command} [OPTIONS]" in " ".join(out.split())
    if command != "explore":
        assert "--json" in out


def test_train_then_resume_then_verify(call, tmp_path):
    out = tmp_path / "run"
    settings = [
        "--length",
        6,
        "--out",
        out,
        "--steps",
        3,
        "--d-model",
        16,
        "--n-layers",
        1,
        "--batch-size",
        8,
    ]
    settings += ["--n-val", 16, "--save-optimizer"]
    status, text, _ = call("train", "addition", *settings, "--quiet", "--json")
    assert status == 0
    found = json.loads(text)
    run = qfl.Run.open(out)
    assert found["run_id"] == run.run_id
    assert found["steps"] == run.steps
    assert found["val_loss"] == pytest.approx(run.metrics.val_loss.iloc[-1])
    assert run.config.train.batch_size == 8
    assert run.config.model.n_layers == 1
    on_disk = {name: sum(f.stat().st_size for f in out.rglob(name)) for name in ("model.safetensors", "optimizer.s*")}
    assert (found["model_bytes"], found["optimizer_bytes"]) == tuple(on_disk.values())
    assert found["optimizer_bytes"] > found["model_bytes"] > 0
    status, text, _ = call("resume", out)
    assert status == 0
    assert f"checkpoints: {found['model_bytes'] / 1e6:,.1f} MB of parameters, " in text
    assert "finished" in text
    assert "exact match" in text
    status, text, _ = call("verify", out, "--json")
    assert (status, json.loads(text)) == (
        0,
        {"path": str(out), "good": run.steps, "problems": [], "unchecked": [], "finished": True},
    )


def test_verify_fails_on_corruption(call, run_copy, checkpoint_file):
    checkpoint_file.write_bytes(checkpoint_file.read_bytes()[:-1])
    status, out, error = call("verify", run_copy.path)
    assert status == 1
    assert "model.safetensors has" in out
    assert "1 problems" in out
    assert "Traceback" not in error
    status, out, _ = call("verify", run_copy.path, "--json")
    assert status == 1
    assert len(json.loads(out)["problems"]) == 1


def test_runs(call, run_copy):
    (run_copy.path.parent / "bad").mkdir()
    (run_copy.path.parent / "bad" / "config.json").write_text("{")
    status, out, _ = call("runs", run_copy.path.parent, "--json")
    bad, good = json.loads(out)
    assert status == 0
    assert bad["run"].startswith("unreadable")
    assert good["run"] == run_copy.run_id
    assert good["step"] == "40/40"
    assert good["val_loss"] == pytest.approx(run_copy.metrics.val_loss.iloc[-1])
    lines = (run_copy.path / "metrics.jsonl").read_text().splitlines()
    (run_copy.path / "metrics.jsonl").write_text("\n".join([*lines[:-1], "garbage", ""]))
    status, out, _ = call("runs", run_copy.path.parent, "--json")
    assert status == 0, "one damaged run does not hide the others"
    assert len(json.loads(out)) == 2
    assert call("runs", run_copy.path.parent)[0] == 0
    assert "none" in call("runs", run_copy.path / "checkpoints")[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"[" * 2000 + b"\n"),
        lambda file: file.write_bytes(b"[1, 2]\n"),
        lambda file: file.write_bytes(b'{"step": "many"}\n'),
        lambda file: file.write_bytes(b"\xff\xfe\n"),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["nested", "list", "text", "bytes", "folder"],
)
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_runs_names_a_damaged_run_and_lists_the_others(call, run_copy, name, damage):
    good = run_copy.path.parent / "good"
    shutil.copytree(run_copy.path, good)
    damage(run_copy.path / name)
    status, out, error = call("runs", run_copy.path.parent, "--json")
    bad, other = json.loads(out)
    assert (status, error) == (0, "")
    assert bad["run"].startswith("unreadable: ")
    assert name in bad["run"] or "RecursionError" in bad["run"] or name == "config.json"
    assert (other["run"], other["step"]) == (run_copy.run_id, "40/40")
    assert call("runs", run_copy.path.parent)[0] == 0


def test_runs_names_a_file_that_may_not_be_read(call, run_copy, monkeypatch):
    """Of the superuser nothing can be kept: the operating system's answer is made up."""

    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("qfl_interp.runs.listing.open", refused, raising=False)
    status, out, _ = call("runs", run_copy.path.parent, "--json")
    assert status == 0
    assert "metrics.jsonl is damaged: [Errno 13] Permission denied" in json.loads(out)[0]["run"]


def test_tasks(call):
    status, out, _ = call("tasks", "--json")
    assert status == 0
    assert "addition" in {row["task"] for row in json.loads(out)}
    status, out, _ = call("tasks", "addition", "--length", 4, "--examples", 2, "--json")
    shown = json.loads(out)
    assert [f["feature"] for f in shown["features"] if f["by_default"]] == ["first_operand", "carry"]
    assert len(shown["examples"]) == 2
    tokens = shown["examples"][0]["tokens"]
    bits = shown["examples"][0]["features"]["first_operand"]
    assert bits["positions"] == [9, 10, 11, 12], "bit r of the first operand is read at 2L + 1 + r"
    assert list(map(str, bits["labels"])) == tokens[:4]
    assert call("tasks", "addition", "--examples", 1)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["probe", "emergence", "ablate"])
def test_analyses_print_their_rows_as_json_and_draw_their_figure(call, probed, tmp_path, command):
    arguments = [command, probed, "carry", *PROBES, *(["--n-trials", "2"] if command == "ablate" else [])]
    status, out, error = call(*arguments, "--json")
    assert status == 0, error
    rows = json.loads(out)
    assert rows
    assert {row["run_id"] for row in rows} == {qfl.Run.open(probed).run_id}
    status, out, _ = call(*arguments, "--out", tmp_path / "page.html")
    assert status == 0
    assert "carry" in out
    assert f"wrote {tmp_path / 'page.html'}" in out
    assert "<html" in (tmp_path / "page.html").read_text()[:2000]


def test_timeline_and_report_write_a_page(call, probed, tmp_path):
    for command, more in (("timeline", []), ("report", ["--n-trials", "2"])):
        page = tmp_path / f"{command}.html"
        status, out, error = call(command, probed, "carry", *PROBES, *more, "--out", page, "--json")
        assert status == 0, error
        assert json.loads(out) == {"page": str(page)}
        assert "<html" in page.read_text()[:2000]


def test_explore_runs_a_command_with_everything_ready(call, probed):
    code = (
        "print(run.run_id, task.name, tuple(logits.shape), cache['resid_post', 1].shape[-1],"
        " len(batch.tokens), probe.__doc__.splitlines()[0].split()[:3], qfl.Site.__name__, type(model).__name__)"
    )
    status, out, error = call("explore", probed, "--n", 5, "-c", code)
    assert status == 0, error
    run = qfl.Run.open(probed)
    assert out.strip() == f"{run.run_id} addition (5, 22, 5) 16 5 ['Fit', 'linear', 'probes:'] Site HookedTransformer"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "adition", "--steps", "1"], "no task is named 'adition'. Did you mean 'addition'"),
        (["train", "addition"], "exactly one of budget_flops and n_steps must be given"),
        (["train", "addition", "--steps", "1", "--d-model", "20"], "d_model must be a multiple of 8"),
        (["train", "addition", "--steps", "1", "--length", "0"], "must be an integer in [1, 512], got 0"),
        (["train", "addition", "--budget", "1"], "budget_flops must pay for at least one update"),
        (["probe", "RUN", "cary"], "Did you mean 'carry'?"),
        (["probe", "RUN", "--steps", "7"], "was not saved. The nearest saved step is"),
        (["probe", "RUN", "--steps", "some"], "steps must be 'all', 'last', 'log:20', 'every:100' or '1000,2000'"),
        (["verify", "nowhere/[red]x[/]"], "nowhere/[red]x[/] is no run: it does not exist"),
        (["train", "addition", "--length", "6", "--steps", "3", "--out", "RUN"], "already holds a run"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_message(call, probed, arguments, message):
    status, out, error = call(*[str(probed) if a == "RUN" else a for a in arguments])
    assert status == 1
    assert out == ""
    assert message in " ".join(error.split())
    assert error.startswith("error: ")
    assert "Traceback" not in error


def test_traceback_on_request(call, monkeypatch):
    monkeypatch.setenv("QFL_TRACEBACK", "1")
    with pytest.raises(qfl.QflError, match="is no run"):
        call("verify", "nowhere")


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path):
    """A real SIGINT to a real process in the middle of training; then `qfl resume` finishes the run."""
    qfl_command = [sys.executable, "-c", "from qfl_interp.cli.main import main; main()"]
    settings = ["--length", "6", "--out", "run", "--steps", "2000", "--d-model", "16", "--n-layers", "1",
                "--batch-size", "4", "--n-val", "8", "--checkpoints", "3"]  # fmt: skip
    process = subprocess.Popen(
        [*qfl_command, "train", "addition", *settings, "--quiet"], cwd=tmp_path, stderr=subprocess.PIPE,
        text=True,        env=os.environ | {"OMP_NUM_THREADS": "1"}, 
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 20):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip() == "interrupted; call the same command again to go on (train: qfl resume RUN)."
    run = qfl.Run.open(tmp_path / "run")
    assert not run.finished
    assert run.verify()
    assert list((run.path / "resume").iterdir())


def test_a_task_is_trained_at_its_own_length_with_the_optimisation_given(call, tmp_path):
    settings = ["--steps", 1, "--d-model", 16, "--n-layers", 1, "--n-val", 4, "--batch-size", 2, "--weight-decay", 0.7]
    settings += ["--schedule", "wsd", "--warmup", 0.3, "--decay", 0, "--betas", 0.8, 0.98, "--clip-norm", "inf"]
    status, _, _ = call("train", "decimal_addition", *settings, "--out", tmp_path / "run", "--quiet")
    assert status == 0
    config = qfl.Run.open(tmp_path / "run").config
    assert (config.length, config.train.weight_decay) == (3, 0.7)
    assert (config.train.schedule, config.train.warmup_fraction, config.train.decay_fraction) == ("wsd", 0.3, 0.0)
    assert (config.train.betas, config.train.max_norm) == ((0.8, 0.98), math.inf)
