"""The helpers of the tests themselves: covering sets that cover, folders built once."""

from __future__ import annotations

import itertools

import pytest
from helpers import BuiltOnce, pairwise


def test_any_two_values_of_two_axes_meet_in_few_rows():
    axes = ["ab", [1, 2], [True, False], "xyz", range(6)]
    rows = pairwise(*axes)
    for (i, first), (j, second) in itertools.combinations(enumerate(axes), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(first, second))
    assert len(rows) <= 20 < 144 == len(list(itertools.product(*axes)))


def test_a_folder_is_built_by_the_first_process_that_asks(tmp_path):
    """The session's folder is pytest's own, or, in a worker of xdist, the one above."""
    asked = []

    def build(folder):
        asked.append(folder)
        folder.mkdir()

    for worker in ("gw0", "gw1"):
        (tmp_path / worker).mkdir()
        assert BuiltOnce(tmp_path / worker, is_worker=True)("run", build) == tmp_path / "built_once" / "run"
    assert len(asked) == 1
    assert BuiltOnce(tmp_path / "gw0", is_worker=False)("run", build) == tmp_path / "gw0" / "built_once" / "run"
    assert len(asked) == 2


def test_what_could_not_be_built_is_built_again(tmp_path):
    def fail(folder):
        raise OSError("no luck")

    built = BuiltOnce(tmp_path, is_worker=False)
    with pytest.raises(OSError, match="no luck"):
        built("run", fail)
    assert built("run", lambda folder: folder.mkdir()).is_dir()
