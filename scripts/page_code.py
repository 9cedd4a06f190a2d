"""The Python on the pages: the blocks of a page, and running them in order as a reader would.

Two marks stand in a page just before a block. A line `` `name.py`: `` makes it a file of that name, which is written
and not run; `<!-- not run: REASON -->`, which nobody sees, leaves the block out.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parent.parent / "docs"
# A block with its marks, and the output below it where there is one.
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n\s*)?(?:^`(?P<file>\w+\.py)`:\n\s*)?"
    r"^```python\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<output>.*?)^```$)?",
    flags=re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """Python of a page.

    Attributes:
        code: Its lines.
        file: The file it is, instead of something to run.
        reason: Why it is not run.
        line: Where it begins in the page, counted from 1.
    """

    code: str
    file: str | None
    reason: str | None
    line: int


def blocks(page: str) -> list[Block]:
    """The blocks of a page's text, in order."""
    return [
        Block(found["code"], found["file"], found["reason"], page.count("\n", 0, found.start("code")) + 1)
        for found in BLOCK.finditer(page)
    ]


def run(page: str, name: str, space: dict[str, Any] | None = None) -> Iterator[str]:
    """Run a page's blocks one after the other in one namespace and the current folder; gives what each printed.

    Args:
        page: Its text.
        name: What tracebacks call it.
        space: The namespace, which changes.
    """
    space = {} if space is None else space
    space.setdefault("__name__", "__main__")
    for block in blocks(page):
        out = io.StringIO()
        if block.file is not None:
            Path(block.file).write_text(block.code)
        elif block.reason is None:
            with contextlib.redirect_stdout(out):
                # Blank lines before the code, so that a traceback has the line of the page.
                exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), space)
        yield out.getvalue()
