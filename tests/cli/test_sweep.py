"""`qfl sweep`: each command on one small sweep; the Python of docs/sweeps.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from helpers_sweep import TOML, InlinePool

import qfl_interp as qfl
from qfl_interp.cli import main as cli
from qfl_interp.errors import QflError
from qfl_interp.runs import workplace
from qfl_interp.sweep import Sweep, SweepConfig
from qfl_interp.sweep.folder import definition_json
from qfl_interp.sweep.plan import plan_sweep
from qfl_interp.sweep.storage import Storage

DOCS = Path(__file__).parents[2] / "docs"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `qfl sweep ...` in this process; returns the exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qfl", "sweep", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        out, error = capsys.readouterr()
        return status, out, error

    return run


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "mine.toml"
    path.write_text(TOML)
    return path


@pytest.fixture(scope="module")
def folder(toml: Path) -> Path:
    """The sweep, trained by the command itself."""
    out = toml.parent / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["qfl", "sweep", str(toml), "--out", str(out), "--workers", "1", "--quiet"])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
    assert not leaving.value.code
    return out


@pytest.mark.parametrize("command", ["run", "status", "best", "matched", "query", "scaling", "emergence"])
def test_help_of_every_command(call: Call, command: str) -> None:
    status, out, _ = call(command, "--help")
    assert status == 0
    assert "Example: " in out


def test_help_of_the_group_teaches(call: Call) -> None:
    status, out, _ = call("--help")
    assert status == 0
    assert "qfl sweep sweeps/tiny.toml --dry-run" in out
    assert {"run", "status", "best", "matched", "query", "scaling", "emergence"} <= set(out.split())


@pytest.mark.slow
def test_dry_run_says_what_there_is_to_do_and_makes_nothing(call: Call, toml: Path) -> None:
    out_folder = toml.parent / "nothing"
    status, out, _ = call(toml, "--dry-run", "--out", out_folder)
    assert status == 0
    assert re.search(r"runs +6\n", out)
    assert re.search(r"to train +6, 1\.\d+e\+08 nominal FLOPs", out)
    assert "GiB free" in out
    assert not out_folder.exists()


@pytest.mark.slow
def test_dry_run_as_json_counts_what_is_done(call: Call, toml: Path, folder: Path) -> None:
    status, out, _ = call("run", toml, "--dry-run", "--out", folder, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["runs"], found["remaining"], found["done"], found["hours"]) == (6, 0, {"finished": 6}, 0.0)


def test_status_counts_runs(call: Call, folder: Path) -> None:
    status, out, _ = call("status", folder, "--json")
    found = json.loads(out)
    assert status == 0
    expected = {"task": "addition", "length": 3, "runs": 6, "finished": 6, "diverged": 0, "failed": 0, "remaining": 0}
    assert found["rows"] == [expected]
    assert found["failures"] == []
    assert "6 of the 6 runs" in found["sentence"]
    _, text, _ = call("status", folder)
    assert "addition" in text


def test_best_matched_and_query_agree_with_the_table(call: Call, folder: Path) -> None:
    table = qfl.Sweep.open(folder).table()
    _, out, _ = call("best", folder, "--budget", "2e7", "--json")
    at = table[table["budget_flops"] == 2e7]
    assert [row["run_id"] for row in json.loads(out)] == at["run_id"].tolist()
    _, out, _ = call("matched", folder, "--d-model", 8, "--n-layers", 1, "--json")
    assert len(json.loads(out)) == 6
    _, out, _ = call("query", folder, "select max(n_steps) as most from runs", "--json")
    assert json.loads(out) == [{"most": int(table["n_steps"].max())}]
    status, text, _ = call("best", folder, "--budget", "2e7")
    assert status == 0
    assert all(f"{loss:.4g}" in text for loss in at["val_loss"])


def test_a_query_is_kept_from_files_unless_it_is_told_otherwise(call: Call, folder: Path, tmp_path: Path) -> None:
    sql = f"copy (select run_id from runs) to '{tmp_path / 'ids.csv'}'"
    status, _, error = call("query", folder, sql)
    assert status == 1
    assert "--unrestricted" in error
    assert not (tmp_path / "ids.csv").exists()
    status, _, error = call("query", folder, sql, "--unrestricted")
    assert (status, error) == (0, "")
    assert len((tmp_path / "ids.csv").read_text().split()) == 7
    endless = "select count(*) from range(1000000000000) a where a.range % 7 = 3"
    status, _, error = call("query", folder, endless, "--timeout", "0.3")
    assert status == 1
    assert "may take 0.3 s" in error


@pytest.mark.slow
@pytest.mark.slow
def test_a_sweep_that_cannot_be_written_has_its_pages_in_the_users_folder(
    call: Call, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("QFL_HOME", str(home))
    monkeypatch.setattr(workplace, "_SAID", [])
    monkeypatch.setattr(workplace, "is_writable", lambda path: folder.absolute() not in (path, *path.parents))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for name in ("scaling", "emergence"):
        options = ("carry", "--n-train", 60, "--n-test", 40, "--n-untrained", 1) if name == "emergence" else ()
        status, _, error = call(name, folder, *options, "--json")
        assert status == 0, error
        assert error.count("cannot be written, so results go to") == (name == "emergence")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert len(list(home.glob("addition3-*/analyses/probe"))) == 6
    # Of a function that returns a figure alone.
    page = Sweep.open(folder).page("scaling.html")
    assert page.parent.parent == home
    assert page.parent.is_dir()
    with pytest.raises(QflError, match="a path on this machine is needed"):
        Sweep(Storage("memory://sweeps/x"), SweepConfig.from_toml(folder.parent / "mine.toml")).page("scaling.html")


def test_scaling_and_emergence_write_their_pages(call: Call, folder: Path, tmp_path: Path) -> None:
    status, out, error = call("scaling", folder, "--out", tmp_path / "scaling.html", "--json")
    assert status == 0, error
    assert {row["budget_flops"] for row in json.loads(out)["rows"]} == {1e7, 2e7, 4e7}
    assert (tmp_path / "scaling.html").stat().st_size > 1e6
    arguments = [
        "--n-train",
        "100",
        "--n-test",
        "50",
        "--n-untrained",
        "1",
        "--out",
        tmp_path / "across.html",
        "--json",
    ]
    status, out, error = call("emergence", folder, "carry", *arguments)
    assert status == 0, error
    assert {row["feature"] for row in json.loads(out)} == {"carry"}
    assert (tmp_path / "across.html").stat().st_size > 1e6


def test_a_worker_s_run_is_the_run_trained_alone(folder: Path, toml: Path, tmp_path: Path) -> None:
    planned = plan_sweep(SweepConfig.from_toml(toml)).runs[-1]
    config = planned.config
    alone = qfl.train(qfl.load_task("addition", 3), config.model, config.train, tmp_path / "alone", progress=False)
    run = qfl.Run.open(folder / planned.path)
    assert run.verify().finished
    for name, tensor in alone.load_checkpoint(config.last_step).model.items():
        assert tensor.equal(run.load_checkpoint(config.last_step).model[name]), name


@pytest.mark.slow
def test_a_failed_run_shows_in_the_exit_status(
    call: Call, tmp_path: Path, toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("qfl_interp.sweep.run_sweep"), "LocalPool", InlinePool)
    out = tmp_path / "out"
    (plan,) = {run.path for run in plan_sweep(SweepConfig.from_toml(toml)).runs[:1]}
    (out / plan).parent.mkdir(parents=True)
    (out / plan).write_text("no folder")
    (out / "sweep.json").write_bytes(definition_json(SweepConfig.from_toml(toml)))
    status, text, _ = call(toml, "--out", out, "--workers", 1, "--attempts", 1, "--quiet")
    assert status == 1
    assert "failed after 1 attempts" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.toml"], "missing.toml does not exist"),
        (["status", "nowhere"], "nowhere is no sweep"),
        (["best", "{folder}", "--budget", "3e7"], "no run in .* had a budget of 3e.07 FLOPs. The nearest is"),
        (["matched", "{folder}", "--d-model", "3", "--n-layers", "1"], "no run in .* has d_model 3"),
        (["query", "{folder}", "select nonsense from runs"], "DuckDB refuses the query"),
        (["query", "{folder}", ""], "must be one SQL statement, got nothing"),
        (["query", "{folder}", "select 1", "--timeout", "0"], "timeout_seconds must be positive, got 0"),
        (["{toml}", "--ray", "127.0.0.1:1", "--out", "{folder}2"], "127.0.0.1:1"),
        (["{toml}", "--workers", "0", "--out", "{folder}3"], "workers must be at least 1"),
        (["{toml}", "--out", "strange://x"], "strange"),
    ],
)
def test_mistakes_end_in_one_message(call: Call, folder: Path, toml: Path, arguments: list[str], message: str) -> None:
    status, _, error = call(*(a.format(folder=folder, toml=toml) for a in arguments))
    assert status == 1
    assert re.search(message, error.replace("\n", " ")), error
    assert "Traceback" not in error


@pytest.mark.slow
def test_the_python_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "sweeps.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__page__"}
    exec(compile(block, "sweeps.md", "exec"), names)
    out = capsys.readouterr().out
    assert "4 finished, 0 diverged, 0 failed" in out
    assert "[100000000.0, 100000000.0, 300000000.0, 300000000.0]" in out
    assert isinstance(names["run"], qfl.Run)
