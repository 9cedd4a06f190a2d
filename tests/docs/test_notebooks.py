"""The kept notebooks are those of their sources, show their figures, and their sources run."""

from __future__ import annotations

import base64
import re
import struct

import nbformat
import notebooks
import page_code
import pytest
from docsite.notebooks import pages

# Sources that are pages have the tests of their pages.
SCRIPTS = sorted(set(notebooks.SOURCES) - set(notebooks.PAGES))
# What makes a script small enough for a test.
SMALLER = {"1e9, 3e9, 1e10, 3e10": "1e9, 3e9", "best(3e10)": "best(3e9)", "n_resamples=99": "n_resamples=9"}
# A path from the root of some machine; no address, tag or path below the reader's folder.
ABSOLUTE = re.compile(r"(?:file://|(?<![\w.:/<\\]))/(?:[\w.-]+/)+")


def kept(name: str) -> nbformat.NotebookNode:
    return nbformat.read(notebooks.FOLDER / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", sorted(notebooks.SOURCES))
def test_a_kept_notebook_is_that_of_its_source(name):
    found, source = kept(name), notebooks.unrun(name)
    assert [(cell.cell_type, cell.source) for cell in found.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ], f"call `make notebooks`: {name}.ipynb is not of its source"
    nbformat.validate(found)


@pytest.mark.parametrize("name", sorted(notebooks.SOURCES))
def test_a_kept_notebook_is_small_and_without_errors(name):
    path = notebooks.FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 1_000_000
    outputs = [output for cell in kept(name).cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs
    assert all(output.output_type != "error" for output in outputs)
    pictures = [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert pictures, "nothing to look at"
    for picture in pictures:
        assert picture.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", picture[16:24])
        assert min(width, height) > 100
    said = path.read_text()
    assert "/tmp/" not in said, "an output names a folder of the machine it ran on"
    shown = [
        (o.get("text", ""), *(text for kind, text in o.get("data", {}).items() if "png" not in kind)) for o in outputs
    ]
    assert [text for texts in shown for text in texts if ABSOLUTE.search(str(text))] == []


def test_cells_of_files_and_links_of_pages():
    source = notebooks.unrun("new_task")
    code = [cell.source for cell in source.cells if cell.cell_type == "code"]
    blocks = page_code.blocks(notebooks.SOURCES["new_task"].read_text())
    assert code[0] == f"%%writefile largest_digit.py\n{blocks[0].code.rstrip()}"
    assert code[1:] == [block.code.rstrip() for block in blocks[1:]]
    text = "".join(cell.source for cell in source.cells if cell.cell_type == "markdown")
    assert "](../any_model.md" in text
    assert "```text" not in "".join(cell.source for cell in notebooks.unrun("tutorial").cells)


def test_a_page_of_a_notebook_shows_code_and_outputs():
    page = pages()["notebooks/own_checkpoints.md"]
    book = kept("own_checkpoints")
    for cell in book.cells:
        assert cell.source.splitlines()[0] in page.text
    printed = next(o.text for c in book.cells if c.cell_type == "code" for o in c.outputs if "text" in o)
    assert printed.strip() in page.text
    assert set(page.pictures) == {f"own_checkpoints-{number}.png" for number in range(len(page.pictures))}
    assert page.text.count("](own_checkpoints-") == len(page.pictures) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = notebooks.SOURCES[name].read_text()
    for words, fewer in SMALLER.items():
        assert name != "sweep" or words in source
        source = source.replace(words, fewer)
    exec(compile(source, f"{name}.py", "exec"), {"__name__": "__main__"})
