"""The demo in seconds: every stage runs, a second call computes nothing, and the story is that of its tables."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import qfl_interp as qfl

_SPEC = importlib.util.spec_from_file_location("demo", Path(__file__).parents[2] / "scripts" / "demo.py")
assert _SPEC is not None
assert _SPEC.loader is not None
demo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(demo)


@pytest.mark.slow
def test_the_quick_demo_tells_what_its_tables_say(tmp_path, capsys, monkeypatch):
    demo.main(tmp_path / "run", quick=True)
    printed = capsys.readouterr()
    run = qfl.Run.open(tmp_path / "run")
    titles = re.findall(r"(\d)/6", printed.err)
    assert titles == list("123456")
    story = " ".join(printed.out.split())
    heads = run.table("ablate_units").read()
    worst = heads.loc[heads["loss_increase"].idxmax()]
    patched = run.table("patch").read()
    assert set(patched["component"]) == {"resid_pre", "heads"}
    assert set(patched["label"]) == {2}
    assert "carry 2, patched:" in story
    # Hardly anything is learned: whatever is claimed of the heads is what the table says.
    cost = heads["intact_exact_answer"] - heads["exact_answer"] > 0.01
    needed = cost & (heads["p_value_holm"] < 0.05) & (heads["loss_increase_low"] > 0)
    assert ("one at a time: needed. L" in story) == needed.any()
    assert f"L{worst['layer']}H{worst['unit']}" in story
    assert "carry, taken out:" in story
    assert "The very next token gives label 3 away" in story
    assert "no transition" in story
    page = (tmp_path / "run" / "report.html").read_text()
    assert "carry 2, heads patched" in page
    assert "one at a time" in page
    monkeypatch.setattr(qfl.Run, "load_model", lambda *_args, **_kwargs: pytest.fail("computed again"))
    demo.main(tmp_path / "run", quick=True)
    assert capsys.readouterr().out == printed.out
