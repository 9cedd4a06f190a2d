"""Opens a report in the system's Chromium as a reader would, from a file; one page for all tests."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers_browser import eventually, opened, wait_drawn

from qfl_interp.analyses.lenses.emergence.findings import findings
from qfl_interp.plots.theme import PAPER_WIDTH
from qfl_interp.report.page import Finding, Section, write_report
from tests import synthetic_tables as tables

N_FIGURES = 3
EVIL = "<img src=x onerror=alert(1)></script>"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(24, 27, 32)"


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The drawn page, with a section of hostile names; nothing but the file may have been asked for."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    evil = Section(EVIL, text=EVIL, table=pd.DataFrame({EVIL: [EVIL]}), downloads={EVIL: pd.DataFrame({EVIL: [1]})})
    sections = [*tables.sections(), evil]
    found = [*findings(tables.emergence()), Finding(EVIL, EVIL, EVIL)]
    write_report(path, tables.card() | {"run_id": EVIL}, sections, findings=found)
    with opened(browser, path) as page:
        wait_drawn(page, N_FIGURES)
        yield page
        assert [url for url in page.asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]


@pytest.fixture(autouse=True)
def _as_opened(page: Any) -> None:
    """Every test starts at the top of a wide page."""
    page.set_viewport_size({"width": 1400, "height": 900})
    page.evaluate("document.activeElement.blur(); window.scrollTo({top: 0, behavior: 'instant'})")


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


def ground(page: Any) -> list[str]:
    """The colours behind a section and behind its figure."""
    section = "getComputedStyle(document.querySelector('section')).backgroundColor"
    figure = "getComputedStyle(document.querySelector('#plot-0 .main-svg')).backgroundColor"
    return [page.evaluate(section), page.evaluate(figure)]


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


def test_nothing_lies_over_a_figure(page):
    assert page.locator(".modebar-btn").count() == 0


def test_light_and_dark_by_the_system_and_by_choice(page):
    page.emulate_media(color_scheme="dark")
    eventually(page, f"getComputedStyle(document.querySelector('#plot-0 .main-svg')).backgroundColor === '{DARK}'")
    assert ground(page) == [DARK, DARK]
    page.locator("#theme").click()
    eventually(page, f"getComputedStyle(document.querySelector('#plot-0 .main-svg')).backgroundColor === '{LIGHT}'")
    assert ground(page) == [LIGHT, LIGHT]
    page.emulate_media(color_scheme="light")
    page.locator("#theme").click()
    eventually(page, f"getComputedStyle(document.querySelector('#plot-0 .main-svg')).backgroundColor === '{DARK}'")
    # An image is a page of a paper: light, from a dark page too.
    with page.expect_download() as download:
        page.locator("button[data-format=svg]").first.click()
    svg = Path(download.value.path()).read_text(encoding="utf-8")
    assert download.value.suggested_filename == "timeline.svg"
    assert 'width="672"' in svg
    assert "fill: rgb(34, 38, 43)" in svg
    assert "fill: rgb(228, 231, 235)" not in svg
    assert page.evaluate("localStorage.getItem('qfl-theme')") == "dark"
    page.locator("#theme").click()


def test_contents_stay_beside_the_page_and_mark_what_is_read(page):
    assert page.locator("#contents").is_visible()
    assert not page.locator("#menu").is_visible()
    page.locator("#contents a", has_text="Ablation").click()
    eventually(page, "Math.abs(document.querySelector('#ablation').getBoundingClientRect().top) < 20")
    eventually(page, "document.querySelector('#contents .current').textContent === 'Ablation'")
    assert page.locator("nav").bounding_box()["y"] == 0
    assert page.url.endswith("#ablation")


def test_search_finds_features_sections_tables_and_columns(page):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("carry")
    kinds = page.locator("#found span").all_text_contents()
    assert page.locator("#found li").first.text_content() == "carryfeature"
    assert "section" in kinds
    page.locator("#search").fill("ablate.csv")
    assert page.locator("#found button").all_text_contents() == ["ablate.csvtable, Ablation"]
    page.locator("#search").fill("p_value holm")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    eventually(page, "document.querySelector('#ablation table.hit').getBoundingClientRect().top < window.innerHeight")
    page.locator("#search").fill("no such thing")
    assert page.locator("#found").text_content() == "Nothing found"
    page.keyboard.press("Escape")
    assert not page.locator("#found").is_visible()


def test_hostile_names_stay_text(page):
    page.locator("#search").fill("onerror")
    assert page.locator("#found button").count() >= 4
    assert EVIL in page.locator("#found").text_content()
    page.keyboard.press("Escape")
    assert page.locator("img").count() == 0
    assert EVIL in page.locator(".kicker").text_content()


def test_every_table_is_in_the_list_of_data(page):
    items = page.locator("#data li")
    assert items.count() == page.locator("section:not(#data) a[download]").count() == 5
    assert f"6 rows, {len(tables.ablate().columns)} columns, Ablation" in items.nth(3).text_content()
    with page.expect_download() as download:
        items.nth(3).locator("a").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), tables.ablate())


def test_a_table_sorts_and_filters(page):
    losses = "[...document.querySelectorAll('#verdicts tbody tr:not([hidden])')].map(r => r.cells[%d].textContent)"
    names = page.locator("#verdicts thead th").all_text_contents()
    lead = names.index("lead_log10")
    head = page.locator("#verdicts thead th").nth(lead)
    before = page.evaluate(losses % lead)
    head.click()
    rising = page.evaluate(losses % lead)
    head.press("Enter")
    falling = page.evaluate(losses % lead)
    values = [float(text.replace("−", "-")) for text in rising if text != "–"]
    assert values == sorted(values)
    assert len(values) > 3
    assert falling[: len(values)] == rising[: len(values)][::-1]
    assert falling[len(values) :] == rising[len(values) :] == ["–"] * (len(before) - len(values))


def test_a_phone_scrolls_figures_in_their_boxes(page):
    page.set_viewport_size({"width": 400, "height": 800})
    page.evaluate("window.dispatchEvent(new Event('resize'))")
    eventually(page, "document.querySelector('#plot-0 .main-svg').getBoundingClientRect().width < 700")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for number in range(N_FIGURES):
        assert page.locator(f"#plot-{number}").bounding_box()["width"] == PAPER_WIDTH, "small letters"
        frame = f"document.querySelector('#plot-{number}').parentElement"
        inner, outer, down = page.evaluate(
            f"[{frame}.scrollWidth, {frame}.clientWidth, {frame}.scrollHeight - {frame}.clientHeight]"
        )
        assert inner >= PAPER_WIDTH > 400 >= outer
        assert down <= 0
    box = "document.querySelector('#ablation .scroll')"
    inner, outer = page.evaluate(f"[{box}.scrollWidth, {box}.clientWidth]")
    assert inner > outer
    assert outer < 400
    assert not page.locator("#contents").is_visible()
    page.locator("#menu").click()
    page.locator("#contents a", has_text="Limits").click()
    assert not page.locator("#contents").is_visible()


def test_a_finger_scrolls_over_curves(page):
    stopped = """selector => {
        const target = document.querySelector(selector);
        const touch = new Touch({identifier: 1, target, clientX: 0, clientY: 0});
        const at = {bubbles: true, cancelable: true, touches: [touch], changedTouches: [touch]};
        const stopped = !target.dispatchEvent(new TouchEvent("touchstart", at));
        target.dispatchEvent(new TouchEvent("touchend", at));
        return stopped;
    }"""
    assert not page.evaluate(stopped, "#plot-0 .draglayer .nsewdrag")
    assert page.evaluate(stopped, "#plot-1 .slider-rail-touch-rect"), "a slider is moved by the finger"
