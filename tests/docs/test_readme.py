"""The README's Python runs as it stands and prints tables like those it shows; its links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest

_README = Path(__file__).parents[2] / "README.md"


def header(text: str) -> list[list[str]]:
    """The lines of names of the tables in a text: those with names of columns alone."""
    lines = [line.split() for line in text.splitlines()]
    return [line for line in lines if len(line) > 3 and all(re.fullmatch(r"[a-z_0-9]+", word) for word in line)]


@pytest.mark.slow
def test_the_readme_runs_and_prints_what_it_shows(tiny_run, tmp_path, monkeypatch):
    page = _README.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    shutil.copytree(tiny_run.path, tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    few = code.replace("n_train=4_000, n_test=1_000", "n_train=150, n_test=50")
    assert few != code
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(few, "README.md", "exec"), {"__name__": "__main__"})
    printed = out.getvalue()
    assert len(header(shown)) == 3
    assert header(printed) == header(shown)
    for text in (printed, shown):
        assert text.startswith("Run('runs/demo': addition length ")
        assert re.search(r"^Emergence in addition\d+-[0-9a-f]{12}: ", text, flags=re.MULTILINE)
        assert re.search(r"^Patching in addition\d+-[0-9a-f]{12}: ", text, flags=re.MULTILINE)
        assert len(re.findall(r"^ +carry +\d+ +\d+ +(?:resid_pre|heads) ", text, flags=re.MULTILINE)) == 2
    # What the words below it claim is in the numbers shown.
    assert re.search(r"^ +carry +all +quiet +True +0\.38", shown, flags=re.MULTILINE)
    assert re.search(r"^ +\d+ +1 +2 +3\.\d+ .* 0\.000000 ", shown, flags=re.MULTILINE), "head 2 of block 1"
    assert re.search(r" heads +1 +2 +-1 +· +0\.4\d+ ", shown)


def test_the_readme_is_one_screen_and_its_links_lead_somewhere():
    page = _README.read_text()
    assert len(page.splitlines()) <= 90
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page)
    assert len(links) > 20
    assert [link for link in links if not (_README.parent / link).exists()] == []
