from __future__ import annotations

import base64
import html.parser
import io
import json
import re

import pandas as pd
import pytest

from qfl_interp.analyses.lenses.ablate.figure import ablation_figure
from qfl_interp.analyses.lenses.emergence.findings import findings
from qfl_interp.analyses.pages.timeline_figure import timeline_figure
from qfl_interp.errors import QflError
from qfl_interp.report.page import Finding, Section, render_report, write_report
from tests import synthetic_tables as tables


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the text of scripts by id."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._open: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = [dict(attrs)] if tag in ("script", "style") else []

    def handle_endtag(self, tag):
        self._open = []

    def handle_data(self, data):
        if not self._open:
            self.text += data
        elif "id" in self._open[0]:
            self.scripts[str(self._open[0]["id"])] = self.scripts.get(str(self._open[0]["id"]), "") + data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def full() -> str:
    sections = tables.sections()
    return render_report(tables.card(), sections, findings=findings(tables.emergence()))


def test_report_holds_every_section_and_figure(full):
    page = Page(full)
    for title in (
        "Timeline",
        "Verdicts",
        "Probes: carry",
        "Ablation",
        "Limits",
        "Configuration and environment",
    ):
        assert title in page.text
    figures = {name: json.loads(text) for name, text in page.scripts.items() if name.startswith("figure-")}
    assert set(figures) == {"figure-0", "figure-1", "figure-2"}
    assert len(figures["figure-1"]["frames"]) == len(tables.checkpoint_steps())
    assert sum(attrs.get("class") == "plot" for _, attrs in page.elements) == 3
    # Those of the sections; what the run is stands in tables of its own.
    assert page.count("thead") == 2
    assert page.count("table") == 2 + len(("run", "environment", "model", "train"))
    assert "arXiv 2505.03997" in page.text


def test_plotly_is_inlined_once_and_nothing_is_loaded(full):
    assert full.count("plotly.js v") == 1
    page = Page(full)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "content" in a)
    assert "default-src 'none'" in str(policy)
    for tag, attrs in page.elements:
        assert "src" not in attrs, tag
        assert tag not in ("iframe", "object", "embed", "base"), tag
        target = attrs.get("href") or "#"
        assert target.startswith(("#", "data:")) or (tag == "a" and target.startswith("https://arxiv.org/"))
    assert "@import" not in full.split("</style>")[0]
    assert "url(" not in full.split("</style>")[0]


def test_downloads_hold_the_whole_tables(full):
    links = {a["download"]: a["href"] for tag, a in Page(full).elements if "download" in a}
    assert set(links) == {"validation.csv", "emergence_curve.csv", "emergence.csv", "ablate.csv"}
    text = base64.b64decode(str(links["ablate.csv"]).split("base64,")[1]).decode()
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), tables.ablate())


def test_head_tells_the_verdicts_in_words(full):
    text = Page(full).text
    assert "learned 0.19 to 0.24 decades of compute before the loss moved" in text
    assert "middle 0.21 (range 0.15 to 0.28)" in text
    assert "beginning: loud, learned 0.06 decades of compute after the loss began to fall" in text
    assert "(range −0.01 to 0.08, uncertain)" in text
    assert "end: not learned" in text
    assert "99.8%" in text


def finding(**change: object) -> Finding:
    row = tables.emergence().iloc[[4]].assign(third="all", **change)
    (found,) = findings(row)
    return found


def test_a_row_over_all_labels_decides():
    rows = pd.concat([tables.emergence().iloc[3:], tables.emergence().iloc[[4]].assign(third="all")])
    (found,) = findings(rows)
    assert found == (
        "carry",
        "quiet",
        "learned 0.21 decades of compute before the loss moved (range 0.15 to 0.28)",
    )


def test_an_unbounded_range_is_told_as_a_bound():
    assert "range at least 0.15)" in finding(lead_high=float("inf")).sentence


def test_findings_without_a_transition_or_a_feature():
    found = findings(tables.emergence(found=False))
    assert {f.verdict for f in found} == {"no transition"}
    assert "fell by less than half of its plateau" in found[0].sentence
    assert findings(pd.DataFrame()) == []


EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def test_strings_from_the_run_are_escaped_everywhere():
    ablate = tables.ablate().assign(feature=EVIL + "</script>", step=716).iloc[:3]
    section = Section(
        EVIL,
        text=f"{EVIL} `{EVIL}` **{EVIL}** https://arxiv.org/abs/1{EVIL}",
        # A figure of a caller's own, whose texts nobody has escaped.
        figure=ablation_figure(ablate).update_layout(title={"text": "</script x " + EVIL}),
        note=EVIL,
        table=pd.DataFrame({EVIL: [EVIL]}),
        downloads={EVIL: pd.DataFrame({EVIL: [EVIL]})},
    )
    card = {"task": EVIL, "length": 16, EVIL: EVIL, "model": {EVIL: EVIL}, "device": EVIL}
    text = render_report(card, [section], findings=[Finding(EVIL, EVIL, EVIL)], title=EVIL)
    page = Page(text)
    clean = Page(render_report({}, [Section("t", figure=timeline_figure(tables.metrics()))]))
    assert page.count("script") == clean.count("script")
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.text.count('alert("x")') >= 8
    # Browsers end a script at "</script" followed by a space too, which this parser does not.
    assert "<" not in page.scripts["figure-0"]
    assert json.loads(page.scripts["figure-0"])["layout"]["title"]["text"] == "</script x " + EVIL


def test_prose_marks():
    text = "One `a*b*` and **bold** and *slanted*.\n\n- first\n  goes on\n- second"
    page = render_report({}, [Section("t", text=text)])
    assert "<p>One <code>a*b*</code> and <strong>bold</strong> and <em>slanted</em>.</p>" in page
    assert "<ul><li>first goes on</li><li>second</li></ul>" in page


def test_table_cells():
    table = pd.DataFrame({"x": [0.123456, 2.5e11, float("nan")], "ok": [True, False, True]})
    page = render_report({}, [Section("t", table=table)])
    cells = re.findall(r'<td class="(\w+)"[^>]*>([^<]*)</td>', page)
    assert cells == [
        ("number", "0.1235"),
        ("word", "yes"),
        ("number", "2.5×10¹¹"),
        ("word", "no"),
        ("number", "–"),
        ("word", "yes"),
    ]


def test_a_page_is_not_named_as_a_picture(tmp_path):
    with pytest.raises(QflError, match=r"a page is HTML, and 'x\.png' is the name of a picture\. Name it x\.html"):
        write_report(tmp_path / "x.png", tables.card(), [Section("First")])
    assert not list(tmp_path.iterdir())


def test_write_report_is_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    sections = [Section("First")]
    assert write_report(target, tables.card(), sections) == target
    before = target.read_text(encoding="utf-8")
    assert before == render_report(tables.card(), sections)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(QflError, match=r"the disk is full: writing .*report.html"):
        write_report(target, tables.card(), [Section("Second")])
    assert target.read_text(encoding="utf-8") == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
