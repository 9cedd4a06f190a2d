"""The Chromium of the tests of pages, and pages that say what went wrong in them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

WAIT_MS = 60_000

# The first for containers that run as root; the rest keep the browser from calling home.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def launched() -> Iterator[Any]:
    """The browser; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium or Chrome on the PATH, found none")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """A page from a file, with `drawn` figures; at the end nothing may have failed, and only files been asked for."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    troubles: list[str] = []
    page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:200]}"))
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(file.resolve().as_uri())
    yield page
    page.close()
    assert troubles == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in page.asked)


def wait_drawn(page: Any, n: int) -> None:
    """Wait until so many figures are drawn."""
    page.wait_for_selector(f"html[data-drawn='{n}']", state="attached", timeout=WAIT_MS)


def eventually(page: Any, expression: str) -> Any:
    """The first truthy value of an expression; what a page lacks as yet (null) is waited for.

    The page forbids wait_for_function its eval.
    """
    null_if_missing = "if (error instanceof TypeError) return null; throw error"
    tried = f"(() => {{ try {{ return {expression} }} catch (error) {{ {null_if_missing} }} }})()"
    for _ in range(WAIT_MS // 50):
        if value := page.evaluate(tried):
            return value
        page.wait_for_timeout(50)
    raise AssertionError(f"{expression} did not come true within {WAIT_MS / 1000:.0f} s")
