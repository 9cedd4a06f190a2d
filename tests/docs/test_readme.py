"""The README's Python runs as it stands, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_readme_examples_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", _README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2, "the quick start and the hooks example"
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "runs/add4/report.html").stat().st_size > 1e6
    printed = capsys.readouterr().out
    assert "Emergence in addition4-" in printed
    assert "Ablation in addition4-" in printed
    assert float(printed.split()[-1]) > 1e-3, "projecting a direction out changes the logits"
