"""What scripts write into a page: between markers, and nothing else."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from pages import fill, markdown


def test_parts_are_replaced_between_their_markers_again_and_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one -->\nold\nold\n<!-- /one -->\nb\n<!-- two -->\n<!-- /two -->\nc\n")
    fill(page, {"one": "x \\1\n", "two": "y"})
    fill(page, {"one": "new \\1\n"})
    assert page.read_text() == "a\n<!-- one -->\nnew \\1\n<!-- /one -->\nb\n<!-- two -->\ny\n<!-- /two -->\nc\n"


def test_a_page_without_a_marker_is_not_touched(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- one -->\nold\n<!-- /one -->\n")
    with pytest.raises(SystemExit, match="has no markers <!-- three --> and <!-- /three -->"):
        fill(page, {"one": "new", "three": ""})
    assert "old" in page.read_text()


def test_a_table_has_three_digits_and_dashes():
    table = pd.DataFrame({"task": ["addition 8", "x"], "loss": [0.123456, math.nan], "n": [3, 4]})
    assert markdown(table).splitlines() == [
        "| task | loss | n |", "| --- | --- | --- |", "| addition 8 | 0.123 | 3 |", "| x | – | 4 |",
    ]  # fmt: skip
