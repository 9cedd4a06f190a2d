"""The pages name what is there: every dotted name of this library in README and docs can be imported."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from qfl_interp import plugins

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"(?<![\w./\"-])(qfl|qfl_interp)((?:\.[A-Za-z_]\w*)+)")
# Groups of entry points, which look like modules.
GROUPS = {value for value in vars(plugins).values() if isinstance(value, str) and value.startswith("qfl_interp.")}


def exists(name: str) -> bool:
    """Whether the longest module in a dotted name has the rest as attributes."""
    value, *rest = name.split(".")
    found = importlib.import_module(value)
    for index, part in enumerate(rest):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = importlib.import_module(".".join([value, *rest[: index + 1]]))
            except ModuleNotFoundError:
                return False
    return True


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
)
def test_every_name_on_a_page_exists(page):
    found = NAME.findall((ROOT / page).read_text())
    names = {("qfl_interp" if root == "qfl" else root) + rest for root, rest in found}
    assert [name for name in sorted(names - GROUPS) if not exists(name)] == []


def test_a_name_that_is_gone_is_found_out():
    assert exists("qfl_interp.Run.open")
    assert exists("qfl_interp.analyses.lenses.probe")
    assert not exists("qfl_interp.paths")
    assert not exists("qfl_interp.interventions.project_outs")
