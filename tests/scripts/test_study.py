"""The script behind docs/tasks.md: what it writes is what was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import qfl_interp as qfl

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study():
    """scripts/study_tasks.py as a module."""
    spec = importlib.util.spec_from_file_location("study_tasks", ROOT / "scripts" / "study_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_tasks"] = module
    spec.loader.exec_module(module)
    return module


def results(study):
    """Two seeds of one task, one of them without a transition."""
    runs = pd.DataFrame(
        {
            "task": "addition", "length": 8, "seed": [0, 1], "d_model": 32, "n_layers": 2, "budget_flops": 1e11,
            "base_rate": 0.65, "paper_baseline": 0.66, "val_loss_answer": [0.01, 0.4], "exact_answer": [0.99, 0.1],
            "halfway_flops": [4e10, np.nan],
            "transition_found": [True, False], "start_flops": [2e10, np.nan], "end_flops": [3e10, np.nan],
        }
    )  # fmt: skip
    rows = [
        (0, "all", "quiet", True, 0.3, 1e10, 0.5, 0.1), (0, "end", "loud", True, -1.0, 9e10, 0.5, 0.1),
        (1, "all", "loud", False, -0.1, 2e10, 0.7, 0.3), (1, "end", "loud", True, -2.0, 9e10, 0.5, 0.1),
    ]  # fmt: skip
    names = ["seed", "third", "verdict", "certain", "lead_log10", "onset_flops", "baseline", "best"]
    verdicts = pd.DataFrame(rows, columns=names).assign(task="addition", length=8, feature="carry", paper="quiet")
    return study.Study(runs, verdicts, pd.DataFrame())


def test_the_table_says_what_was_measured(study):
    found = results(study)
    cells = [cell.strip() for cell in study.short_table(found).splitlines()[-1].strip("|").split("|")]
    assert cells == [
        "addition 8", "1e+11", "2", "0.650", "0.01 to 0.4", "0.100 to 0.990", "2.0e+10 → 3.0e+10 (1 of 2)",
        "carry: 1 quiet, 1 loud (?), +0.60 (1/2)",
    ]  # fmt: skip


@pytest.mark.slow
def test_half_way_is_between_the_most_frequent_answer_and_all_right(study):
    """One of 64 sums of 3-bit numbers is rare; a parity is right half of the time."""
    parity = study.halfway(qfl.load_task("sparse_parity", 16))
    assert 0.75 <= parity < 0.79, "n = 1,000: four standard errors are 0.06 on the share, half of that here"
    majority = study.halfway(qfl.load_task("majority_of_majorities", 32))
    assert abs(majority - (1 + 0.8187) / 2) < 0.03, "18.13 % of the answers are 1"
    assert study.halfway(qfl.load_task("breadth_first_search", 7)) < 0.55


def test_every_setting_of_the_study_is_one_that_trains(study, tmp_path):
    jobs = study.read_jobs(tmp_path, [])
    assert len({job.path for job in jobs}) == len(jobs)
    for job in jobs:
        task = qfl.load_task(job.settings["name"], job.settings["length"])
        named = [*(job.settings.get("features") or []), *job.settings.get("paper", {})]
        assert set(named) <= set(task.features)
    entries = tomllib.loads((ROOT / "docs" / "tasks.toml").read_text())["task"]
    assert [job.settings["name"] for job in study.read_jobs(tmp_path, ["addition"])] == ["addition"] * 3
    assert len(entries) * 3 == len(jobs)


def test_the_page_and_the_numbers_behind_it_agree(study):
    """docs/tasks.md holds the table of docs/tasks.json."""
    found = json.loads((ROOT / "docs" / "tasks.json").read_text())
    runs, verdicts = (pd.DataFrame(found[name]) for name in ("runs", "verdicts"))
    kept = study.Study(runs, verdicts, pd.DataFrame())
    page = (ROOT / "docs" / "tasks.md").read_text()
    assert study.short_table(kept) in page
    settings = {(job.settings["name"], job.settings["length"], job.seed) for job in study.read_jobs(Path(), [])}
    assert set(zip(runs["task"], runs["length"], runs["seed"], strict=True)) == settings
