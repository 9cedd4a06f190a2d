"""The table of families in docs/any_model.md is what the lenses do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from families import FAMILIES, LENSES, row

_PAGE = Path(__file__).parents[2] / "docs" / "any_model.md"
# One plain, and those that something was mended for or that lack something; `make test-all` takes all of them.
_SOME = ("Llama, tied", "Bloom", "Mixtral", "Mamba", "Cohere")
_TAKEN = list(FAMILIES) if os.environ.get("QFL_FAMILIES") == "all" else _SOME


def committed() -> dict[str, dict[str, str]]:
    """The rows of the page by family, with the reasons in the place of their numbers."""
    part = re.search(r"<!-- families -->\n(.*?)<!-- /families -->", _PAGE.read_text(), re.DOTALL)[1]
    reasons = dict(re.findall(r"^- \((\d+)\) (.*)\.$", part, re.MULTILINE))
    head, _, *lines = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in part.splitlines() if line.startswith("|")
    ]
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    for found in rows:
        for name, said in found.items():
            if number := re.fullmatch(r"no \((\d+)\)", said):
                found[name] = reasons[number[1]]
    return {found["family"]: found for found in rows}


def test_the_page_has_every_family_and_lens():
    found = committed()
    assert list(found) == list(FAMILIES)
    assert all(list(said) == ["family", "logits", *LENSES] for said in found.values())
    apart = {family: said["logits"] for family, said in found.items() if said["logits"] != "equal to 1e-6"}
    assert apart.keys() == {"Cohere"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of models of other people's
@pytest.mark.parametrize("family", _TAKEN)
def test_lenses_do_what_the_page_says(family):
    assert row(family) == committed()[family]
