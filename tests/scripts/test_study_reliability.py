"""The page on faults: its table is that of its CSV, nothing bad is in it, and its figure draws it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import study_reliability
from faults import workloads
from faults.run_files import FORMATS
from figures.reliability import VERDICTS, reliability

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return pd.read_csv(DOCS / "reliability.csv").astype({"operations": "Int64"})


def test_the_page_shows_the_csv(rows):
    assert study_reliability.table(rows) in (DOCS / "reliability.md").read_text()


def test_all_formats_and_workloads_are_counted_and_none_ended_badly(rows):
    work = [workloads.TRAIN, *workloads.CALLS]
    assert sorted(rows["what"]) == sorted([*FORMATS, *work, *work])
    assert (rows[[*VERDICTS]].sum(axis=1) == rows["cases"]).all()
    assert (rows[["unnamed", "traceback", "silent"]] == 0).all(axis=None)
    killed = rows[rows["kind"] == "kill"].set_index("what")
    assert (killed["same"] == killed["cases"]).all()
    assert all(killed["cases"][name] == killed["operations"][name] for name in study_reliability.EVERY)


def test_the_figure_draws_the_shares_of_each_row():
    rows = pd.DataFrame(
        {"what": ["a", "b"], "kind": ["kill", "damaged file"], "cases": [4, 8], "same": [4, 2], "named": [0, 3]}
    ).assign(unnamed=[0, 1], traceback=[0, 2], silent=[0, 0])
    figure = reliability(rows)
    shares = [[1, 0.25], [0, 0.375], [0, 0.125], [0, 0.25], [0, 0]]
    np.testing.assert_array_equal([bar.x for bar in figure.data], shares)
    assert [text["text"] for text in figure.layout.annotations] == ["<b>kill</b>", "<b>damaged file</b>", "4", "8"]
    assert list(figure.layout.yaxis.ticktext) == ["a", "b"]
