"""docs/forks.md says what docs/forks.csv holds."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "forks.md").read_text()
ROWS = pd.read_csv(ROOT / "docs" / "forks.csv")


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("study_forks", ROOT / "scripts" / "study_forks.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study_forks", module)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_rows(study):
    shown = re.search(r"<!-- forks -->\n(.*?)<!-- /forks -->", PAGE, flags=re.DOTALL)[1]
    assert shown == study.table(ROWS)
    assert study.N_STEPS == 560
    assert f"again every {study.REFIT_EVERY} steps" in PAGE


def test_the_answer_is_of_the_rows():
    text = " ".join(PAGE.split())
    delays = ROWS.pivot(index="condition", columns="seed", values="delay_decades").round(2)
    for name in ("carry", "random", "first_operand"):
        low, middle, high = delays.loc[name]
        assert f"{low:.2f}, {middle:.2f} and {high:.2f}" in text, name
    assert delays.notna().all(axis=None), "the transition comes in every fork"
    exact = ROWS.pivot(index="condition", columns="seed", values="final_exact_answer")
    low, middle, high = exact.loc["carry"].round(2)
    assert f"exact match at step 560 is {low:.2f}, {middle:.2f} and {high:.2f}" in text
    assert (exact.drop(index="carry") > 0.99).all(axis=None)
    loss = ROWS.pivot(index="condition", columns="seed", values="final_loss")
    assert int((loss.loc["carry"] > 100 * loss.loc["parent"]).sum()) == 2


def test_a_delay_is_between_validations_of_the_curves(study):
    curves = pd.read_csv(ROOT / "docs" / "forks_curves.csv")
    for row in ROWS.to_dict("records"):
        own = curves[(curves["seed"] == row["seed"]) & (curves["condition"] == row["condition"])]
        assert study.halfway(own, row["plateau_loss"] / 2) == pytest.approx(row["halfway_flops"], rel=1e-5)
