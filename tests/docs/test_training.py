"""The Python of docs/training.md runs as it stands, and its table of options is complete."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import qfl_interp as qfl
from qfl_interp.config import PRESETS

_PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_the_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", _PAGE, flags=re.DOTALL)
    assert len(blocks) == 5, "by parts, one's own, a full batch, a tuner, a fork"
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"training.md, block {number}", "exec"), names)
    # By hand: embedding and unembedding, 3 positions, attention, the MLP's matrices and biases.
    count = 2 * 114 * 128 + 3 * 128 + 4 * 128**2 + 2 * 128 * 512 + 512 + 128
    printed = capsys.readouterr().out.strip().splitlines()
    assert any(line.endswith(f" {count}") for line in printed)
    assert float(printed[-2]) > 0
    assert printed[-1] == "True"
    assert names["model"].cfg.n_key_value_heads == 2


def test_every_option_and_style_is_on_the_page():
    later = set(qfl.ModelConfig._later) | {"d_mlp"}
    assert later <= {field.name for field in dataclasses.fields(qfl.ModelConfig)}
    for name in later:
        assert f"`{name}`" in _PAGE, name
        option = f"--{name.replace('_', '-')}"
        assert f"`{option}`" in _PAGE, option
    for style in PRESETS:
        assert f"| `{style}` |" in _PAGE, style
