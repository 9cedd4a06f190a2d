"""Lenses and analyses of other packages on the command line: the good ones work, a bad one is named in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from qfl_interp import plugins
from qfl_interp.cli import signature
from qfl_interp.cli.main import build_app
from qfl_interp.plugins import LENSES
from qfl_interp.runs.analyses import loaded_analyses

ENTRIES = """
[qfl_interp.lenses]
absent = theirs_absent:Lens
far-sighted = theirs_lens:FarSighted
leaves = theirs_leaves.lens:Lens
nameless = theirs_lens:Nameless
of-nothing = theirs_lens:OfNothing
probe = theirs_lens:Probe
raises = theirs_raises:Raises
report = theirs_lens:Report
train = theirs_lens:Train
typo = theirs_typo:Lens

[qfl_interp.analyses]
ready = theirs_ready:ready
write = theirs_lens:write_it
far_sighted = theirs_ready:ready
"""
LENS = '''
import pathlib
from qfl_interp import Run
class FarSighted: "Needs nothing of a lens here."
def far_sighted(run: Run, *, n: int = 3):
    """Look far [and wide].

    Args:
        n: How far [away].
    """
    return Found([{"run": run.run_id, "n": n}])
def write_it(run: "Run") -> pathlib.Path:
    """Write it."""
    return run.path / "it.html"
def of_nothing(n: int = 3): "Look at nothing."
def train(run: Run): "Not the command of this name."
def report(run: Run): "Not the command of this name."
class Found:
    def __init__(self, rows): self.rows = rows
    def to_dataframe(self):
        import pandas as pd
        return pd.DataFrame(self.rows)
'''
READY = '''
import typer
from typing import Annotated
def ready(word: Annotated[str, typer.Option(help="What to say.")] = "hello") -> None:
    """Say a word."""
    print(word)
'''


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A package with good and bad entry points."""
    (tmp_path / "theirs_leaves").mkdir()
    files = {"theirs_lens": LENS, "theirs_ready": READY, "theirs_leaves/__init__": "raise SystemExit(2)",
             "theirs_raises": "def raises(run: 'Run'): 'Look.'\nraise OSError('no\\nlibrary')",
             "theirs_leaves/lens": "def leaves(run: 'Run'): 'Look.'", "theirs_typo": "def typo(:"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    cached = (plugins._installed, plugins.entry_points, signature._names)
    for each in cached:
        each.cache_clear()
    yield tmp_path
    for each in cached:
        each.cache_clear()
    for name in [name for name in sys.modules if name.startswith("theirs_")]:
        del sys.modules[name]


@pytest.fixture
def call(theirs, capsys):
    """Run `qfl ...`; returns the exit status, what it printed, and what it warned of while it was made."""

    def run(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        app = build_app()
        warned = capsys.readouterr().err
        shown = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "160"})
        return shown.exit_code, shown.output + str(shown.exception or ""), warned

    return run


def test_help_names_every_bad_entry_in_one_line_and_shows_the_others(call):
    status, out, warned = call("--help")
    assert status == 0
    for command in ("probe", "train", "far-sighted", "write", "ready", "raises", "of-nothing"):
        assert f"│ {command} " in out
    assert "Look far [and wide]." in out
    assert "Say a word." in out
    lenses = "warning: entry point {!r} of qfl_interp.lenses ({}) {}"
    ours = plugins.entry_points(LENSES)["probe"].value
    assert warned.splitlines() == [
        lenses.format("probe", "theirs_lens:Probe", f"is left out: {ours} has this name."),
        lenses.format("absent", "theirs_absent:Lens", "cannot be loaded: No module named 'theirs_absent'."),
        lenses.format("leaves", "theirs_leaves.lens:Lens", "cannot be loaded: SystemExit: 2."),
        lenses.format(
            "nameless", "theirs_lens:Nameless", "cannot be loaded: module 'theirs_lens' has no attribute 'nameless'."
        ),
        lenses.format(
            "typo", "theirs_typo:Lens", "cannot be loaded: SyntaxError: invalid syntax (theirs_typo.py, line 1)."
        ),
        "warning: qfl_interp.lenses 'report' (theirs_lens:Report) is left out: another command has this name.",
        "warning: qfl_interp.lenses 'train' (theirs_lens:Train) is left out: another command has this name.",
        "warning: qfl_interp.analyses 'far_sighted' (theirs_ready:ready) is left out: another command has this name.",
    ]


def test_their_lens_is_a_command(call, tiny_run):
    status, out, _ = call("far-sighted", tiny_run.path, "--n", 5, "--json")
    assert (status, json.loads(out)) == (0, [{"run": tiny_run.run_id, "n": 5}])
    assert "How far [away]." in call("far-sighted", "--help")[1]
    assert call("write", tiny_run.path)[1] == f"wrote {tiny_run.path / 'it.html'}\n"
    assert call("ready", "--word", "bye")[:2] == (0, "bye\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "(theirs_raises:Raises) cannot be loaded: OSError: no library."),
        ("of-nothing", "theirs_lens:OfNothing: the first parameter of 'of_nothing' must be Checkpoints or Run."),
    ],
)
def test_a_fault_that_only_running_the_module_shows_is_told_by_its_command(call, tiny_run, name, message):
    status, out, _ = call(name, tiny_run.path)
    assert status == 1
    assert message in out


def test_functions_of_a_run_for_the_shell(theirs, capsys):
    (theirs / "theirs_ready.py").write_text(READY.replace("def ready", "def far_sighted(run): ...\ndef ready"))
    found = loaded_analyses()
    assert {"probe", "ablate_units", "timeline", "report", "write", "far_sighted"} <= set(found)
    assert "raises" not in found
    assert "ready" in found, "of the package of a command, the function of the command's name"
    assert "'raises' of qfl_interp.lenses" in capsys.readouterr().err


def test_their_lens_is_a_method_of_a_run(theirs, tiny_run):
    assert "far_sighted" in dir(tiny_run)
    assert tiny_run.far_sighted(n=5).rows == [{"run": tiny_run.run_id, "n": 5}]
    with pytest.raises(AttributeError, match=r"no attribute 'far_sited'. Did you mean 'far_sighted'\? Registered anal"):
        tiny_run.far_sited()


LINES = ("--help", "probe --help", "polca --help", "curvature --help", "timeline --help", "report --help",
         "ablate-units --help", "sweep --help", "sweep emergence --help", "sweep scaling --help")  # fmt: skip


def test_help_imports_nothing_heavy():
    """The guarantee behind a quick start, of every help: no module that takes long to import."""
    code = (
        "import sys\nfrom qfl_interp.cli.main import main\n"
        f"for line in {LINES}:\n    sys.argv = ['qfl', *line.split()]\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count(" Usage: qfl ") == len(LINES)
    for heavy in ("torch", "numpy", "pandas", "transformer_lens", "plotly", "IPython", "sklearn", "scipy", "duckdb"):
        assert f"'{heavy}'" not in done.stderr
