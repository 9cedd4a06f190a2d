"""Every kind of figure drawn in a real Chromium: nothing overlaps, nothing is cut, letters are of a readable size."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from qfl_interp.plots.paper import name_figure, printed
from qfl_interp.plots.theme import PAPER_WIDTH, drawn_at, figure_config
from tests.plots.figures_of_all_kinds import FIGURES

pytestmark = pytest.mark.slow
MEASURE = (Path(__file__).parent / "measure.js").read_text()
PT = 96 / 72
# Boxes may touch: those of texts have room for accents and descenders.
TOLERANCE = 1.5
RUN = "addition length 16, seed 0 · run add16-1ea2"


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_content("<body style='margin:0'><div id='plot'></div></body>")
    page.add_script_tag(content=get_plotlyjs())
    yield page
    page.close()


def boxes(page: Any, figure: go.Figure, config: dict[str, Any], width: int) -> dict[str, Any]:
    """What the figure covers when it is drawn so wide."""
    spec = {**json.loads(str(figure.to_json())), "config": config}
    spec["layout"] = spec["layout"] | {"width": width, "autosize": False}
    return page.evaluate(
        f"""async (spec) => {{
            const plot = document.getElementById("plot");
            Plotly.purge(plot);
            await Plotly.newPlot(plot, spec);
            return ({MEASURE})(plot);
        }}""",
        spec,
    )


def overlap(one: list[float], other: list[float], tolerance: float = TOLERANCE) -> bool:
    """Whether two boxes share more than an edge."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide > tolerance and high > tolerance


def troubles(found: dict[str, Any], letters: tuple[float, float] | None = None) -> list[str]:
    """What is wrong with a drawn figure, a line each."""
    wrong, texts = [], found["texts"]
    for one, other in itertools.combinations(texts, 2):
        if overlap(one["box"], other["box"], 2.5):
            wrong.append(f"{one['kind']} {one['text']!r} on {other['kind']} {other['text']!r}")
    wrong += [f"dropped: {text!r}" for text in found["dropped"]]
    width, height = found["size"]
    for one in texts:
        left, top, right, bottom = one["box"]
        if left < -0.5 or top < -0.5 or right > width + 0.5 or bottom > height + 0.5:
            wrong.append(
                f"cut: {one['kind']} {one['text']!r} at {[round(v) for v in one['box']]} of {width} x {height}"
            )
        outside = [area["name"] for area in found["areas"] if overlap(one["box"], area["box"])]
        if outside and one["kind"] not in ("trace", "mark"):
            wrong.append(f"{one['kind']} {one['text']!r} over the curves of {outside}")
        if letters and not all(letters[0] * PT - 0.1 <= size <= letters[1] * PT + 0.1 for size in one["sizes"]):
            wrong.append(f"letters of {[size / PT for size in one['sizes']]} pt: {one['kind']} {one['text']!r}")
        if one["angle"] % 90:
            wrong.append(f"slanted: {one['kind']} {one['text']!r}")
        if found["toolbar"] and overlap(one["box"], found["toolbar"]):
            wrong.append(f"toolbar on {one['kind']} {one['text']!r}")
    for legend in found["legends"]:
        covered = [area["name"] for area in found["areas"] if overlap(legend["box"], area["box"], 3)]
        covered += [
            text["text"] for text in texts
            if not text["kind"].startswith("legend") and overlap(legend["box"], text["box"], 3)
        ]  # fmt: skip
        if covered:
            wrong.append(f"legend {legend['name']} covers {covered}")
        if legend["box"][2] > width + 0.5:
            wrong.append(f"cut: legend {legend['name']}")
    for control in found["controls"]:
        covered = [
            text["text"] for text in texts
            if text["kind"] not in ("button", "slider") and overlap(control["box"], text["box"])
        ]  # fmt: skip
        if covered:
            wrong.append(f"{control['name']} covers {covered}")
    return wrong


def test_boxes_that_overlap_are_found():
    text = {"kind": "annotation", "text": "a", "box": [10, 10, 50, 24], "sizes": [12.0], "angle": 0}
    nothing = {"areas": [], "legends": [], "controls": [], "dropped": [], "toolbar": None}
    clean = {"texts": [text], **nothing, "size": [300, 100]}
    assert troubles(clean, (7, 9)) == []
    other = text | {"text": "b", "box": [45, 12, 320, 26]}
    assert troubles(clean | {"texts": [text, other]}) == [
        "annotation 'a' on annotation 'b'", "cut: annotation 'b' at [45, 12, 320, 26] of 300 x 100",
    ]  # fmt: skip
    assert troubles(clean | {"areas": [{"name": "xy", "box": [0, 20, 300, 90]}]}) == [
        "annotation 'a' over the curves of ['xy']"
    ]
    assert troubles(clean | {"legends": [{"name": "legend", "box": [0, 0, 60, 30]}]}) == ["legend legend covers ['a']"]
    assert troubles(clean | {"texts": [text | {"sizes": [8.0]}]}, (7, 9)) == ["letters of [6.0] pt: annotation 'a'"]
    assert troubles(clean | {"toolbar": [0, 0, 300, 20]}) == ["toolbar on annotation 'a'"]
    assert troubles(clean | {"texts": [text | {"angle": -90}], "dropped": ["b"]}) == ["dropped: 'b'"]
    assert troubles(clean | {"texts": [text | {"angle": 30}]}) == ["slanted: annotation 'a'"]


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_overlaps_on_paper_or_on_a_screen(page, name):
    wrong = {}
    with drawn_at(317):
        narrow = name_figure(FIGURES[name](), RUN)
    figure = name_figure(FIGURES[name](), RUN)
    for inches, width, drawn in ((3.3, 317, narrow), (7, PAPER_WIDTH, figure)):
        found = boxes(page, printed(drawn), {"staticPlot": True}, width)
        if lines := troubles(found, (7, 9)):
            wrong[f"{inches} inches"] = lines
    config = figure_config(figure) | {"displayModeBar": True, "responsive": False}
    if lines := troubles(boxes(page, figure, config, PAPER_WIDTH)):
        wrong["on a screen"] = lines
    assert wrong == {}
