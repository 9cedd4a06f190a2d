"""The tutorial's code runs as it stands, prints what the page shows, and its claim holds on what it computed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import qfl_interp as qfl

_ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("run_tutorial", _ROOT / "scripts" / "run_tutorial.py")
assert _SPEC is not None
assert _SPEC.loader is not None
run_tutorial = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run_tutorial)


def head(text: str) -> list[str]:
    """The first two lines as words; numbers and a run's digest move between machines and versions."""
    return re.sub(r"-[0-9a-f]{8,}\b|\d[\d.e+-]*", "#", " ".join(text.strip().splitlines()[:2])).split()


@pytest.mark.slow
def test_the_tutorial_runs_and_its_claim_holds(tmp_path, monkeypatch):
    page = run_tutorial.PAGE.read_text()
    shown = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    printed = run_tutorial.outputs(page)
    assert [head(text) for text in printed] == [head(text) for text in shown]
    assert (tmp_path / "runs/tutorial/timeline.html").stat().st_size > 1e6
    run = qfl.Run.open(tmp_path / "runs/tutorial")
    assert run.metrics["val_exact_answer"].dropna().iloc[-1] > 0.95, "it learned to add"
    rows = run.table("ablate").read()
    ablated = rows[rows["labels"] == "all"].set_index(["feature", "condition"])["exact_answer"]
    for control in ("random", "random_feature", "same_norm"):
        assert ablated["carry", "ablated"] < ablated["carry", control]
    few = rows[(rows["labels"] != "all") & (rows["feature"] == "carry")].set_index("condition")["exact_answer"]
    harm = ablated["carry", "intact"] - ablated["carry", "ablated"]
    assert few["intact"] - few["ablated"] < harm / 2, "the last carry is most of it"
    # The scripts' page maker puts outputs where they were.
    assert run_tutorial.with_outputs(page, shown) == page


def test_outputs_are_put_below_their_blocks():
    page = "a\n\n```python\nx = 1\nprint(x)\n```\n\n```text\nold\n```\n\nb\n\n```python\nprint(x + 1)\n```\n"
    assert run_tutorial.outputs(page) == ["1\n", "2\n"]
    filled = run_tutorial.with_outputs(page, ["1\n", "2\n"])
    assert filled == (
        "a\n\n```python\nx = 1\nprint(x)\n```\n\n```text\n1\n```\n\nb\n\n"
        "```python\nprint(x + 1)\n```\n\n```text\n2\n```\n"
    )
    assert run_tutorial.with_outputs(filled, ["1", "2"]) == filled
