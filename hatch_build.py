"""The README as the package index shows it, where a relative link leads nowhere.

Links and images lead to the files of the release's tag, below `Repository` of `[project.urls]`. Without that address a
link is its text, and images are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

# `[text](target)`, an image with "!" before it; a target with a scheme, or on the page itself, is none of ours.
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?![a-z]+:|#)([^()\s]+)\)")


def readme(text: str, repository: str, version: str) -> str:
    """Markdown whose relative links are absolute, or text where `repository` is ""."""

    def link(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        if not repository:
            return "" if image else words
        kind = "raw" if image else "blob"
        return f"{image}[{words}]({repository.rstrip('/')}/{kind}/v{version}/{target})"

    return _LINK.sub(link, text)


class ReadmeHook(MetadataHookInterface):
    """Puts the README into the metadata."""

    def update(self, metadata: dict) -> None:
        """Set `readme`, which pyproject.toml calls dynamic."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository", "")
        text = readme(text, repository, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
