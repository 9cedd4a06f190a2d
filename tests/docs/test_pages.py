"""Every block of Python on every page runs, or says why not; every `qfl` line has a command and options there are."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import page_code
import pytest
import typer

import qfl_interp as qfl
from qfl_interp.cli.main import build_app

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "docs").rglob("*.md")}
PAGES["README.md"] = (ROOT / "README.md").read_text()
# Tests of their own run these and look at what comes out.
OWN = {
    "README.md": "docs/test_readme.py",
    "docs/any_model.md": "docs/test_any_model.py",
    "docs/edge_of_stability.md": "docs/test_edge.py",
    "docs/howto/own_loop.md": "docs/test_own_loop.py",
    "docs/new_lens.md": "docs/test_new_lens.py",
    "docs/new_task.md": "docs/test_new_task.py",
    "docs/sweeps.md": "cli/test_sweep.py",
    "docs/training.md": "docs/test_training.py",
    "docs/tutorial.md": "docs/test_tutorial.py",
}
WITH_PYTHON = sorted(name for name, page in PAGES.items() if page_code.blocks(page))
# Commands that a page makes.
OF_A_PAGE = {"weight-norms"}
# Folders of runs that pages speak of: copies of one tiny run.
RUNS = re.compile(r"Run\.open\(\"(runs/\w+)\"\)")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WITH_PYTHON if name not in OWN])
def test_the_blocks_run(name, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    for folder in {"runs/add16", *RUNS.findall(PAGES[name])}:
        shutil.copytree(tiny_run.path, tmp_path / folder)
    # What every page may speak of.
    space = {"qfl": qfl, "run": qfl.Run.open("runs/add16")}
    printed = list(page_code.run(PAGES[name], name, space))
    for block, text in zip(page_code.blocks(PAGES[name]), printed, strict=True):
        assert text or "print(" not in block.code or block.reason or block.file, f"{name}:{block.line} prints nothing"
    for module in set(sys.modules) - before:
        if (tmp_path / f"{module}.py").exists():
            del sys.modules[module]


def test_pages_with_tests_of_their_own():
    for name, test in OWN.items():
        assert name in WITH_PYTHON
        assert (ROOT / "tests" / test).exists()


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_no_block_is_lost(name):
    found = page_code.blocks(PAGES[name])
    assert len(found) == PAGES[name].count("```python\n")
    for block in found:
        if block.reason is None:
            compile(block.code, f"{name}:{block.line}", "exec")


def test_marks_and_outputs(tmp_path, monkeypatch):
    page = (
        "a\n\n`mine.py`:\n\n```python\nx = 1\n```\n\n<!-- not run: half of a class -->\n```python\n1 / 0\n```\n\n"
        "```python\nfrom mine import x\nprint(x)\n```\n\n```text\n1\n```\n\n```python\n\nraise LookupError\n```\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    first, second, third, fourth = page_code.blocks(page)
    assert (first.file, second.reason, third.code) == ("mine.py", "half of a class", "from mine import x\nprint(x)\n")
    running = page_code.run(page, "page.md")
    assert [next(running) for _ in range(3)] == ["", "", "1\n"]
    with pytest.raises(LookupError) as caught:
        next(running)
    assert caught.traceback[-1].lineno + 1 == page.splitlines().index("raise LookupError") + 1 == fourth.line + 1
    del sys.modules["mine"]


def lines_of_shell(page: str) -> list[str]:
    """The `qfl` lines of a page's blocks and of its inline code, continued lines joined, comments left out."""
    blocks = re.findall(r"^```(?:sh|bash|shell|console)?\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^((?:    [^\n]*\n)+)", prose, flags=re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    lines = [part.strip() for line in lines for part in re.sub(r"\s#.*", "", line).removeprefix("$ ").split(";")]
    inline = re.findall(r"`(qfl [^`\n]+)`", prose)
    return [line for line in lines + inline if line.startswith("qfl ")]


@pytest.fixture(scope="module")
def program():
    return typer.main.get_command(build_app())


def faults_of(program, line: str) -> list[str]:
    """What is wrong with a line of shell: no such command, no such option."""
    words = shlex.split(line)[1:]
    command, path = program, "qfl"
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] in OF_A_PAGE:
            return []
        if words[0] not in command.commands:
            if path == "qfl sweep":  # `qfl sweep FILE.toml` is short for `qfl sweep run FILE.toml`
                command = command.commands["run"]
                break
            alternatives = words[0].split("|")
            if not words[0].isupper() and not all(word in command.commands for word in alternatives):
                return [f"{path} has no command {words[0]!r}"]
            return []
        command, path = command.commands[words[0]], f"{path} {words[0]}"
        words = words[1:]
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
    given = [word.split("=")[0] for word in words if word.startswith("--")]
    return [f"{path} has no option {option}" for option in given if option not in known]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_line_of_shell_is_a_command(name, program):
    faults = {line: faults_of(program, line) for line in lines_of_shell(PAGES[name])}
    assert {line: found for line, found in faults.items() if found} == {}


def test_a_wrong_line_is_found_out(program):
    page = (
        "```\nqfl prob runs/a\nqfl probe runs/a --layer 3  # no\nqfl train addition \\\n    --stepz 3; qfl runs\n```\n"
    )
    found = [fault for line in lines_of_shell(page) for fault in faults_of(program, line)]
    assert found == [
        "qfl has no command 'prob'", "qfl probe has no option --layer", "qfl train has no option --stepz",
    ]  # fmt: skip
    assert len(lines_of_shell(page)) == 4
