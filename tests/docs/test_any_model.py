"""The Python of docs/any_model.md runs as it stands, with a hub on this machine."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from helpers_hub import hub_here

_PAGE = Path(__file__).parents[2] / "docs" / "any_model.md"


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), flags=re.DOTALL)
    blocks = [block for block in blocks if "qfl.Recorder" not in block]  # test_own_loop has that one
    assert len(blocks) == 8, (
        "a dataset, a model in memory, its lenses, a module of ones own, its files, a folder, its timeline, the hub"
    )
    assert "from_hub" in blocks[-1]
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[1] / "helpers_gpt.py", tmp_path / "model.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    names = {"__name__": "__main__"}
    for number, block in enumerate(blocks[:-1]):
        exec(compile(block, f"any_model.md, block {number}", "exec"), names)
    _check_folder(names, capsys.readouterr().out)
    with hub_here(tmp_path / "cache") as hub:
        for step, saved in ((0, 0), (1, 10), (512, 10), (1000, 100), (143_000, 100)):
            hub.repo("EleutherAI/pythia-70m").commit_folder(f"step{step}", tmp_path / "checkpoints" / f"step{saved}")
        exec(compile(blocks[-1], "any_model.md, the hub", "exec"), names)
    assert names["suite"].steps == [0, 512, 1000, 143_000]
    assert "EleutherAI/pythia-70m: 4 of 5 revisions, steps 0 to 143000" in capsys.readouterr().err


def _check_folder(names, printed):
    suite = names["suite"]
    assert suite.steps == [0, 10, 100]
    lenses = {"probe", "transfer", "mdl", "patch", "interchange", "ablate", "ablate_units"}
    lenses |= {"validate", "emergence", "emergence_curve"}
    assert {path.name for path in (suite.path / "analyses").iterdir()} == lenses
    shape, _, rest = printed.partition("\n")
    assert shape == "(4, 3)", "two layers of two heads, three tokens of the prompt"
    assert "Carry-forward of the probes of checkpoints-sums-" in rest
    intact = names["model"](names["corrupted"])
    assert not (names["patched"][:, 2] == intact[:, 2]).all()
    assert (names["patched"][:, :2] == intact[:, :2]).all(), "earlier tokens do not see the patch"
