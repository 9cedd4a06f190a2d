"""Tables by value: groups in one pass are the rows that selecting each value gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qfl_interp.tables import distinct, groups, select

COLUMNS = {
    "ints": [3, 1, 3, 2, 1],
    "words": ["b", "a", "b", "", "a"],
    "flags": [True, False, True, True, False],
    "floats": [0.5, np.nan, 0.5, 2.0, np.nan],
    "mixed": [1, "1", 1.0, None, "1"],
    "categories": pd.Categorical(["x", "y", "x", "y", "x"], categories=["y", "x", "never"]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_groups_are_the_rows_of_each_value(name):
    table = pd.DataFrame({name: COLUMNS[name], "row": range(5)}, index=[9, 7, 5, 3, 1])
    found = groups(table, name)
    wanted = [(value, select(table, **{name: value})) for value in distinct(table, name)]
    assert [str(value) for value, _ in found] == [str(value) for value, _ in wanted]
    for (_, got), (_, rows) in zip(found, wanted, strict=True):
        pd.testing.assert_frame_equal(got, rows)


def test_groups_of_no_rows():
    assert groups(pd.DataFrame(), "missing") == []
    assert groups(pd.DataFrame({"step": []}), "step") == []


def test_a_group_may_be_changed_without_changing_the_table():
    table = pd.DataFrame({"step": [0, 0, 1], "loss": [1.0, 2.0, 3.0]})
    (_, first), _ = groups(table, "step")
    first["loss"] = 0.0
    assert table["loss"].tolist() == [1.0, 2.0, 3.0]
