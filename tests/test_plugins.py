"""Entry points: a bad one is named in one line and takes none of the others away."""

from __future__ import annotations

import sys

import pytest

from qfl_interp import plugins
from qfl_interp.errors import QflError
from qfl_interp.plugins import ANALYSES, LENSES

THEIRS = """
def good(): return "good"
class Lens: pass
"""
ENTRIES = """
[qfl_interp.analyses]
absent = theirs_absent:f
gone = theirs:gone
good = theirs:good
leaves = theirs_leaves:f
raises = theirs_raises:f
typo = theirs_typo:f
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A package with one good analysis and every kind of bad one; another takes the name of the good one."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    (tmp_path / "theirs_leaves.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "theirs_raises.py").write_text("raise RuntimeError('two\\nlines.')")
    (tmp_path / "theirs_typo.py").write_text("def f(:\n")
    for package, entries in (("a", ENTRIES), ("b", "[qfl_interp.analyses]\ngood = theirs_b:g\n")):
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (plugins._installed, plugins.entry_points):
        cached.cache_clear()
    yield
    for name in [name for name in sys.modules if name.startswith("theirs")]:
        del sys.modules[name]
    for cached in (plugins._installed, plugins.entry_points):
        cached.cache_clear()


def test_good_entries_load_and_every_bad_one_has_a_line(theirs):
    loaded, faults = plugins.load_all(ANALYSES)
    assert loaded["good"]() == "good"
    assert {"timeline", "report"} <= set(loaded)
    assert list(loaded) == sorted(loaded)
    group = "of qfl_interp.analyses"
    assert faults == [
        f"entry point 'good' {group} (theirs_b:g) is left out: theirs:good has this name.",
        f"entry point 'absent' {group} (theirs_absent:f) cannot be loaded: No module named 'theirs_absent'.",
        f"entry point 'gone' {group} (theirs:gone) cannot be loaded: module 'theirs' has no attribute 'gone'.",
        f"entry point 'leaves' {group} (theirs_leaves:f) cannot be loaded: SystemExit: 3.",
        f"entry point 'raises' {group} (theirs_raises:f) cannot be loaded: RuntimeError: two lines.",
        f"entry point 'typo' {group} (theirs_typo:f) cannot be loaded: SyntaxError: "
        "invalid syntax (theirs_typo.py, line 1).",
    ]


def test_entries_load_as_the_caller_says(theirs):
    loaded, faults = plugins.load_all(ANALYSES, load=lambda point: point.value)
    assert loaded["absent"] == "theirs_absent:f"
    assert len(faults) == 1, "two entries of one name, whatever is done with them"
    with pytest.raises(QflError, match=r"'good' of qfl_interp\.analyses .* cannot be loaded: ZeroDivisionError: "):
        plugins.load_entry_point(ANALYSES, "good", load=lambda point: 1 // 0)


def test_ours_keeps_its_name(theirs, tmp_path):
    (tmp_path / "b-1.0.dist-info" / "entry_points.txt").write_text("[qfl_interp.tasks]\naddition = a_first:T\n")
    assert plugins.entry_points(plugins.TASKS)["addition"].value == "qfl_interp.tasks.addition:Addition"


def test_an_empty_group_is_fine():
    assert plugins.load_all("qfl_interp.nothing") == ({}, [])
    assert LENSES == "qfl_interp.lenses"
