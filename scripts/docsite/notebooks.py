"""The kept notebooks as pages: text, code, and what each cell printed or drew when it was run."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Page(NamedTuple):
    """A notebook as Markdown, and its pictures by file name."""

    text: str
    pictures: dict[str, bytes]


def pages() -> dict[str, Page]:
    """Every kept notebook, by its path below docs/ as a page."""
    return {f"notebooks/{path.stem}.md": _page(path) for path in sorted(FOLDER.glob("*.ipynb"))}


def _page(path: Path) -> Page:
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            for kind, value in _shown(cell["outputs"]):
                if kind == "image/png":
                    name = f"{path.stem}-{len(pictures)}.png"
                    pictures[name] = base64.b64decode(value)
                    parts.append(f"![What the cell above draws]({name})")
                elif kind == "text/html":
                    parts.append(f'<div class="output" markdown="0">{value}</div>')
                else:
                    parts.append(f"```text\n{_COLOURS.sub('', value).rstrip()}\n```")
    head, _, rest = "\n\n".join(parts).partition("\n")
    note = f"*This page is a notebook as it ran: [{path.name}]({path.name}) opens in Jupyter.*"
    return Page(f"{head}\n\n{note}\n{rest}\n", pictures)


def _shown(outputs: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The richest form of each output, as its kind and text."""
    for output in outputs:
        data = output.get("data") or {"text/plain": output.get("text", "")}
        for kind in ("image/png", "text/html", "text/plain"):
            if kind in data:
                yield kind, "".join(data[kind])
                break
