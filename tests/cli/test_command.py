"""Commands made of functions: read from source alone, one option a parameter, the function's own defaults."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import inspect
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from qfl_interp import files
from qfl_interp.cli import command, registered, signature
from qfl_interp.errors import QflError
from qfl_interp.plugins import ANALYSES, LENSES, SWEEP_ANALYSES, entry_points

# `site` and `view` are commands of a folder, written as such.
OURS = [
    (group, name)
    for group in (LENSES, ANALYSES, SWEEP_ANALYSES)
    for name in entry_points(group)
    if (group, name) not in ((ANALYSES, "site"), (ANALYSES, "view"))
]

CONFIG = '''
from dataclasses import dataclass, field
from typing import Literal

@dataclass(frozen=True)
class Settings:
    """What is done.

    Args:
        depth (--deep): How deep. Not shown.
        powers: Of what.
        mode: How,
            over two lines.
        flag: Whether.
        seed: Draws this.
        handle: No option.
    """

    depth: int = 3
    powers: tuple[float, ...] = (1.0, 2.0)
    mode: Literal["a", "b"] = "a"
    flag: bool = True
    seed: int = 0
    handle: dict[str, int] = field(default_factory=dict)

@dataclass(frozen=True)
class Extra:
    """More.

    Args:
        seed: Draws that.
        n_draws (--draws): How many.
        n_more (--draws): As many.
    """

    seed: int = 0
    n_draws: int = 5
    n_more: int = 5
'''
LENS = '''
from __future__ import annotations
import torch, their_heavy_module_that_is_not_there
import qfl_interp as qfl
import collections.abc as abc
from pathlib import Path
from typing import TYPE_CHECKING
from .config import Settings, Extra
from .names import Word as TheWord, SCALE
if TYPE_CHECKING:
    from qfl_interp import Run

def lens(
    run: qfl.Run,
    sites: str | abc.Sequence[str] = ("x",),
    *,
    config: Settings | None = None,
    extra: Extra | None = None,
    labels: int | abc.Sequence[int] | None = None,
    n_pairs: int = 7,
    scale: float = SCALE * 2,
    word: TheWord = "one",
    within: Run | abc.Sequence[Run] = (),
    where: str | Path | None = None,
    fine: bool = False,
    model: torch.nn.Module | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> "go.Figure":
    """Look [closely].

    At all.

    Example:
        `qfl lens runs/x`

    Args:
        run: What.
        sites: Where [to look].
        extra (--more): More is done. It costs.
        n_pairs (--pairs): Pairs.
        word: One of the words.

    Returns:
        A figure.
    """

raise RuntimeError("this module was run")
'''


class Found:
    """A result of one row with a figure."""

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame({"x": [1.5]})

    def plot(self) -> Any:
        from plotly.graph_objects import Figure

        return Figure()


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A package whose lens' module cannot be run: everything has to come from its source."""
    package = tmp_path / "their_package"
    package.mkdir()
    names = "from typing import Literal\nWord = Literal['one', 'two']\nSCALE = 0.25\n"
    for name, text in {"__init__": "", "config": CONFIG, "names": names, "lens": LENS}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_package.lens"
    signature._names.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_package"]:
        del sys.modules[name]


@pytest.fixture
def run_command(monkeypatch):
    """Call a function's command; returns what the function was given, and what was printed."""
    monkeypatch.setattr(command, "_open", lambda kind, path: (kind, str(path)))

    def run(read: inspect.Signature, doc: str, *arguments: str, result: Any = None) -> tuple[dict[str, Any], str]:
        calls: list[dict[str, Any]] = []

        def function(subject: Any, **given: Any) -> Any:
            calls.append({"subject": subject} | given)
            return Found() if result is None else result

        app = typer.Typer(add_completion=False)
        app.command()(command.command_of(lambda: function, read, doc, "lens"))
        shown = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
        return (calls or [{}])[0], shown.output

    return run


