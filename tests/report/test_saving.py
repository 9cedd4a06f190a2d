"""Figures as files: by the ending, at paper widths; and what a terminal shows of a figure."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import types

import pandas as pd
import pytest
from helpers_browser import CHROMIUM
from plotly import graph_objects as go

import qfl_interp as qfl
from qfl_interp.analyses.lenses.emergence.figure import emergence_figure
from qfl_interp.analyses.lenses.probe.figure import probe_heatmap
from qfl_interp.analyses.result import Result
from qfl_interp.plots.theme import PAPER_WIDTH, page_width
from qfl_interp.report import drawing
from qfl_interp.report.drawing import Drawing
from tests import synthetic_tables as tables

RUN = "addition length 16, seed 0 · run <add16>"


def draw() -> go.Figure:
    return emergence_figure(tables.metrics(), tables.emergence_curve(), tables.emergence())


@pytest.fixture
def figure() -> Drawing:
    return Drawing.of(draw, RUN)


@pytest.fixture
def no_screen(monkeypatch, tmp_path):
    """A terminal on another machine."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PLOTLY_RENDERER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSH_CONNECTION", "1")
    monkeypatch.setenv("QFL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(drawing.pio.renderers, "default", "plotly_mimetype")


def named(figure: go.Figure) -> str:
    (line,) = [note.text for note in figure.layout.annotations if note.name == "run"]
    return line


def test_the_ending_says_what_is_written(figure, tmp_path):
    page = qfl.save_figure(figure, tmp_path / "a.html")
    assert page == tmp_path / "a.html"
    assert "<html>" in page.read_text()[:100]
    spec = json.loads(qfl.save_figure(figure, tmp_path / "a.JSON").read_text())
    assert len(spec["data"]) == len(figure.data)
    with pytest.raises(qfl.QflError, match=r"got 'a.gif'. End it in .html, .png, .svg, .pdf, .json"):
        qfl.save_figure(figure, tmp_path / "a.gif")
    with pytest.raises(qfl.QflError, match="is a folder"):
        qfl.save_figure(figure, _folder(tmp_path / "b.html"))
    with pytest.raises(ValueError, match=r"width_inches must be from 2 to 20, got 0\.3"):
        qfl.save_figure(figure, tmp_path / "a.html", width_inches=0.3)


def _folder(path):
    path.mkdir()
    return path


def test_a_narrow_figure_is_drawn_anew_and_changes_are_not_lost(figure, tmp_path):
    narrow = figure.at_width(317)
    assert (narrow.layout.width, narrow.layout.meta["width"]) == (317, 317)
    assert narrow.layout.height > figure.layout.height, "its texts take more lines"
    assert page_width() == PAPER_WIDTH
    assert narrow.at_width(PAPER_WIDTH).to_json() == figure.to_json()
    figure.update_traces(line_width=5)
    with pytest.raises(qfl.QflError, match="changed since it was drawn"):
        qfl.save_figure(figure, tmp_path / "a.json", width_inches=3.3)
    assert qfl.save_figure(figure, tmp_path / "a.json").exists(), "at its own width it is written as it is"
    other = qfl.save_figure(go.Figure(go.Scatter(x=[1], y=[2])), tmp_path / "b.json", width_inches=7)
    assert json.loads(other.read_text())["layout"]["width"] == PAPER_WIDTH


def test_a_figure_says_whose_it_is(figure):
    assert named(figure) == "addition length 16, seed 0 · run &lt;add16&gt;"
    rows = pd.DataFrame({"feature": ["carry"]})
    shown = Result("Probes", rows, rows, lambda rows: draw(), of=RUN).plot()
    assert named(shown) == named(figure)
    assert figure.layout.meta["height"] == figure.layout.height


def test_a_figure_with_a_slider_says_it_at_every_step():
    from qfl_interp.analyses.lenses.patch.figure import patch_figure

    shown = Drawing.of(lambda: patch_figure(tables.patch()), RUN)
    assert len(shown.frames) == 5
    for frame in shown.frames:
        assert [note.text for note in frame.layout.annotations if note.name == "run"] == [named(shown)]


def test_without_a_screen_a_figure_is_a_line_and_a_page(figure, no_screen, capsys, tmp_path):
    assert len(repr(figure)) < 200
    assert "\n" not in repr(figure)
    assert "emergence" not in repr(figure)  # it is a timeline
    assert capsys.readouterr().out == ""
    figure.show()
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {tmp_path / 'home' / 'figures' / 'timeline-'}")
    assert said.count("\n") == 1
    figure._ipython_display_()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [repr(figure), said.strip()]
    (page,) = (tmp_path / "home" / "figures").iterdir()
    assert "<html>" in page.read_text()[:100]


def test_a_notebook_and_a_browser_show_it_as_before(figure, no_screen, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(drawing.pio, "show", lambda *args, **kwargs: calls.append(kwargs))
    figure.show(renderer="json")
    assert calls == [{"renderer": "json"}]
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    figure.show()
    figure._ipython_display_()
    assert len(calls) == 3
    assert capsys.readouterr().out == ""


def test_a_picture_in_a_notebook_has_no_slider(no_screen, monkeypatch):
    figure = Drawing.of(lambda: probe_heatmap(tables.probe(), "carry"))
    shown = []
    monkeypatch.setattr(drawing.pio, "show", shown.append)
    monkeypatch.setattr(drawing, "_in_notebook", lambda: True)
    for renderer in ("png", "notebook"):
        monkeypatch.setattr(drawing.pio.renderers, "default", renderer)
        figure._ipython_display_()
    picture, live = shown
    assert picture.layout.sliders == picture.layout.updatemenus == ()
    assert live is figure
    assert len(live.layout.sliders) == 1


def test_pictures_need_kaleido(figure, monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: (name != "kaleido" and found(name, *rest)) or None
    )
    monkeypatch.setattr(go.Figure, "to_image", lambda *_, **__: pytest.fail("no kaleido: it is not asked"))
    with pytest.raises(qfl.QflError, match=r"pip install 'qfl-interp\[figures\]'"):
        qfl.save_figure(figure, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium or Chrome on the PATH, found none")
def test_pictures_have_the_width_of_the_paper(figure, tmp_path):
    pytest.importorskip("kaleido", reason="needs kaleido")
    png = qfl.save_figure(figure, tmp_path / "a.png", width_inches=3.3).read_bytes()
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">I", png[16:20])[0] == pytest.approx(3.3 * 300, abs=2)
    pdf = qfl.save_figure(figure, tmp_path / "a.pdf", width_inches=3.3).read_bytes()
    box = pdf[pdf.index(b"/MediaBox") :].split(b"[")[1].split(b"]")[0].split()
    assert float(box[2]) == pytest.approx(3.3 * 72, abs=1)
    svg = qfl.save_figure(figure, tmp_path / "a.svg", width_inches=7).read_text()
    assert 'width="672"' in svg[:300]
    assert "sans-serif" in svg
