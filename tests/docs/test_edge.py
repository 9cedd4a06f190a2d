"""The code on docs/edge_of_stability.md runs as it stands, and says what it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[2] / "docs" / "edge_of_stability.md"


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train, at_edge, look = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), flags=re.DOTALL)
    space: dict = {}
    exec(compile(train, str(_PAGE), "exec"), space)
    assert space["run"].finished
    assert space["run"].steps == [*range(0, 161, 4)]
    exec(compile(at_edge, str(_PAGE), "exec"), space)
    assert len(space["result"].rows) == 41
    assert len(space["result"].layers) == 4 * 40
    assert "40 steps beyond it" in capsys.readouterr().out
    exec(compile(look, str(_PAGE), "exec"), space)
    assert space["features"].shape == (360, 2, 256)
    assert float(space["intact"].exact.mean()) > 0.8
    assert float(space["without"].exact.mean()) < 0.2
    *layers, _, units = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in layers] == [0, 1, 2]
    assert min(float(line.split()[1]) for line in layers) > 0.6
    assert units == "(1, 64, 360)"
