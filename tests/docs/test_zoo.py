"""The zoo: its commands train, its page says what its tables hold, and its settings are the published ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zoo
from pages import DOCS, fill

import qfl_interp as qfl
from qfl_interp.cli.main import build_app

ENTRIES = zoo.entries()


@pytest.fixture(scope="module")
def runner():
    from typer.testing import CliRunner

    return CliRunner()


@pytest.mark.parametrize("name", ENTRIES)
def test_each_command_trains(name, runner, tmp_path):
    words = ENTRIES[name].arguments(ENTRIES[name].seeds[-1], tmp_path / "run", steps=2)
    # Fewer validation examples, as fast as it gets; the last of an option counts.
    done = runner.invoke(build_app(), [*words, "--n-val", "16", "--quiet"])
    assert done.exit_code == 0, done.output
    run = qfl.Run.open(tmp_path / "run")
    assert run.steps[-1] == 2
    assert run.config.train.seed == ENTRIES[name].seeds[-1]
    table = zoo.measured(run)
    assert list(table) == ["step", "seconds", "train_loss", "val_loss", "val_exact"]
    assert table["step"].tolist() == [0, 1, 2]
    assert table["val_loss"].notna().all()
    assert table["train_loss"].tolist()[1:] == [float(f"{x:.5g}") for x in run.metrics["train_loss"].tolist()[1:]]


def test_the_grokking_setting_is_the_papers():
    words = ENTRIES["grokking-113"].command.split()
    assert words[:1] == ["modular_addition"]
    task = qfl.load_task("modular_addition", p=113, train_fraction=0.3, ordered=True, answer_only=True)
    assert all(f"--task-option {o}" in ENTRIES["grokking-113"].command for o in ("p=113", "ordered=true"))
    from qfl_interp.data.training_stream import training_problems

    share = len(training_problems(task)) / 113**2
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 113**2) ** 0.5
    batch = task.encode(task.problems()[:3])
    assert batch.loss_mask.tolist() == [[False] * 4 + [True]] * 3
    # (a, b) and (b, a) are two problems.
    assert len({tuple(row) for row in task.canonical(task.problems()).tolist()}) == 113**2


def test_the_page_says_what_the_tables_hold():
    page = (DOCS / "zoo.md").read_text()
    for name, content in zoo.page_parts(ENTRIES).items():
        found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", page, re.DOTALL)
        assert found, name
        assert found[1].strip() == content.strip(), f"call scripts/zoo.py --no-train: {name} is not of the tables"


def test_every_figure_of_the_page_is_there_and_tables_are_small():
    page = (DOCS / "zoo.md").read_text()
    shown = set(re.findall(r"figures/zoo-(\w+)\.png", page))
    assert shown == {entry.figure for entry in ENTRIES.values()}
    assert all((DOCS / "figures" / f"zoo-{name}.png").exists() for name in shown)
    tables = list((DOCS / "zoo").glob("*.csv"))
    assert {path.name for path in tables} == {e.table(s).name for e in ENTRIES.values() for s in e.seeds}
    assert sum(path.stat().st_size for path in tables) < 2_000_000


def test_the_power_of_n_on_the_page_is_that_of_the_tables():
    medians = {}
    for n in (20, 30, 40):
        entry = ENTRIES[f"parity-{n}"]
        medians[n] = np.median([zoo.summary(pd.read_csv(entry.table(seed)))["found"] for seed in entry.seeds])
    slope = np.polyfit(np.log(list(medians)), np.log(list(medians.values())), 1)[0]
    (said,) = re.findall(r"grow as n to the power ([\d.]+)", ENTRIES["parity-40"].compared[0]["ours"])
    assert said == f"{slope:.1f}"


def test_a_summary_by_hand():
    table = pd.DataFrame(
        {
            "step": [0, 1, 2, 4],
            "seconds": [0.0, 1.0, 2.0, 4.5],
            "train_loss": [float("nan"), 1.0, 0.04, 0.06],
            "val_loss": [3.0, 2.0, 1.0, 0.5],
            "val_exact": [0.0, 0.1, 0.91, 0.9],
        }
    )
    assert zoo.summary(table) == {
        "updates": 4, "seconds": 4.5, "fitted": 2, "found": 2, "loss": 0.5, "exact": 0.9,
    }  # fmt: skip
    never = zoo.summary(table.assign(val_exact=0.9, train_loss=0.05))
    assert [zoo.said(never[name]) for name in ("fitted", "found", "updates")] == ["–", "–", "4"]
    assert (zoo.said(12_345.0), zoo.said(0.00028612), zoo.said(1.0)) == ("12,345", "0.000286", "1")


def test_an_unknown_entry_is_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["zoo.py", "grokkin"])
    with pytest.raises(SystemExit, match=r"no entry of .* is named 'grokkin'\. There are grokking-113, "):
        zoo.main()


def test_a_page_without_its_marker_is_left_alone(tmp_path: Path):
    page = tmp_path / "zoo.md"
    page.write_text("<!-- runs -->\n<!-- /runs -->\n")
    with pytest.raises(SystemExit, match="has no markers <!-- compared -->"):
        fill(page, {"runs": "x", "compared": "y"})
    assert "x" not in page.read_text()