def test_the_source_says_what_running_the_module_would(theirs, run_command):
    doc = signature.docstring(theirs, "lens")
    read = signature.signature(theirs, "lens")
    assert doc.startswith("Look [closely].")
    assert read.parameters["scale"].default == 0.5
    assert get_args(read.parameters["word"].annotation) == ("one", "two")
    assert (read.return_annotation, theirs in sys.modules) == ("Figure", False)
    given, _ = run_command(read, doc, "somewhere", "--json")
    settings = importlib.import_module("their_package.config").Settings()
    assert given == {
        "subject": ("Run", "somewhere"), "config": settings, "n_pairs": 7, "scale": 0.5, "word": "one", "fine": False,
        "device": "cpu", "progress": True,
    }  # fmt: skip


def test_every_kind_of_option_reaches_the_function(theirs, run_command):
    doc, read = signature.docstring(theirs, "lens"), signature.signature(theirs, "lens")
    words = (
        "somewhere a b --deep 4 --powers 3,0.5 --mode b --no-flag --seed 9 --more --draws 6 --label 1 --label 2 "
        "--pairs 8 --scale 2 --word two --within r --within s --where w --fine -q"
    )
    given, printed = run_command(read, doc, *words.split())
    config = importlib.import_module("their_package.config")
    assert given == {
        "subject": ("Run", "somewhere"), "sites": ["a", "b"], "labels": [1, 2], "n_pairs": 8, "scale": 2.0,
        "config": config.Settings(4, (3.0, 0.5), "b", False, 9), "extra": config.Extra(9, 6, 6), "word": "two",
        "within": [("Run", "r"), ("Run", "s")], "where": Path("w"), "fine": True, "device": "cpu", "progress": False,
    }  # fmt: skip
    assert "Found" in printed


def test_a_figure_is_written_whole_or_not_at_all(theirs, run_command, tmp_path, monkeypatch):
    read, doc = signature.signature(theirs, "lens"), signature.docstring(theirs, "lens")
    page = tmp_path / "page.html"
    page.write_text("before")

    def full(file, data):
        file.write_bytes(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_flushed", full)
        with pytest.raises(QflError, match=r"the disk is full: writing .*page\.html"):
            run_command(read, doc, "somewhere", "--out", str(page))
    assert [(path.name, path.read_text()) for path in tmp_path.glob("*page*")] == [("page.html", "before")]
    umask = os.umask(0o027)
    try:
        run_command(read, doc, "somewhere", "--out", str(page))
    finally:
        os.umask(umask)
    assert "plotly" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o640


def test_help_is_the_docstrings(theirs, run_command):
    _, printed = run_command(signature.signature(theirs, "lens"), signature.docstring(theirs, "lens"), "--help")
    text = " ".join(printed.split())
    where, texts = "lens.html in the run by default", ("More is done.", "Pairs.", "one|two", "How many. As many.")
    more = ("[SITE]", "Where [to look].", "How deep.", "How, over two lines.", "Draws this. Draws that.")
    for shown in (where, *texts, *more):
        assert shown in text
    for hidden in ("Not shown.", "It costs.", "--model", "--handle", "--n-pairs", "--n-more", "--progress", "--extra"):
        assert hidden not in text


def test_numbers_with_commas_are_checked(theirs, run_command):
    read = signature.signature(theirs, "lens")
    with pytest.raises(ValueError, match="--powers must be numbers with commas between them, got '1;2'"):
        run_command(read, "", "somewhere", "--powers", "1;2")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(run: Run, model: dict[str, int]): ...", "no option can give the parameter 'model'"),
        (
            "def f(run: Run, n: int = 1, *, m: int = 2):\n  '''F.\n\n  Args:\n    m (--n): M.'''",
            "--n would have two defa",
        ),
    ],
)
def test_what_no_command_can_be_made_of(tmp_path, monkeypatch, source, message):
    (tmp_path / "their_bad_lens.py").write_text("from qfl_interp import Run\n" + source)
    monkeypatch.syspath_prepend(tmp_path)
    signature._names.cache_clear()
    read, doc = signature.signature("their_bad_lens", "f"), signature.docstring("their_bad_lens", "f")
    with pytest.raises(QflError, match=message):
        command.command_of(lambda: print, read, doc, "f")


