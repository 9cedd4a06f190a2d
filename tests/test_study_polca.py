"""What docs/polca.md says in words, against the rows that its commands wrote."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

DOCS = Path(__file__).parent.parent / "docs"
# Where the exact loss leaves its plateau, as the page says.
TRANSITION = 160


@pytest.fixture(scope="module")
def carry():
    return pd.read_csv(DOCS / "polca_carry.csv")


def small(carry, way):
    """The steps at which labels are told with a p-value of at most 0.01."""
    return carry[(carry["way"] == way) & (carry["p_value"] <= 0.01)]["step"].tolist()


def test_the_carry_is_told_when_the_page_says(carry):
    asked = sorted(carry["step"].unique())
    assert (len(asked), len(carry)) == (23, 92)
    assert small(carry, "a projected loss") == [24, 34] + [step for step in asked if step >= 70]
    assert small(carry, "POLCA's clusters") == [60] + [step for step in asked if step >= 126]
    assert small(carry, "the exact loss")[0] == 156
    assert 156 - 70 == 86
    assert small(carry, "clusters of the exact loss")[0] > TRANSITION
    # The smallest p-value of 200 shuffles, times the number of tests.
    assert carry["p_value"].min() == pytest.approx(1 / 201)
    assert carry["p_value"].min() * len(carry) > 0.4


def test_before_the_transition_it_is_two_hundredths_at_most(carry):
    before = carry[(carry["step"] < TRANSITION) & (carry["way"] != "the exact loss")]
    assert 0.01 < (before["score"] - before["chance"]).max() < 0.025


def test_homogeneities_in_the_verdict_are_those_of_the_table():
    rows = pd.read_csv(DOCS / "polca_decimal.csv")
    means = rows.groupby(["trajectory", "min_samples"])["homogeneity"].mean()
    best = means.groupby("trajectory").max().round(2)
    assert best["exact loss"] == 0.47
    assert best[[name for name in best.index if name.startswith("LCA")]].max() == 0.57
    polca = best[[name for name in best.index if name.startswith("POLCA")]]
    assert polca.max() < best["exact loss"]
    assert rows["hidden"].max() == 0
