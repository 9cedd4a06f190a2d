"""What docs/scaling.md is made of: the script that fills it, and the rows beside it."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pandas as pd
import pytest

from qfl_interp.sweep import SweepConfig
from qfl_interp.sweep.plan import plan_sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study_sweep", ROOT / "scripts" / "study_sweep.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_intervals_say_what_is_missing(study):
    row = {"b": 0.25, "b_low": 0.2, "b_high": 0.3, "c": 1.0, "c_low": math.nan, "c_high": math.nan}
    assert study.interval(row, "b") == "0.25 (0.2 to 0.3)"
    assert study.interval(row, "c") == "1"
    assert study.interval({"d": math.nan, "d_low": 0.0, "d_high": 0.0}, "d") == "–"


@pytest.mark.slow
def test_the_rows_beside_the_page_are_the_sweeps_runs():
    rows = pd.read_csv(ROOT / "docs" / "scaling.csv")
    plan = plan_sweep(SweepConfig.from_toml(ROOT / "sweeps" / "small.toml"))
    assert sorted(rows["run_id"]) == sorted(run.run_id for run in plan.runs)
    steps = {run.run_id: run.config.n_steps for run in plan.runs}
    assert all(steps[row.run_id] == row.n_steps for row in rows.itertuples())
    assert set(rows["status"]) <= {"finished", "diverged"}
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert f"\n\n{len(rows)} runs" in page
