"""What a report and a timeline show of each lens, which rows they take, and what they say of a lens that fails."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from importlib.metadata import EntryPoint

import numpy as np
import pandas as pd
import pytest

import qfl_interp as qfl
from qfl_interp import plugins
from qfl_interp.analyses import ablate, ablate_units, patch, timeline, transfer
from qfl_interp.analyses.lens import Lens, Page
from qfl_interp.analyses.lenses.ablate.figure import ablation_panel
from qfl_interp.analyses.lenses.ablate.lens import Ablate
from qfl_interp.analyses.lenses.ablate_units.lens import AblateUnits
from qfl_interp.analyses.lenses.interchange.lens import Interchange
from qfl_interp.analyses.lenses.mdl.figure import mdl_panel
from qfl_interp.analyses.lenses.mdl.lens import Mdl
from qfl_interp.analyses.lenses.patch.lens import Patch
from qfl_interp.analyses.lenses.transfer.lens import Transfer
from qfl_interp.analyses.models_at import ModelAt
from qfl_interp.analyses.pages import report as reporting
from qfl_interp.analyses.pages import shown
from qfl_interp.analyses.part_lens import PartLens, Piece
from qfl_interp.analyses.registered import Registered, lenses, registered
from qfl_interp.analyses.stored import rows_of_one_call, with_holm
from qfl_interp.config import ProbeConfig
from qfl_interp.errors import QflError
from qfl_interp.plots.panels import Panel
from qfl_interp.report.page import Section, render_report
from qfl_interp.stats import holm
from tests import synthetic_tables as tables

CONFIG = ProbeConfig(n_train=60, n_test=40)
STEPS = (110, tables.N_STEPS)


def titles(lens, rows) -> list[str]:
    """Of the sections of these rows."""
    return [section.title for section in lens.sections_of(rows)]


def named(lens, title: str, rows) -> Section:
    """The one section with this title."""
    (found,) = [section for section in lens.sections_of(rows) if section.title == title]
    return found


# Which sections there are


def test_lenses_have_one_order():
    ours = [lens.name for lens in lenses() if lens.__module__.startswith("qfl_interp.analyses.")]
    assert ours == [
        "capture", "validate", "emergence", "probe", "transfer", "mdl", "ablate", "interchange", "patch",
        "ablate_units", "polca", "curvature", "edge",
    ]  # fmt: skip


def test_each_feature_label_method_and_site_has_a_figure_of_its_own():
    assert titles(Transfer, tables.transfer(STEPS)) == ["Probes carried over: carry"]
    assert titles(Mdl, tables.mdl()) == ["Description length: carry", "Description length: first operand"]
    assert titles(Interchange, tables.interchange(steps=STEPS)) == ["Interchange: carry"]
    assert titles(Patch, tables.patch(steps=STEPS)) == ["Patching: carry, label 2", "Attribution: carry, label 2"]
    rows = tables.patch(("resid_pre",), steps=STEPS[-1:])
    patched = pd.concat([rows, rows.assign(label=3), rows.assign(feature="other")])
    found = [title for title in titles(Patch, patched) if title.startswith("Patching")]
    assert found == ["Patching: carry, label 2", "Patching: carry, label 3", "Patching: other, label 2"]
    units = pd.concat([tables.ablate_units("z"), tables.ablate_units("mlp_post").assign(method="zero")])
    assert titles(AblateUnits, units) == ["Single attention heads, mean", "Single MLP neurons, zero"]
    rows = tables.ablate_over_steps()
    found = [title for title in titles(Ablate, pd.concat([rows, rows.assign(method="mean")])) if "carry" in title]
    assert found == ["Ablation over training: carry, written", "Ablation over training: carry, mean"]


@pytest.mark.parametrize(("steps", "shown"), [((tables.N_STEPS,), 0), ((0, tables.N_STEPS), 0), ((35, 110), 2)])
def test_an_ablation_of_one_step_is_no_curve(steps, shown):
    rows = tables.ablate_over_steps()
    assert len(titles(Ablate, pd.DataFrame(rows[rows["step"].isin(steps)]))) == shown


def test_a_feature_ablated_by_two_methods_has_one_panel():
    rows = tables.ablate_over_steps().assign(analysis="a")
    fewer = pd.DataFrame(rows[rows["step"] > 35]).assign(method="mean", analysis="b")
    panels = Ablate.panels_of(pd.concat([fewer, rows]))
    assert [panel.title for panel in panels] == ["Ablating first operand", "Ablating carry"]
    assert 35 * tables.FLOPS_PER_STEP in list(panels[0].traces[0].x), "the method with most steps"


def test_what_cannot_be_drawn_has_no_section():
    without = tables.patch(steps=STEPS[-1:]).assign(attribution=np.nan)
    assert titles(Patch, without) == ["Patching: carry, label 2"]
    rows = tables.mdl()
    assert titles(Mdl, pd.DataFrame(rows[rows["step"] == 0])) == []
    # No logit difference to compare with at the initial model.
    assert titles(Patch, tables.patch(steps=(0,))) == ["Patching: carry, label 2"]


# What they show


def test_figures_show_the_tables_rows():
    last = tables.N_STEPS
    rows = tables.patch(steps=STEPS)
    map_of = named(Patch, "Patching: carry, label 2", rows).figure
    (shown,) = [t for t in map_of.data if t.name == "logit_diff_normalised" and t.xaxis == "x"]
    at_last = rows[(rows["step"] == last) & (rows["component"] == "resid_pre")]
    expected = at_last.pivot(index="layer", columns="position", values="logit_diff_normalised").to_numpy()
    np.testing.assert_allclose(np.array(shown.z, dtype=float), expected, atol=1e-3)

    rows = tables.interchange(steps=STEPS)
    figure = named(Interchange, "Interchange: carry", rows).figure
    first = next(t for t in figure.data if t.name == "probe's directions")
    values = rows[(rows["step"] == last) & (rows["label"] == 1) & (rows["condition"] == "feature")]["flipped"]
    assert list(first.y) == pytest.approx(values.tolist())

    rows = tables.ablate_over_steps()
    figure = named(Ablate, "Ablation over training: carry, written", rows).figure
    curve = next(t for t in figure.data if t.name == "feature removed")
    removed = rows[(rows["feature"] == "carry") & (rows["condition"] == "ablated") & (rows["step"] > 0)]
    assert list(curve.x) == pytest.approx(removed["flops"].tolist())
    assert list(curve.y) == pytest.approx(removed["exact_answer"].tolist())

    rows = tables.mdl()
    figure = named(Mdl, "Description length: first operand", rows).figure
    assert {t.name for t in figure.data if t.name} & {"carry", "first operand"} == {"first operand"}

    rows = tables.transfer(steps=(5, 110))
    figure = named(Transfer, "Probes carried over: carry", rows).figure
    matrix = next(t for t in figure.data if t.name == "test_score")
    pivot = rows.pivot(index="fit_step", columns="eval_step", values="test_score").to_numpy()
    np.testing.assert_allclose(np.array(matrix.z, dtype=float), pivot, atol=1e-3)


def test_downloads_hold_the_rows_of_their_figure():
    rows = tables.patch(steps=STEPS[-1:])
    patched = pd.concat([rows, rows.assign(label=3)], ignore_index=True)
    section = named(Patch, "Patching: carry, label 3", patched)
    ((name, rows),) = section.downloads.items()
    assert name == "patch_carry_3"
    assert len(rows) == len(patched) // 2
    assert set(rows["label"]) == {3}
    page = render_report({}, [section])
    data = page.split("base64,")[1].split('"')[0]
    read = pd.read_csv(io.StringIO(base64.b64decode(data).decode()))
    assert read["logit_diff_normalised"].tolist() == pytest.approx(rows["logit_diff_normalised"].tolist(), nan_ok=True)


def test_figures_of_square_cells_are_not_stretched():
    wide = render_report({}, Interchange.sections_of(tables.interchange(steps=STEPS)))
    square = render_report({}, Transfer.sections_of(tables.transfer(STEPS)))
    assert "max-width:672px" in square
    assert "max-width:672px" not in wide


# Which rows a report takes from a run


@pytest.fixture
def stored(run_copy):
    """A run with small tables of its own: `write(lens, part, rows)`."""

    def write(lens: str, part: str, rows: pd.DataFrame) -> None:
        run_copy.table(lens).write(part, rows)

    return run_copy, write


def rows_of(steps, *, feature="carry", analysis="a", value=0.0, **columns) -> pd.DataFrame:
    """One row a step."""
    rows = {"step": list(steps), "feature": feature, "analysis": analysis, "value": value}
    return pd.DataFrame(rows | columns)


def test_of_several_calls_the_one_with_most_steps_is_taken():
    parts = [
        rows_of([5, 9], analysis="z", value=1.0),
        rows_of([9], analysis="a", value=2.0),
        rows_of([9], analysis="b", value=3.0, feature="other"),
    ]
    found = rows_of_one_call(pd.concat(parts), ["feature"])
    assert found[["feature", "step", "value"]].values.tolist() == [["carry", 5, 1], ["carry", 9, 1], ["other", 9, 3]]
    # With as many steps, the one with more rows.
    found = rows_of_one_call(
        pd.concat([*parts, rows_of([9, 9, 9], analysis="c", value=4.0, feature="other")]), ["feature"]
    )
    assert found[found["feature"] == "other"]["value"].tolist() == [4.0] * 3
    assert rows_of_one_call(pd.DataFrame(), ["feature"]).empty


def test_labels_are_chosen_one_by_one():
    rows = pd.concat([rows_of([5, 9], analysis="a", label=1), rows_of([9], analysis="b", label=2)])
    assert rows_of_one_call(rows, ["feature", "label"])["label"].tolist() == [1, 1, 2]
    assert rows_of_one_call(rows, ["feature"])["label"].tolist() == [1, 1]


def test_tables_are_of_these_features_and_probes(stored):
    run, write = stored
    mine, other = CONFIG.digest(), ProbeConfig(n_train=61, n_test=40).digest()
    for settings, feature in [(mine, "first_operand"), (mine, "carry"), (mine, "sum"), (other, "carry")]:
        columns = {"settings": settings, "feature": feature}
        write("mdl", f"{settings}-{feature}", rows_of([5], **columns))
        write("transfer", f"{settings}-{feature}", rows_of([5], **columns).rename(columns={"step": "eval_step"}))
        write("ablate", f"{settings}-{feature}", rows_of([5], **columns, method="project_out"))
        write("patch", f"{settings}-{feature}", rows_of([5], feature=feature, label=1))
    page = Page(run, ("carry", "first_operand"), config=CONFIG)
    for lens in (Mdl, Transfer, Ablate):
        found = lens.stored(page)
        assert found["feature"].tolist() == ["carry", "first_operand"], lens.name
        assert set(found["settings"]) == {mine}
    # Patches need no probe.
    assert Patch.stored(page)["feature"].tolist() == ["carry", "carry", "first_operand"]
    assert Interchange.stored(page).empty
    assert AblateUnits.stored(page).empty
    assert Mdl.stored(Page(run, ("absent",), config=CONFIG)).empty


def test_units_are_chosen_by_site_and_method(stored):
    run, write = stored
    for part, name, method in [("1", "z", "mean"), ("2", "z", "zero"), ("3", "mlp_post", "mean")]:
        write("ablate_units", part, rows_of([9], name=name, method=method, analysis=part).drop(columns="feature"))
    found = AblateUnits.stored(Page(run, ("carry",)))
    assert found[["name", "method"]].values.tolist() == [["z", "mean"], ["z", "zero"], ["mlp_post", "mean"]]


def test_interchanges_are_corrected_over_what_the_report_shows():
    rows = tables.interchange(labels=(1,), steps=(110,)).drop(columns="p_value_holm")
    p_values = {"feature": 0.01, "mean_shift": 0.02}
    rows["p_value_paired"] = [p_values.get(name, np.nan) for name in rows["condition"]]
    both = pd.concat([rows, rows.assign(label=2, p_value_paired=2 * rows["p_value_paired"])], ignore_index=True)
    found = named(Interchange, "Interchange: carry", both).downloads["interchange_carry"]
    swapped = found[found["condition"] == "feature"]
    expected = holm(np.array([0.01] * 4 + [0.02] * 4))
    assert swapped["p_value_holm"].tolist() == pytest.approx(expected.tolist())
    assert found[found["condition"] == "none"]["p_value_holm"].isna().all()
    pd.testing.assert_frame_equal(found, with_holm(found.drop(columns="p_value_holm")))


def test_a_panel_of_one_step_is_left_to_its_section():
    rows = tables.ablate_over_steps()
    for steps, is_curve in [((716,), False), ((0, 716), False), ((210, 716), True)]:
        panel = ablation_panel(pd.DataFrame(rows[rows["step"].isin(steps)]), "carry")
        assert shown.is_curve(panel) == is_curve
    described = tables.mdl()
    last = (described["step"] == 716) | (described["source"] == "untrained")
    assert not shown.is_curve(mdl_panel(pd.DataFrame(described[last]), "carry"))
    assert shown.is_curve(mdl_panel(described, "carry"))


@pytest.mark.slow
def test_a_report_shows_the_lenses_that_were_computed_and_computes_no_other(run_copy):
    quiet = {"progress": False}

    def headings() -> list[str]:
        page = reporting.report(run_copy, "carry", config=CONFIG, n_trials=2, **quiet).read_text(encoding="utf-8")
        return re.findall("<h2>(.*?)</h2>", page)

    expected = ["Timeline", "Verdicts", "Probes: carry", "Ablation", "Methods", "Limits", "Citation", "Data",
                "Configuration and environment"]  # fmt: skip
    assert headings() == expected
    transfer(run_copy, "carry", run_copy.steps[-2:], config=CONFIG, **quiet)
    transfer(run_copy, "carry", "last", config=CONFIG, **quiet)  # Other steps of the same probes: not a second matrix.
    patch(run_copy, "carry", components="z", labels=3, n_pairs=8, attribution=False, **quiet)
    ablate_units(run_copy, n=8, **quiet)
    own = ["Probes carried over: carry", "Patching: carry, label 3", "Single attention heads, mean"]
    assert headings() == [*expected[:3], own[0], "Ablation", *own[1:], *expected[4:]]
    ablate(run_copy, "carry", run_copy.steps[-2:], config=CONFIG, n_trials=2, **quiet)
    assert "Ablation over training: carry, written" in headings()
    # Its panel stands in the timeline too.
    page = (run_copy.path / "report.html").read_text(encoding="utf-8")
    assert page.count("Ablating carry") == 4, "with the last label and without it"
    assert not run_copy.table("mdl").parts()
    assert not run_copy.table("interchange").parts()
    page = (run_copy.path / "report.html").read_text(encoding="utf-8")
    section = named_by("Ablation", page)
    assert "random directions" in section, "conditions in the table are called as in the figure"
    methods = named_by("Methods", page)
    for word in ("Compute", "Onset", "Probes", "Ablation", "Probes carried over", "Patching", "Attribution",
                 "Single heads and neurons"):  # fmt: skip
        assert f"<strong>{word}</strong>" in methods
    for word in ("Description length", "Interchange"):
        assert f"<strong>{word}</strong>" not in methods, "of the lenses that are shown alone"
    assert "need not be the one that the model itself" in named_by("Limits", page)


def named_by(heading: str, page: str) -> str:
    """One section of a page."""
    return page.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]


# Lenses that fail


class Good(Lens):
    """Shows a panel and a section."""

    name = "good"
    question = "Is it shown?"

    @classmethod
    def panels(cls, page):
        return [ablation_panel(tables.ablate_over_steps(), "carry")]

    @classmethod
    def sections(cls, page):
        return [Section("Good", text="here")]


class NoSections(Good):
    """Raises while drawing."""

    name = "no_sections"

    @classmethod
    def sections(cls, page):
        raise KeyError("norm")


class WrongPanels(Good):
    """Gives what is no panel."""

    name = "wrong_panels"

    @classmethod
    def panels(cls, page):
        return [{"title": "mine"}]


class EvilPanels(Good):
    """Gives a panel that cannot be stacked with others."""

    name = "evil_panels"

    @classmethod
    def panels(cls, page):
        good = ablation_panel(tables.ablate_over_steps(), "carry")
        return [Panel("Evil", good.traces, "y", ("low", "high"))]


BAD = {
    NoSections: "lens 'no_sections' (test_report_lenses:NoSections) cannot be shown: KeyError: 'norm'",
    WrongPanels: "TypeError: it must give objects of class Panel, got {'title': 'mine'}.",
    EvilPanels: "lens 'evil_panels'",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_lens_that_fails_is_named_once_and_the_others_are_shown(run_copy, monkeypatch, capsys, bad):
    monkeypatch.setattr(shown, "registered", lambda: Registered((Good, bad), ("entry point 'x' is left out: <y>.",)))
    plugins.warn.cache_clear()
    page = reporting.report(run_copy, "carry", config=CONFIG, progress=False).read_text(encoding="utf-8")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "warning: entry point 'x' is left out: <y>."
    assert len(said) == 2
    assert BAD[bad].replace("test_report_lenses:", f"{__name__}:") in said[1]
    assert page.count("<h2>Good</h2>") == (1 if bad is NoSections else 2)
    note = named_by("Not shown", page)
    assert note.count("<li>") == 2
    assert "is left out: &lt;y&gt;." in note
    assert bad.__name__ in note
    figure = timeline(run_copy, "carry", config=CONFIG, progress=False)
    assert sum("Ablating carry" in str(text.text) for text in figure.layout.annotations) == (
        2 if bad is NoSections else 1
    )


@pytest.mark.slow
def test_a_table_without_the_columns_that_tell_calls_apart_is_named(stored, capsys):
    run, write = stored
    write("ablate_units", "1", pd.DataFrame({"step": [9], "name": ["z"], "loss_increase": [0.1]}))
    plugins.warn.cache_clear()
    page = reporting.report(run, "carry", config=CONFIG, n_trials=1, progress=False).read_text(encoding="utf-8")
    (line,) = capsys.readouterr().err.splitlines()
    assert "lens 'ablate_units'" in line
    assert "its table 'ablate_units' lacks the columns ['method', 'analysis']" in line
    assert "<h2>Ablation</h2>" in page


def test_what_a_lens_must_compute_fails_loudly(run_copy, monkeypatch):
    class Broken(Good):
        @classmethod
        def prepare(cls, page):
            raise qfl.QflError("no probe")

    monkeypatch.setattr(shown, "registered", lambda: Registered((Broken,), ()))
    found = shown.Shown(Page(run_copy, ("carry",), config=CONFIG, progress=False))
    assert [fault for fault in found.faults if "cannot be shown: QflError: no probe" in fault], "another package's"
    Broken.__module__ = "qfl_interp.analyses.lenses.broken"
    with pytest.raises(qfl.QflError, match="no probe"):
        timeline(run_copy, "carry", config=CONFIG, progress=False)


def test_entry_points_that_are_no_lens_of_their_name_are_left_out(monkeypatch):
    here = "qfl_interp.analyses.lenses.mdl.lens"
    points = [("mdl", f"{here}:Mdl"), ("described", f"{here}:Mdl"), ("no_class", f"{here}:mdl"), ("gone", "nowhere:X")]
    found = tuple(EntryPoint(name, value, plugins.LENSES) for name, value in points)
    monkeypatch.setattr(plugins, "_installed", lambda group: found)
    plugins.entry_points.cache_clear()
    registered.cache_clear()
    try:
        good, faults = registered()
    finally:
        plugins.entry_points.cache_clear()
        registered.cache_clear()
    assert good == (Mdl,)
    assert [fault.split("'")[1] for fault in faults] == ["gone", "described", "no_class"]
    assert "it must have the name of its lens, and Mdl has 'mdl'." in faults[1]
    assert "it must name a subclass of qfl_interp.analyses.lens.Lens" in faults[2]


@dataclasses.dataclass(frozen=True)
class Own(PartLens):
    """A lens with a column that is called as one of the probes' is."""

    name = "own"
    question = "?"
    lacks: bool = False

    def part(self, piece):
        return f"{piece.at}-own"

    @staticmethod
    def panels_of(rows):
        return []

    def rows(self, shared, view, piece):
        return pd.DataFrame({"settings": [0.5], "norm": [1.0]})

    def columns(self, piece):
        found = super().columns(piece)
        return {name: value for name, value in found.items() if not (self.lacks and name == "analysis")}


def test_a_column_called_settings_is_a_lens_own(run_copy):
    lens = Own(run_copy)
    lens.compute([Piece(ModelAt(40))], label="x", progress=False)
    assert len(Own.stored(Page(run_copy, ("carry",)))) == 1


def test_rows_without_their_columns_are_refused_before_they_are_written(run_copy):
    with pytest.raises(QflError, match=r"'own': its rows lack the columns \['analysis'\]"):
        Own(run_copy, lacks=True).compute([Piece(ModelAt(40))], label="x", progress=False)
    assert run_copy.table("own").parts() == []
