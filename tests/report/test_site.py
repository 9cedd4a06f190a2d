"""Several runs on one page, and a static site of many: what they hold, keep and refuse, and how they read."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import tiny_train_config
from helpers_browser import eventually, opened, wait_drawn

import qfl_interp as qfl
from qfl_interp.analyses import emergence, report
from qfl_interp.analyses.pages import site as sites
from qfl_interp.analyses.pages.site import site
from qfl_interp.cli.main import main
from qfl_interp.errors import QflError
from qfl_interp.report.page import Section, render_report
from qfl_interp.report.section import Link, Sparkline, Verdict

PROBES = qfl.ProbeConfig(n_train=60, n_test=40)
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(addition, model_config, tmp_path_factory) -> Path:
    """A folder of two runs, the first with verdicts."""
    folder = tmp_path_factory.mktemp("site") / "runs"
    config = {"n_steps": 6, "n_checkpoints": 3}
    for name, more in {"a": {"seed": 0}, "b": {"seed": 0, "lr": 0.01}}.items():
        qfl.train(addition, model_config, tiny_train_config(**config | more), folder / name, progress=False)
    emergence(qfl.Run.open(folder / "a"), "carry", config=PROBES, n_resamples=5, progress=False)
    return folder


@pytest.fixture(scope="module")
def public(runs, tmp_path_factory) -> Path:
    """A site of these, of runs with a hostile name, a damaged log, a torn table, and of one that has just begun."""
    folder = tmp_path_factory.mktemp("shown") / "runs"
    shutil.copytree(runs, folder)
    shutil.copytree(runs / "b", folder / EVIL)
    shutil.copytree(runs / "b", folder / "damaged")
    (folder / "begun").mkdir()
    for name in ("config.json", "task.json"):
        shutil.copy(runs / "b" / name, folder / "begun" / name)
    log = folder / "damaged" / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"step": 1', b'"step": 7', 1))
    table = next((folder / "a" / "analyses" / "emergence_curve").glob("*.parquet"))
    shutil.copytree(folder / "a", folder / "torn")
    torn = folder / "torn" / table.relative_to(folder / "a")
    torn.write_bytes(torn.read_bytes()[:-40])
    site(folder, folder.parent / "public", progress=False)
    return folder.parent / "public"


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def text_of(page: Path) -> str:
    return html.unescape(
        re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8").split("<header>")[1].split("<script")[0])
    )


def test_a_site_has_a_page_a_run_and_plotly_once(public):
    pages = sorted(path.name for path in public.glob("runs/*.html"))
    assert [name for name in pages if not name.startswith("img")] == ["a.html", "b.html", "torn.html"]
    assert len(pages) == 4
    (library,) = (public / "assets").iterdir()
    assert library.stat().st_size > 1_000_000
    for page in public.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert len(text) < 700_000
        assert EVIL not in text
        targets = re.findall(r'(?:href|src)="([^"]*)"', text)
        assert all(one.startswith(("./", "#", "data:", "../assets/", "https://arxiv.org/")) for one in targets), page
    index = text_of(public / "index.html")
    assert EVIL in index
    assert "damaged" in index
    assert "is not what was written" in index
    assert "finished, 1 not shown" in index
    assert "not measured" in index
    assert "qfl validate" in index
    assert "torn/analyses/emergence_curve" in text_of(public / "runs" / "torn.html")
    # Where the runs lie is not published.
    assert not any(str(public.parent) in page.read_text(encoding="utf-8") for page in public.rglob("*.html"))


def test_a_page_of_a_site_shows_what_was_computed_and_computes_nothing(public, runs):
    assert "Verdicts" in text_of(public / "runs" / "a.html")
    assert "Verdicts" not in text_of(public / "runs" / "b.html")
    assert not (public.parent / "runs" / "b" / "analyses").exists()
    before = stamps(runs)
    page = report(qfl.Run.open(runs / "a"), compute=False, out=runs.parent / "known.html")
    assert stamps(runs) == before
    for title in ("Verdicts", "Probes: carry", "Timeline"):
        assert title in text_of(page)
    assert "Probes: first operand" not in text_of(page)


@pytest.mark.slow
def test_pages_whose_run_has_not_changed_are_kept(runs, tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder)
    out = folder / "public"
    assert site(folder, out, progress=False)[1:] == (2, 0, {})
    before = stamps(out)
    (out / "CNAME").write_text("mine")
    emergence(qfl.Run.open(folder / "b"), "carry", config=PROBES, n_resamples=5, progress=False)
    assert site(folder, out, progress=False).n_kept == 1
    after = stamps(out)
    changed = {name for name in before if after[name] != before[name]}
    assert {"runs/b.html", "runs/b.json"} <= changed
    assert not changed & {"runs/a.html", "runs/a.json", *(name for name in before if name.startswith("assets"))}
    # One that was killed before its record was written is written again; a run that is gone takes its page along.
    (out / "runs" / "a.json").unlink()
    shutil.rmtree(folder / "b")
    assert site(folder, out, progress=False)[1:3] == (1, 0)
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["a.html", "a.json"]
    assert (out / "CNAME").read_text() == "mine"
    # Another look of pages is another page.
    monkeypatch.setattr(sites, "page_look", lambda: "new")
    assert site(folder, out, progress=False).n_kept == 0


def test_foreign_files_are_not_overwritten(runs, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(QflError, match=r"holds other files \('thesis.tex' and so on\)"):
        site(runs, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    out = tmp_path / "public"
    site(runs, out, progress=False)
    (out / "runs" / "a.json").unlink()
    (out / "runs" / "a.html").write_text("<p>not ours")
    found = site(runs, out, progress=False)
    assert list(found.missing) == [str(runs / "a")]
    assert (out / "runs" / "a.html").read_text() == "<p>not ours"
    with pytest.raises(QflError, match="no run and no suite file lies below"):
        site(tmp_path / "none", tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


def test_names_of_pages_are_plain_and_each_its_own():
    names = [sites._name(Path(text)) for text in ("a/b", "a--b", "a b", "a-b", "../x", "", EVIL, "ä")]
    assert len({*names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
    assert sites._name(Path("a-b")) == "a-b"


def test_runs_beside_each_other(runs, tmp_path):
    before = stamps(runs)
    page = report([qfl.Run.open(runs / "a"), qfl.Run.open(runs / "b")], out=tmp_path / "both.html")
    assert stamps(runs) == before
    text = text_of(page)
    settings = re.search(r'id="what-differs".*?<tbody>(.*?)</tbody>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert settings is not None
    rows = re.findall(r"<tr>(.*?)</tr>", settings[1])
    assert [re.findall(r">([^<]*)</td>", row) for row in rows] == [["train.lr", "0.001", "0.01"]]
    for said in (f"qfl emergence {runs / 'b'}", f"qfl report {runs / 'a'}", "has no probes of carry", "Run b"):
        assert said in text
    links = re.findall(r'href="(#run-\w+)"', page.read_text(encoding="utf-8"))
    assert {"#run-a", "#run-b"} <= {*links}


@pytest.mark.slow
def test_the_command_takes_runs_and_features(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(runs)

    def call(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["qfl", *map(str, words)])
        with pytest.raises(SystemExit) as leaving:
            main()
        assert not leaving.value.code
        return capsys.readouterr().out

    # A folder with a feature's name is the feature; with a path it is the run.
    shutil.copytree(runs / "b", tmp_path / "carry")
    for words, title in ((["a", "b", "carry"], "2 runs"), (["a", "carry", "--no-compute"], "addition")):
        call("report", *words, "--out", tmp_path / "page.html")
        assert title in text_of(tmp_path / "page.html")
    assert json.loads(call("site", runs, "--out", tmp_path / "public", "--json", "--quiet"))["n_pages"] == 2
    assert os.listdir(tmp_path / "public" / "runs")


def test_cells_with_links_verdicts_and_curves():
    import pandas as pd

    cells = [Link(EVIL, "javascript:alert(1)"), Link("up", "//evil/x"), Sparkline([1.0, float("nan"), 3.0, 2.0], EVIL)]
    cells += [(Verdict("quiet", EVIL), Verdict(EVIL)), Sparkline([1.0], "one point")]
    page = render_report({}, [Section("t", table=pd.DataFrame({"x": cells}))])
    assert 'href="./javascript%3Aalert%281%29"' in page
    assert 'href=".///evil/x"' in page
    # From the lowest value at the bottom to the highest at the top, and a dot at the last.
    assert 'points="3.0,19.0 48.0,3.0 93.0,11.0"/><circle cx="93.0" cy="11.0"' in page
    assert page.count("<polyline") == 1
    assert EVIL not in page


# In the browser


def test_the_index_sorts_filters_and_leads_to_runs(browser, public):
    with opened(browser, public / "index.html") as page:
        names = "[...document.querySelectorAll('tbody tr:not([hidden])')].map(row => row.cells[0].textContent)"
        assert page.evaluate(names) == [EVIL, "a", "b", "begun", "damaged", "torn"]
        head = page.locator("thead th", has_text="run")
        head.click()
        head.click()
        assert page.evaluate(names) == ["torn", "damaged", "begun", "b", "a", EVIL]
        assert page.locator("svg.spark polyline").count() == 4
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.locator("td a", has_text=EVIL).click()
        wait_drawn(page, 1)
        assert any(url.endswith(".min.js") for url in page.asked)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.locator(".kicker a").click()
        assert page.url.endswith("index.html")
        page.locator("td a", has_text=re.compile("^a$")).click()
        eventually(page, "document.documentElement.dataset.drawn === '2'")


def test_the_comparison_is_drawn_and_leads_to_its_runs(browser, runs, tmp_path):
    page_file = report([qfl.Run.open(runs / "a"), qfl.Run.open(runs / "b")], out=tmp_path / "both.html")
    with opened(browser, page_file) as page:
        wait_drawn(page, 1)
        page.locator("#runs a", has_text="b").click()
        eventually(page, "document.querySelector('#run-b').getBoundingClientRect().bottom <= window.innerHeight")
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
