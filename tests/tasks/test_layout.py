"""What tasks of every family check of raw rows, and what of a sequence is scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.tasks._layout import check_array, feature_at, scored_between, scored_from


@pytest.mark.parametrize(
    ("examples", "found"),
    [
        (np.zeros(4, dtype=np.uint8), r"got shape \(4,\) of uint8"),
        (np.zeros((2, 2, 2), dtype=np.int64), r"got shape \(2, 2, 2\) of int64"),
        (np.full((2, 4), 0.5), r"got shape \(2, 4\) of float64"),
        (np.zeros((2, 4), dtype=bool), r"got shape \(2, 4\) of bool"),
    ],
)
def test_rows_that_are_no_table_of_integers_are_refused(examples, found):
    task = qfl.load_task("addition", 2)
    with pytest.raises(ValueError, match=rf"must be a 2-D array of integers, one row an example, {found}"):
        check_array(task, examples)
    check_array(task, np.zeros((0, 4), dtype=np.int8))


def test_scored_stretches_and_fixed_positions():
    mask = scored_between(torch.tensor([1, 3]), torch.tensor([2, 3]), 5)
    assert mask.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]
    rows = np.arange(6, dtype=np.uint8).reshape(2, 3)
    batch = scored_from(1, rows)
    assert batch.tokens.tolist() == rows.tolist()
    assert batch.loss_mask.tolist() == [[False, True, True]] * 2
    feature = feature_at("parity", "binary", np.array([4, 5, 6]), lambda examples: examples % 2, "of entry r")
    assert feature.n_labels == 3
    assert feature.positions(rows).tolist() == [[4, 5, 6]] * 2
