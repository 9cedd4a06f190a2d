"""What `make docs` adds to the pages under docs/: the reference, made of the code, and the notebooks."""

from __future__ import annotations

from typing import Any

from docsite import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the reference's part of the navigation."""
    assert config.nav is not None
    next(part for part in config.nav if "Reference" in part)["Reference"] = reference.navigation()
    return config


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages of the reference."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    return files
