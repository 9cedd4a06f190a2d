"""The task of docs/new_task.md: it keeps the contract, trains, opens again, and is right by brute force."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp.data import registry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "new_task.md").read_text()
MODULE, USE, OPEN, LOOK = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
_AGAIN = """
import sys
import qfl_interp as qfl
from qfl_interp.analyses import probe
from largest_digit import LargestDigit

if __name__ == "__main__":
    try:
        qfl.Run.open("runs/largest").task
    except qfl.QflError as error:
        print(error)
    qfl.register_task(LargestDigit)
    run = qfl.Run.open("runs/largest")
    rows = probe(run, config=qfl.ProbeConfig(n_train=100, n_test=50), jobs=2, n_untrained=0, progress=False).rows
    print(sorted(set(rows["step"])) == run.steps, type(run.task).__name__)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "largest_digit.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTERED", {})
    yield tmp_path
    sys.modules.pop("largest_digit", None)


def test_the_page_runs(module, capsys):
    names = {}
    for block in (USE, OPEN):
        exec(compile(block, "new_task.md", "exec"), names)
    assert "largest_digit length 4" in capsys.readouterr().out
    task = names["task"]
    examples = np.array([[3, 1, 4, 1], [0, 0, 0, 0]], dtype=np.uint8)
    assert ["".join(task.str_tokens(row)) for row in task.encode(examples).tokens] == ["3141=4", "0000=0"]
    by_hand = [[max(row[: i + 1]) for i in range(4)] for row in examples.tolist()]
    assert task.features["largest_so_far"].labels(examples).tolist() == by_hand
    assert type(names["run"].task) is type(task)


@pytest.mark.slow
def test_what_the_page_says_of_its_probes(module):
    names = {}
    for block in (USE, LOOK):
        exec(compile(block, "new_task.md", "exec"), names)
    assert names["run"].metrics["val_exact_answer"].dropna().iloc[-1] > 0.95
    found = names["probe"](names["run"], config=names["probes"], progress=False).summary.set_index("source")
    losses, scores = found["test_loss"], found["test_score"]
    first, *_, last = losses["trained"]
    assert 0.7 < last / first < 1.2, "hardly better than at step 0"
    assert (losses["untrained"] < last).all(), "no better than in untrained models"
    assert abs(scores["trained"].iloc[-1] - scores["untrained"].mean()) < 0.05


@pytest.mark.slow
def test_processes_that_work_for_this_one_know_it(module):
    exec(compile(USE, "new_task.md", "exec"), {})
    (module / "again.py").write_text(_AGAIN)
    done = subprocess.run([sys.executable, "again.py"], cwd=module, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, last = done.stdout.strip().splitlines()
    assert last == "True LargestDigit"
    assert "was trained on task 'largest_digit', the class largest_digit:LargestDigit, which is not registered" in said


def test_registering(module):
    from largest_digit import LargestDigit

    assert qfl.register_task(LargestDigit) is LargestDigit
    assert qfl.register_task(LargestDigit) is LargestDigit, "again"
    assert "largest_digit" in qfl.task_names()
    assert isinstance(qfl.load_task("largest_digit", 3), LargestDigit)
    with pytest.raises(qfl.QflError, match=r"largest_digits.*'largest_digit'"):
        qfl.load_task("largest_digits")

    class Other(LargestDigit):
        """Of the same name."""

    with pytest.raises(qfl.QflError, match=r"'largest_digit' of .*Other is taken by largest_digit:LargestDigit"):
        qfl.register_task(Other)
    taken = type("Mine", (LargestDigit,), {"name": "addition"})
    with pytest.raises(qfl.QflError, match=r"'addition' of .*Mine is taken by qfl_interp.tasks.addition:Addition"):
        qfl.register_task(taken)
