"""The example of a loop of one's own in docs/any_model.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import qfl_interp as qfl

_PAGE = Path(__file__).parents[2] / "docs" / "any_model.md"


def test_the_block_records_a_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), flags=re.DOTALL)
    (block,) = (block for block in blocks if "qfl.Recorder" in block)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "any_model.md, Your own loop", "exec"), {"__name__": "__main__"})
    run = qfl.Run.open("runs/own")
    assert run.finished
    assert run.verify()
    losses = run.metrics["val_loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    assert "Probes of addition4-" in capsys.readouterr().out
