"""Run the tutorials as notebooks and keep them with their outputs: docs/notebooks/*.ipynb.

    python scripts/notebooks.py [NAME ...]

Sources are pages of docs/ (SOURCES) and scripts in jupytext's percent format (docs/notebooks/*.py). Figures are kept as
PNG, which needs kaleido and a Chromium, so that every viewer shows them. Each notebook runs in an empty folder.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile

import jupytext
import nbclient
import nbformat
from page_code import BLOCK, DOCS

FOLDER = DOCS / "notebooks"
# Notebooks that are pages.
PAGES = {name: DOCS / f"{name}.md" for name in ("tutorial", "new_task", "new_lens")}
SOURCES = PAGES | {path.stem: path for path in FOLDER.glob("*.py")}
# GitHub shows PNG; links on pages are relative to docs/.
_RENDERER = {"PLOTLY_RENDERER": "png"}
# What a page says of itself alone.
_OF_THE_PAGE = re.compile(r"<!-- page -->\n.*?<!-- /page -->\n\n", re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def unrun(name: str) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs; cells are named in their order, so that nothing changes by chance."""
    source = SOURCES[name]
    text = source.read_text()
    if source.suffix == ".md":
        # The outputs are the notebook's own; a file of the reader's is written by its cell.
        text = _OF_THE_PAGE.sub("", BLOCK.sub(_cell, text))
        text = _LINK.sub(r"](../\1)", text)
    book = jupytext.reads(text, fmt="md" if source.suffix == ".md" else "py:percent")
    book.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
    return book


def _cell(found: re.Match[str]) -> str:
    head = f"%%writefile {found['file']}\n" if found["file"] else ""
    return f"```python\n{head}{found['code']}```"


def run(book: nbformat.NotebookNode) -> None:
    """Fill in the outputs; an error in a cell is raised."""
    with tempfile.TemporaryDirectory() as folder:
        before = {key: os.environ.get(key) for key in _RENDERER}
        os.environ.update(_RENDERER)
        try:
            nbclient.NotebookClient(
                book, timeout=600, resources={"metadata": {"path": folder}}, record_timing=False
            ).execute()
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
    # The kernel's version of Python, which differs between machines.
    book.metadata.pop("language_info", None)
    for cell in book.cells:
        cell.pop("execution_count", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_kept(output) for output in cell.outputs if output.get("name") != "stderr"]


def _kept(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output as it is kept: of a figure the picture, and no numbers of executions."""
    if "execution_count" in output:
        output.execution_count = None
    if "image/png" in output.get("data", {}):
        output.data = nbformat.from_dict({"image/png": output.data["image/png"]})
    return output


def main() -> None:
    """Write the notebooks that are named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*SOURCES, []], help=", ".join(SOURCES))
    for name in parser.parse_args().names or SOURCES:
        book = unrun(name)
        run(book)
        target = FOLDER / f"{name}.ipynb"
        nbformat.write(book, target)
        print(f"{target.relative_to(DOCS.parent)}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
