"""Names that load on first use: found where the type checker finds them, nothing imported before."""

from __future__ import annotations

import importlib
import sys

import pytest

PACKAGE = '''"""A package."""
from __future__ import annotations
from typing import TYPE_CHECKING
from qfl_interp.lazy import lazy_names
if TYPE_CHECKING:
    from lazily import room
    from lazily.room.inner import Thing, renamed
    from math import tau
__getattr__, __dir__ = lazy_names(__name__)
'''


@pytest.fixture
def lazily(tmp_path, monkeypatch):
    room = tmp_path / "lazily" / "room"
    room.mkdir(parents=True)
    (room.parent / "__init__.py").write_text(PACKAGE)
    (room / "__init__.py").write_text("")
    (room / "inner.py").write_text("Thing, renamed = 'thing', 'renamed'")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazily")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazily"]:
        del sys.modules[name]


def test_a_name_is_loaded_when_it_is_asked_for(lazily):
    assert "lazily.room" not in sys.modules
    assert lazily.room is sys.modules["lazily.room"]
    assert "lazily.room.inner" not in sys.modules
    assert (lazily.Thing, lazily.renamed, round(lazily.tau, 2)) == ("thing", "renamed", 6.28)
    assert vars(lazily)["Thing"] == "thing", "the next look-up asks nobody"


def test_names_are_listed_and_an_unknown_one_names_them(lazily):
    assert {"Thing", "renamed", "room", "tau", "__all__"} <= set(dir(lazily))
    assert "annotations" not in dir(lazily)
    assert lazily.__all__ == ["Thing", "renamed", "tau"], "a submodule is reached, but no part of an import of all"
    with pytest.raises(
        AttributeError, match=r"'lazily' has no .* 'thing'\. Did you mean 'Thing'\? Public names: Thing, renamed"
    ):
        _ = lazily.thing
