"""Opens a report in the system's Chromium as a reader would, from a file."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qfl_interp.analyses.lenses.emergence.findings import findings
from qfl_interp.report.page import write_report
from tests import synthetic_tables as tables

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium or Chrome on the PATH, found none")

# The first for containers that run as root; the rest keep the browser from calling home.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
N_FIGURES = 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, tables.card(), tables.sections(), findings=findings(tables.emergence()))


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any, report_file: Path) -> Iterator[Any]:
    """The drawn page; at the end, nothing may have failed and only the file may have been asked for."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=request.param)
    troubles: list[str] = []
    page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:200]}"))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report_file.as_uri())
    page.wait_for_selector(f"html[data-drawn='{N_FIGURES}']", state="attached", timeout=60_000)
    yield page
    page.close()
    assert troubles == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [report_file.as_uri()]


def eventually(page: Any, expression: str) -> Any:
    """The first truthy value of an expression within 20 s; the page forbids wait_for_function its eval."""
    for _ in range(400):
        if value := page.evaluate(expression):
            return value
        page.wait_for_timeout(50)
    raise AssertionError(f"{expression} did not come true within 20 s")


def colours(page: Any, image: bytes) -> int:
    """How many colours a screenshot has, counted by the browser itself."""
    script = """async (data) => {
        const image = new Image();
        image.src = "data:image/png;base64," + data;
        await image.decode();
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.width, image.height];
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        const pixels = context.getImageData(0, 0, image.width, image.height).data;
        return new Set(new Uint32Array(pixels.buffer)).size;
    }"""
    return page.evaluate(script, base64.b64encode(image).decode())


def test_every_figure_is_drawn(page):
    assert page.locator(".plot .main-svg").count() >= N_FIGURES
    # 2 x 2 metrics, the plateau, 2 features x 3 thirds x (curve, untrained, shuffled), 5 onsets.
    assert page.locator("#plot-0 .scatterlayer .trace").count() >= 4 + 1 + 18 + 5
    assert page.locator("#plot-0 .shapelayer path").count() == 1
    assert page.locator("#plot-1 .heatmaplayer image").count() == 4
    assert page.locator("#plot-2 .bars .point").count() == 6
    for number in range(N_FIGURES):
        box = page.locator(f"#plot-{number}").bounding_box()
        assert box["width"] > 600
        assert box["height"] > 200
        assert colours(page, page.locator(f"#plot-{number}").screenshot()) > 20


def test_slider_moves_the_heat_map(page):
    plot = page.locator("#plot-1")
    assert "step 716" in plot.locator(".annotation-text").first.text_content()
    cells = "JSON.stringify(document.querySelector('#plot-1').data.map(trace => trace.z))"
    last = page.evaluate(cells)
    plot.locator(".slider-group").scroll_into_view_if_needed()
    box = plot.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    eventually(page, "document.querySelector('#plot-1 .annotation-text').textContent.includes('initial model')")
    assert page.evaluate(cells) != last


def test_hover_names_step_and_control(page):
    panel = page.locator("#plot-0 .xy4 .nsewdrag")
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#plot-0 .hoverlayer .legend")
    text = page.locator("#plot-0 .hoverlayer").text_content()
    for word in ("step", "untrained", "shuffled", "n = 5 labels"):
        assert word in text


def test_legend_hides_a_third_in_all_panels(page):
    hidden = "document.querySelector('#plot-0').data.filter(t => t.visible === 'legendonly').map(t => t.name)"
    entry = page.locator("#plot-0 .legend2toggle").first
    entry.click()
    eventually(page, f"{hidden}.length > 0")
    assert page.evaluate(hidden) == ["beginning", "beginning"]


def test_no_button_uploads_the_figure(page):
    titles = page.locator(".modebar-btn").evaluate_all("all => all.map(b => b.dataset.title || b.ariaLabel || '')")
    assert any("SVG" in title for title in titles)
    assert not any("share" in title.lower() or "cloud" in title.lower() for title in titles)


def test_image_is_saved_at_paper_size_on_white(page):
    with page.expect_download() as download:
        page.locator("button[data-format=svg]").first.click()
    svg = Path(download.value.path()).read_text(encoding="utf-8")
    assert download.value.suggested_filename == "timeline.svg"
    assert 'width="672"' in svg
    # The light template's ink, in a dark page too.
    assert "fill: rgb(34, 38, 43)" in svg
    assert "fill: rgb(228, 231, 235)" not in svg


def test_narrow_page_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 420, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
