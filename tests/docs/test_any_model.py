"""The Python of docs/any_model.md runs as it stands, but for the hub's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[2] / "docs" / "any_model.md"


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text().partition("## Your own loop")[0], flags=re.DOTALL)
    assert len(blocks) == 4, "a dataset, a model in memory, a folder, the hub"
    assert "from_hub" in blocks[-1]
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, block in enumerate(blocks[:-1]):
        exec(compile(block, f"any_model.md, block {number}", "exec"), names)
    suite = names["suite"]
    assert suite.steps == [0, 10, 100]
    lenses = {"probe", "transfer", "mdl", "patch", "interchange", "ablate", "ablate_units"}
    assert {path.name for path in (suite.path / "analyses").iterdir()} == lenses
    printed = capsys.readouterr().out
    shape, _, rest = printed.partition("\n")
    assert shape == "(4, 3)", "two layers of two heads, three tokens of the prompt"
    assert "Carry-forward of the probes of checkpoints-sums-" in rest
    intact = names["model"](names["corrupted"])
    assert not (names["patched"][:, 2] == intact[:, 2]).all()
    assert (names["patched"][:, :2] == intact[:, :2]).all(), "earlier tokens do not see the patch"
