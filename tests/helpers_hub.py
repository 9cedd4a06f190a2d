"""A hub on this machine that the real client of this process, or of another one, talks to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from hub_server import Hub, serve


@contextlib.contextmanager
def hub_here(cache: Path) -> Iterator[Hub]:
    """A hub without repositories, an empty cache, and no network elsewhere."""
    with serve() as hub, pytest.MonkeyPatch.context() as patch:
        point_at(patch, hub.url, cache)
        yield hub


def point_at(patch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Point the client, which reads its environment when it is imported, at another hub and cache."""
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks the older protocol of large files
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))


def environment(url: str, cache: Path) -> dict[str, str]:
    """The same for another process."""
    values = {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return values | {"HF_TOKEN_PATH": str(cache / "token"), "HF_HUB_DISABLE_TELEMETRY": "1"}