def test_a_function_that_is_not_in_the_source_is_imported():
    assert signature.signature("qfl_interp.analyses", "probe") == inspect.signature(
        importlib.import_module("qfl_interp.analyses.lenses.probe.lens").probe, eval_str=True
    )
    assert signature.docstring("qfl_interp.analyses", "probe").startswith("Fit linear probes")
    with pytest.raises(ImportError, match="No module named 'analyses_not'"):
        signature.docstring("analyses_not", "probe")
    with pytest.raises(AttributeError, match="probes"):
        signature.docstring("qfl_interp.analyses", "probes")


def read_of(group: str, name: str) -> tuple[registered._Source, inspect.Signature]:
    """One of our entry points, and its signature from the source."""
    source = registered._source(entry_points(group)[name])
    return source, source.use(signature.signature)


def spelled(annotation: Any) -> str:
    """A type by the names of its classes."""
    inner = sorted(repr(one) if isinstance(one, str) else spelled(one) for one in get_args(annotation))
    return f"{getattr(get_origin(annotation) or annotation, '__name__', annotation)}{inner}"


@pytest.mark.parametrize(("group", "name"), OURS)
def test_our_sources_say_what_running_them_does(group, name):
    source, read = read_of(group, name)
    assert isinstance(read.return_annotation, str), "read from the source, not inspected"
    run = inspect.signature(source.use(signature.imported), eval_str=True)
    for ours, theirs in zip(read.parameters.values(), run.parameters.values(), strict=True):
        assert (ours.name, ours.kind, ours.default) == (theirs.name, theirs.kind, theirs.default)
        assert spelled(ours.annotation) == spelled(theirs.annotation)


@pytest.mark.parametrize(("group", "name"), OURS)
def test_our_commands_call_with_the_functions_own_defaults(run_command, group, name):
    source, read = read_of(group, name)
    given, _ = run_command(read, source.doc, "somewhere", "--json")
    assert given.pop("subject")[1] == "somewhere"
    for parameter, value in given.items():
        default = read.parameters[parameter].default
        if default is None and dataclasses.is_dataclass(value):
            default = type(value)()
        assert value == default, parameter
    assert "sgld" not in given


@pytest.mark.parametrize(("group", "name"), OURS)
def test_our_options_all_have_a_help_and_our_commands_an_example(group, name):
    source, read = read_of(group, name)
    made = command.command_of(lambda: print, read, source.doc, name)
    for parameter in inspect.signature(made).parameters.values():
        assert parameter.annotation.__metadata__[0].help, parameter
    assert f"Example{'s' * (source.doc.count('`qfl ') > 1)}: `qfl " in registered._help(source)


def test_what_a_function_returns_is_shown(tmp_path, run_command):
    from plotly.graph_objects import Figure

    (tmp_path / "run").mkdir()
    read = inspect.signature(_plain, eval_str=True)
    where, page = str(tmp_path / "run"), tmp_path / "page.html"
    assert json.loads(run_command(read, "", where, "--json")[1]) == [{"x": 1.5}]
    assert run_command(read, "", where, "--out", str(page))[1].splitlines()[-1] == f"wrote {page}"
    assert "<html" in page.read_text()[:2000]
    assert json.loads(run_command(read, "", where, "--json", result=page)[1]) == {"page": str(page)}
    assert run_command(read, "", where, result=Figure())[1] == f"wrote {tmp_path / 'run' / 'lens.html'}\n"
    assert (tmp_path / "run" / "lens.html").exists()


class Run:
    """A run by its name alone."""


def _plain(run: Run) -> Any: ...
