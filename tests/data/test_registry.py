"""Tasks by name, ours and other packages', through entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qfl_interp as qfl
from qfl_interp import plugins
from qfl_interp.data import registry

ROOT = Path(__file__).parents[2]

PLUGIN = """
from qfl_interp.tasks.addition import Addition

class Doubled(Addition):
    name = "doubled"

not_a_task = 3
"""


def _python(code: str, path: Path, cwd: Path) -> subprocess.CompletedProcess:
    """Run code in a fresh process with `path` in front of the installed packages."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(path)},
    )  # fmt: skip


@pytest.fixture
def plugin(tmp_path) -> Path:
    """A third-party package with one good task and three bad entry points, as pip would install it."""
    site = tmp_path / "site"
    info = site / "their_tasks-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[qfl_interp.tasks]\ndoubled = their_tasks:Doubled\nnumber = their_tasks:not_a_task\n"
        "gone = their_tasks:Gone\nabsent = no_such_module:X\n"
        "[qfl_interp.analyses]\nbroken = no_such_module:analysis\n"
    )
    (site / "their_tasks.py").write_text(PLUGIN)
    return site


def test_a_third_party_task_is_found(plugin, tmp_path):
    code = """
from qfl_interp.data import registry
from qfl_interp.errors import QflError
print(registry.task_names())
print(registry.load_task("doubled", 3))
for name in ("number", "gone", "absent", "dubled"):
    try:
        registry.load_task(name, 3)
    except QflError as error:
        print(error)
"""
    done = _python(code, plugin, tmp_path)
    names, task, number, gone, absent, typo = done.stdout.splitlines()
    assert names == str(sorted([*qfl.task_names(), "absent", "doubled", "gone", "number"]))
    assert task.startswith("Doubled(length=3")
    assert number == "entry point 'number' of qfl_interp.tasks must name a subclass of qfl_interp.Task, got 3."
    assert "entry point 'gone' of qfl_interp.tasks (their_tasks:Gone) cannot be loaded" in gone
    assert "entry point 'absent' of qfl_interp.tasks (no_such_module:X) cannot be loaded: No module" in absent
    assert "no task is named 'dubled'. Did you mean 'doubled'" in typo


def test_a_broken_third_party_analysis_leaves_the_command_line_usable(plugin, tmp_path):
    code = "import sys; sys.argv = ['qfl', '--help']; from qfl_interp.cli.main import main; main()"
    done = _python(code, plugin, tmp_path)
    assert done.returncode == 0, done.stderr
    assert " probe " in done.stdout
    assert "entry point 'broken' of qfl_interp.analyses (no_such_module:analysis) cannot be loaded" in done.stderr


@pytest.mark.slow
def test_a_users_own_tasks_module_stays_theirs(tmp_path):
    (tmp_path / "tasks.py").write_text("todo = ['write paper']\n")
    code = "import tasks\nfrom qfl_interp.data.registry import load_task\nprint(load_task('addition', 3), tasks.todo)"
    assert _python(code, tmp_path, tmp_path).stdout.endswith("['write paper']\n")


def test_our_tasks_are_registered():
    assert "addition" in qfl.task_names()
    assert qfl.task_names() == sorted(qfl.task_names())
    task = qfl.load_task("addition", 5)
    assert (task.name, task.length) == ("addition", 5)
    assert registry.task_class("addition") is type(task)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(qfl.QflError, match=r"no task is named 'additon'. Did you mean 'addition'.* Known: .*addition"):
        qfl.load_task("additon", 5)
    with pytest.raises(qfl.QflError, match=r"no task is named 'zzz'. Known: "):
        qfl.load_task("zzz", 5)
    with pytest.raises(qfl.QflError, match=r"no feature of addition is named 'cary'. Did you mean 'carry'\?"):
        qfl.load_task("addition", 5).feature("cary")
    with pytest.raises(ValueError, match=r"length of task 'addition' must be an integer in \[1, 512\], got 0"):
        qfl.load_task("addition", 0)


def test_entry_points_cannot_be_changed_by_a_caller():
    with pytest.raises(TypeError):
        plugins.entry_points(plugins.TASKS)["mine"] = None
