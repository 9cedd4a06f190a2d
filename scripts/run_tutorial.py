"""Run docs/tutorial.md top to bottom and put what each block prints below it.

    python scripts/run_tutorial.py

The blocks run in an empty folder, as a new user's session would.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"
# A Python block, and the output below it where there is one.
_BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n.*?```\n)?", flags=re.DOTALL)


def outputs(page: str) -> list[str]:
    """What each Python block of the page prints, run in order in one namespace in the current folder."""
    namespace = {"__name__": "__main__"}
    printed = []
    for number, match in enumerate(_BLOCK.finditer(page)):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(match[1], f"tutorial.md, block {number}", "exec"), namespace)
        printed.append(out.getvalue())
    return printed


def with_outputs(page: str, printed: list[str]) -> str:
    """The page with these outputs below its blocks."""
    texts = iter(printed)
    return _BLOCK.sub(lambda match: f"```python\n{match[1]}```\n\n```text\n{next(texts).rstrip()}\n```\n", page)


def main() -> None:
    """Rewrite the page."""
    page = PAGE.read_text()
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            printed = outputs(page)
        finally:
            os.chdir(home)
    PAGE.write_text(with_outputs(page, printed))


if __name__ == "__main__":
    main()
