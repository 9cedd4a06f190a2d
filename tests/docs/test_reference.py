"""The pages of the reference say what the program, the configurations and the tables say."""

from __future__ import annotations

import dataclasses
import re

import pytest
import typer
from docsite import api, columns, commands, configurations, tables

import qfl_interp as qfl
from qfl_interp import analyses
from qfl_interp.analyses.all_tables import all_tables
from qfl_interp.cli.main import build_app


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return commands.pages()


def test_every_command_and_option_is_on_a_page(pages):
    program = typer.main.get_command(build_app())
    assert pages.keys() == {"index.md", *(f"{name}.md" for name in program.commands)}
    for name, command in program.commands.items():
        assert f"[`qfl {name}`]({name}.md)" in pages["index.md"]
        below = getattr(command, "commands", {"": command})
        for one in below.values():
            options = [word for p in one.params if p.param_type_name == "option" for word in p.opts]
            assert [word for word in options if f"`{word}`" not in pages[f"{name}.md"]] == []


def test_a_row_says_what_an_option_takes_and_its_default(pages):
    rows = dict(re.findall(r"^\| (`--[a-z-]+`)[^|]* \| (.*) \|$", pages["train.md"], flags=re.MULTILINE))
    assert rows["`--lr`"] == "number | `0.001` | Peak learning rate."
    assert rows["`--draw`"].startswith("`fresh`, `batch`, `epoch` | `fresh` | ")
    assert rows["`--compile`"].startswith(" | `--no-compile` | ")
    assert "```text\nqfl probe RUN [FEATURE]... [OPTIONS]\n```" in pages["probe.md"]


def test_every_field_of_a_configuration_is_defined():
    page = configurations.page()
    for shown in configurations.SHOWN:
        section = page.partition(f"## {shown.__name__}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", section, flags=re.MULTILINE)
        assert [name for name, *_ in rows] == [field.name for field in dataclasses.fields(shown)]
        assert [name for name, _, _, meaning in rows if not meaning.strip()] == [], shown
    assert "| `n_train` | `int` | `10000` | Examples the probes are fitted on" in page


def test_every_column_of_every_table_is_on_the_page():
    page = columns.page()
    for one in all_tables():
        section = page.partition(f"### Table `{one.name}`\n")[2].partition("\n### ")[0]
        assert [name for name in one.columns if f"| `{name}` |" not in section] == [], one.name
    for what, of_result in columns.OF_SEVERAL.items():
        for name, own in of_result.items():
            section = page.partition(f"### Table `{name}` of {what}\n")[2].partition("\n### ")[0]
            assert [column for column in own if f"| `{column}` |" not in section] == [], (what, name)


def test_every_public_name_leads_to_where_it_is_defined():
    own, _, lenses = api.pages()["index.md"].partition("\n## Lenses\n")
    for page, names in ((own, qfl.__all__), (lenses, analyses.__all__)):
        assert [name for name in names if f"| [`{name}`][qfl_interp." not in page] == []
    # A name that a package hands on leads to its module.
    assert "[`Sweep`][qfl_interp.sweep.sweep.Sweep]" in own
    with pytest.raises(LookupError, match=r"qfl_interp\.runs\.run has no Runn"):
        api._defined("qfl_interp.runs.run", "Runn")


def test_a_table_has_one_line_a_row():
    assert tables.table(("a", "b"), [("x|y", "two\nlines")]) == "| a | b |\n| --- | --- |\n| x\\|y | two lines |\n"
