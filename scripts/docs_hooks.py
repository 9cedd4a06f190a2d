"""What `make docs` adds to the pages under docs/: a reference made of the code, notebooks, a search from the disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docsite import notebooks, reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_FILE_AS_WORDS = re.compile(r"\[`?[\w/]+\.md`?\]\((?P<target>[^)#\s]+\.md)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill their parts of the navigation."""
    assert config.nav is not None
    next(part for part in config.nav if "Reference" in part)["Reference"] = reference.navigation()
    tutorials = next(part for part in config.nav if "Tutorials" in part)["Tutorials"]
    next(part for part in tutorials if "Notebooks" in part)["Notebooks"] = list(notebooks.pages())
    return config


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages, and the pictures of the notebooks."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    for path, page in notebooks.pages().items():
        files.append(File.generated(config, path, content=page.text))
        for name, content in page.pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links that show a file's name, as in the repository, show the title of its page."""
    here = Path(page.file.abs_src_path or "").parent

    def titled(found: re.Match[str]) -> str:
        target = here / found["target"]
        if not target.is_file():
            return found[0]
        title = target.read_text().partition("\n")[0].removeprefix("# ")
        return f"[{title}]({found['target']}{found['anchor'] or ''})"

    return _FILE_AS_WORDS.sub(titled, markdown)


@event_priority(-100)  # after the search has written its own
def on_post_build(*, config: MkDocsConfig) -> None:
    """The search's index as a script: a page from the disk may load no JSON."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text()}")
