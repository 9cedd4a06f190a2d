"""The viewer in the system's Chromium, as a reader uses it: one server and one browser for all."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import tiny_train_config
from helpers_browser import WAIT_MS, eventually

import qfl_interp as qfl
from qfl_interp.analyses.view.serve import Viewer, view

pytest.importorskip("dash", reason="needs the extra `view`")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("viewer"),
]
HOSTILE = "</script><img src=x onerror=alert(1)>".replace("/", "∕")


@pytest.fixture(scope="module")
def folder(tiny_run, addition, model_config, tmp_path_factory) -> Iterator[Path]:
    """Two seeds, one with probes; a hostile name, a damaged run, one to delete, and one that is being trained."""
    folder = tmp_path_factory.mktemp("viewed")
    probed = qfl.Run.open(shutil.copytree(tiny_run.path, folder / "seeds" / "a"))
    qfl.analyses.probe(probed, "carry", config=qfl.ProbeConfig(n_train=64, n_test=64), progress=False)
    qfl.train(addition, model_config, tiny_train_config(seed=4), folder / "seeds" / "b", progress=False)
    for name in (HOSTILE, "broken", "leaving"):
        shutil.copytree(tiny_run.path, folder / name)
    (folder / "broken" / "config.json").write_text("{")
    code = (
        "import sys, qfl_interp as qfl; "
        "qfl.train(qfl.load_task('addition', length=4), qfl.ModelConfig(d_model=16, n_layers=2), "
        "qfl.TrainConfig(n_steps=100_000, batch_size=8, eval_fraction=1e-4, n_val=8), sys.argv[1], progress=False)"
    )
    training = subprocess.Popen([sys.executable, "-c", code, str(folder / "live")])
    yield folder
    training.kill()
    training.wait()


@pytest.fixture(scope="module")
def viewer(folder: Path) -> Iterator[Viewer]:
    found = view(folder, port=0, open_browser=False, block=False)
    yield found
    found.stop()


@pytest.fixture
def visit(browser: Any, viewer: Viewer) -> Iterator[Callable[..., Any]]:
    """Opens an address; at the end, nothing may have failed, and nothing been asked of another machine."""
    pages, troubles, elsewhere = [], [], []

    def open_page(query: str = "", *, url: str = viewer.url, width: int = 1400, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else elsewhere.append(r.url))
        page.goto(url + query)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert troubles == []
    assert elsewhere == []


def drawn(page: Any, name: str) -> None:
    """Wait for the figure of a card."""
    eventually(page, f"document.querySelector('#{name}-graph .js-plotly-plot').data.length > 0")


PLOT = "document.querySelector('#timeline-graph .js-plotly-plot')"
LINE = f"{PLOT}.layout.shapes.find((shape) => shape.name === 'step').x0"


def test_list_search_and_states(visit):
    page = visit()
    page.wait_for_selector(".run")
    assert page.locator(".run .name").all_text_contents()[:2] == [HOSTILE, "broken"]
    broken = page.locator(".run", has_text="broken")
    assert broken.locator(".badge").text_content() == "damaged"
    assert "config.json" in broken.locator(".sub").text_content()
    assert page.locator(".run svg polyline").count() >= 4
    page.fill("#search", "Seeds/B addition")
    eventually(page, "document.querySelectorAll('.run').length === 1")
    assert "q=Seeds%2FB+addition" in page.url
    page.fill("#search", "seed 4")
    eventually(page, "[...document.querySelectorAll('.run .name')].map((one) => one.textContent).join() === 'seeds/b'")
    page.fill("#search", "")
    page.click("[data-state=damaged]")
    eventually(page, "document.querySelectorAll('.run').length === 1")
    assert "state=damaged" in page.url
    page.click(".run .open")
    page.wait_for_selector("#head .fault")
    assert "config.json" in page.locator("#head .fault").text_content()


def test_one_slider_moves_every_view(visit, tiny_run):
    page = visit("?run=seeds%2Fa&view=probe")
    drawn(page, "timeline")
    drawn(page, "view")
    eventually(page, "document.querySelector('#view-graph').textContent.includes('step 40')")
    last = page.evaluate(LINE)
    page.focus("#step-slider")
    page.keyboard.press("ArrowLeft")
    before = tiny_run.steps[-2]
    eventually(page, f"location.search.includes('step={before}')")
    eventually(page, f"document.querySelector('#view-graph').textContent.includes('step {before}')")
    assert page.evaluate(LINE) == tiny_run.flops(before) < last == tiny_run.flops(40)
    assert f"step {before}" in page.locator("#step-text").text_content()
    # A click in the timeline goes to the checkpoint that is nearest on its logarithmic axis.
    box = page.locator("#timeline-graph .xy .nsewdrag").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 3, box["y"] + 20)
    eventually(page, f"!location.search.includes('step={before}')")
    clicked = page.evaluate(f"{PLOT}._fullLayout.xaxis.p2d({box['width'] / 3})")
    nearest = min(tiny_run.steps[1:], key=lambda step: abs(math.log(tiny_run.flops(step) / clicked)))
    assert page.url.endswith(f"step={nearest}")
    assert page.evaluate(LINE) == tiny_run.flops(nearest) < tiny_run.flops(before)


def test_an_address_restores_the_page_and_back_goes_back(visit, tiny_run):
    step = tiny_run.steps[3]
    page = visit(f"?run=seeds%2Fa&view=probe&step={step}&q=seeds&c.feature=carry")
    drawn(page, "view")
    eventually(page, f"document.querySelector('#view-graph').textContent.includes('step {step}')")
    assert page.input_value("#search") == "seeds"
    assert page.locator(".run.on .name").all_text_contents() == ["seeds/a"]
    assert page.locator(".view-tab.on").get_attribute("data-view") == "probe"
    assert page.input_value("#step-slider") == "3"
    page.locator(".run .open", has_text="seeds/b").click()
    eventually(page, "document.querySelector('h1').textContent.includes('seeds/b')")
    page.go_back()
    eventually(page, "document.querySelector('h1').textContent.includes('seeds/a')")
    eventually(page, "document.querySelector('#step-slider').value === '3'")


def test_runs_lie_over_each_other_with_a_band(visit):
    page = visit("?run=seeds%2Fa")
    page.wait_for_selector(".run.on")
    page.locator(".run", has_text="seeds/b").locator("input").check()
    eventually(page, "document.querySelector('h1').textContent === '2 runs over each other'")
    assert "run=seeds%2Fa&run=seeds%2Fb" in page.url
    eventually(page, f"{PLOT}.data.some((trace) => trace.fill === 'tonexty' || trace.fill === 'toself')")
    assert page.locator("#view-card").is_hidden()


def test_figures_are_saved(visit, tiny_run):
    page = visit("?run=seeds%2Fa&view=probe")
    drawn(page, "view")
    with page.expect_download() as found:
        page.click("#timeline-saves [data-save=svg]")
    assert Path(found.value.path()).read_text().startswith("<svg")
    assert found.value.suggested_filename == "timeline-seeds-a.svg"
    with page.expect_download() as found:
        page.click("#view-saves [data-save=png]")
    assert Path(found.value.path()).read_bytes()[:4] == b"\x89PNG"
    assert found.value.suggested_filename.endswith("-seeds-a-step40.png")
    with page.expect_download() as found:
        page.click("#timeline-csv")
    rows = pd.read_csv(io.BytesIO(Path(found.value.path()).read_bytes()))
    logged = tiny_run.metrics.dropna(subset=["val_loss_answer"]).query("step > 0")
    own = rows[(rows["panel"] == "Validation loss") & (rows["curve"] == "over the answer alone")]
    assert own["value"].tolist() == pytest.approx(logged["val_loss_answer"].tolist())
    with page.expect_download() as found:
        page.click("#view-csv")
    assert set(pd.read_csv(found.value.path())["step"]) == {40}


def test_a_button_starts_a_lens_in_the_background(visit, folder):
    page = visit("?run=seeds%2Fb")
    page.wait_for_selector("[data-start=validate]")
    line = page.locator(".lens", has=page.locator("[data-start=validate]"))
    line.locator("summary").click()
    line.locator("[data-option=steps]").fill("last")
    page.click("[data-start=validate]")
    line.locator(".badge").wait_for()
    line.locator(".badge.finished").wait_for(timeout=4 * WAIT_MS)  # a process of its own loads PyTorch first
    assert len(qfl.Run.open(folder / "seeds" / "b").table("validate").read()) == 1
    assert line.locator("[data-option=steps]").input_value() == "last"
    page.locator("[data-option=steps]").first.fill("12345")
    page.click("[data-start=validate]")
    line.locator(".fault, .badge.failed").first.wait_for()


def test_rows_of_a_training_appear_while_one_looks(visit):
    page = visit("?run=live")
    drawn(page, "timeline")
    page.wait_for_selector(".run.on .badge.training")
    last = f"Math.max(...{PLOT}._fullData[0].x)"
    before = page.evaluate(last)
    page.evaluate("window.notReloaded = true")
    eventually(page, f"{last} > {before}")
    eventually(page, f"{last} > {page.evaluate(last)}")
    box = page.locator("#timeline-graph .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 20, steps=5)
    page.mouse.up()
    shown = f"JSON.stringify({PLOT}._fullLayout.xaxis.range)"
    zoomed = page.evaluate(shown)
    now = page.evaluate(last)
    eventually(page, f"{last} > {now}")
    assert page.evaluate(shown) == zoomed  # what the reader zoomed to stays ...
    page.mouse.dblclick(box["x"] + box["width"] * 0.5, box["y"] + 20)
    now = page.evaluate(last)
    eventually(page, f"{last} > {now}")
    assert page.evaluate(f"{PLOT}._fullLayout.xaxis.range[1] > Math.log10({last})")  # ... until all of it is wanted
    assert page.evaluate("window.notReloaded")
    assert page.locator("#head .badge.training").count() == 1


def test_a_run_that_is_deleted_while_one_looks(visit, folder):
    page, other = visit("?run=leaving"), visit("?run=seeds%2Fa")
    drawn(page, "timeline")
    shutil.rmtree(folder / "leaving")
    page.wait_for_selector("#head .fault")
    assert "moved or deleted" in page.locator("#head .fault").text_content()
    eventually(page, "![...document.querySelectorAll('.run .name')].some((one) => one.textContent === 'leaving')")
    page.locator(".run .open", has_text="seeds/b").click()
    eventually(page, "document.querySelector('h1').textContent.includes('seeds/b')")
    assert other.locator("h1").text_content().startswith("seeds/a")  # two viewers, two pages


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page(visit, scheme):
    page = visit(f"?run={urllib.parse.quote(HOSTILE)}", width=400, scheme=scheme)
    drawn(page, "timeline")
    assert page.locator("h1").text_content().startswith(HOSTILE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("#list").is_hidden()
    page.click("#toggle-list")
    assert page.locator("#list").is_visible()
    ink, paper = ("rgb(228, 231, 235)", "#181B20") if scheme == "dark" else ("rgb(34, 38, 43)", "#FFFFFF")
    assert page.evaluate("getComputedStyle(document.body).color") == ink
    assert page.evaluate(f"{PLOT}._fullLayout.paper_bgcolor") == paper
    page.click("#toggle-theme")
    eventually(page, f"{PLOT}._fullLayout.paper_bgcolor !== '{paper}'")


def test_a_folder_without_runs_on_a_port_in_use(visit, viewer, tmp_path, capsys):
    port = int(urllib.parse.urlsplit(viewer.url).port)
    empty = view(tmp_path, port=port, open_browser=False, block=False)
    try:
        assert f"port {port} is in use" in capsys.readouterr().out
        assert empty.url != viewer.url
        page = visit(url=empty.url)
        page.wait_for_selector("#head pre")
        assert "qfl train" in page.locator("#head pre").text_content()
        qfl.train(
            qfl.load_task("addition", length=3), qfl.ModelConfig(d_model=8, n_layers=1), tiny_train_config(n_steps=2),
            tmp_path / "new", progress=False,
        )  # fmt: skip
        page.wait_for_selector(".run")
    finally:
        empty.stop()


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_other_names_get_nothing(viewer, headers):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(viewer.url, headers=headers))
    assert viewer.url.startswith("http://127.0.0.1:")


def test_a_table_of_nothing_says_so(viewer):
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        urllib.request.urlopen(f"{viewer.url}table.csv?of=timeline&run=..%2F..%2Fetc")
    assert b"moved or deleted" in error.value.read()
