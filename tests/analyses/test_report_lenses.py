"""The report's sections of the lenses that a run need not have: there if their table is, and showing that table."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from analyses.pages.sections import standard_sections

from analyses import ablate, ablate_units, patch, transfer
from analyses.lenses.ablate.figure import ablation_panel
from analyses.lenses.mdl.figure import mdl_panel
from analyses.lenses.patch.panel import patch_panel
from analyses.pages import report as reporting
from analyses.pages.report import stored_tables
from analyses.stored import stored_rows, with_holm
from qfl_interp.config import ProbeConfig
from qfl_interp.report.page import Section, render_report
from qfl_interp.stats import holm
from tests import synthetic_tables as tables

CONFIG = ProbeConfig(n_train=60, n_test=40)
ALWAYS = ["Timeline", "Probes", "Ablation", "Methods", "Limits", "Citation"]
STEPS = (110, tables.N_STEPS)
OWN = {
    "transfer": (tables.transfer(STEPS), ["Probes carried over: carry"]),
    "mdl": (tables.mdl(), ["Description length: carry", "Description length: first operand"]),
    "ablate_over_steps": (
        tables.ablate_over_steps(),
        ["Ablation over training: first operand, project out", "Ablation over training: carry, project out"],
    ),
    "interchange": (tables.interchange(steps=STEPS), ["Interchange: carry"]),
    "patch": (tables.patch(steps=STEPS), ["Patching: carry, label 2", "Attribution: carry, label 2"]),
    "ablate_units": (tables.ablate_units(), ["Single attention heads, mean"]),
}


def sections(**given) -> list[Section]:
    """The standard sections of a run with these tables."""
    return standard_sections(**given)


def named(title: str, **given) -> Section:
    """The one section with this title."""
    (found,) = [section for section in sections(**given) if section.title == title]
    return found


# Which sections there are


@pytest.mark.parametrize("name", OWN)
def test_a_lens_has_its_sections_if_and_only_if_its_table_has_rows(name):
    rows, titles = OWN[name]
    assert sorted(s.title for s in sections(**{name: rows})) == sorted(ALWAYS + titles)
    assert [s.title for s in sections(**{name: rows.iloc[:0]})] == ALWAYS
    assert [s.title for s in sections(**{name: None})] == ALWAYS


def test_sections_come_in_one_order():
    found = [section.title for section in sections(**{name: rows for name, (rows, _) in OWN.items()})]
    own = {name: titles for name, (_, titles) in OWN.items()}
    reading, acting = [*own["transfer"], *own["mdl"]], [*own["interchange"], *own["patch"], *own["ablate_units"]]
    between = ["Ablation", *own["ablate_over_steps"]]
    assert found == [*ALWAYS[:2], *reading, *between, *acting, *ALWAYS[3:]]


def test_each_feature_label_method_and_site_has_a_figure_of_its_own():
    rows = tables.patch(("resid_pre",), steps=STEPS[-1:])
    patched = pd.concat([rows, rows.assign(label=3), rows.assign(feature="other")])
    titles = [s.title for s in sections(patch=patched) if s.title.startswith("Patching")]
    assert titles == ["Patching: carry, label 2", "Patching: carry, label 3", "Patching: other, label 2"]
    units = pd.concat([tables.ablate_units("z"), tables.ablate_units("mlp_post").assign(method="zero")])
    titles = [s.title for s in sections(ablate_units=units) if s.title.startswith("Single")]
    assert titles == ["Single attention heads, mean", "Single MLP neurons, zero"]
    rows = tables.ablate_over_steps()
    ablated = pd.concat([rows, rows.assign(method="mean")])
    titles = [s.title for s in sections(ablate_over_steps=ablated) if "carry" in s.title and "Ablation" in s.title]
    assert titles == ["Ablation over training: carry, project out", "Ablation over training: carry, mean"]


@pytest.mark.parametrize(("steps", "shown"), [((tables.N_STEPS,), 0), ((0, tables.N_STEPS), 0), ((35, 110), 2)])
def test_an_ablation_of_one_step_is_no_curve(steps, shown):
    rows = tables.ablate_over_steps()
    given = pd.DataFrame(rows[rows["step"].isin(steps)])
    assert sum("over training" in s.title for s in sections(ablate_over_steps=given)) == shown


def test_what_cannot_be_drawn_has_no_section():
    without = tables.patch(steps=STEPS[-1:]).assign(attribution=np.nan)
    assert [s.title for s in sections(patch=without) if s.title.startswith(("Patch", "Attr"))] == [
        "Patching: carry, label 2"
    ]
    rows = tables.mdl()
    at_0 = pd.DataFrame(rows[rows["step"] == 0])
    assert [s.title for s in sections(mdl=at_0)] == ALWAYS
    # No logit difference to compare with at the initial model.
    initial = tables.patch(steps=(0,))
    assert [s.title for s in sections(patch=initial) if s.title.startswith(("Patch", "Attr"))] == [
        "Patching: carry, label 2"
    ]


# What they show


def test_figures_show_the_tables_rows():
    last = tables.N_STEPS
    rows = tables.patch(steps=STEPS)
    map_of = named("Patching: carry, label 2", patch=rows).figure
    (shown,) = [t for t in map_of.data if t.name == "logit_diff_normalised" and t.xaxis == "x"]
    at_last = rows[(rows["step"] == last) & (rows["component"] == "resid_pre")]
    expected = at_last.pivot(index="layer", columns="position", values="logit_diff_normalised").to_numpy()
    np.testing.assert_allclose(np.array(shown.z, dtype=float), expected, atol=1e-3)

    rows = tables.interchange(steps=STEPS)
    figure = named("Interchange: carry", interchange=rows).figure
    first = next(t for t in figure.data if t.name == "probe's directions")
    values = rows[(rows["step"] == last) & (rows["label"] == 1) & (rows["condition"] == "feature")]["flipped"]
    assert list(first.y) == pytest.approx(values.tolist())

    rows = tables.ablate_over_steps()
    figure = named("Ablation over training: carry, project out", ablate_over_steps=rows).figure
    curve = next(t for t in figure.data if t.name == "feature removed")
    removed = rows[(rows["feature"] == "carry") & (rows["condition"] == "ablated") & (rows["step"] > 0)]
    assert list(curve.x) == pytest.approx(removed["flops"].tolist())
    assert list(curve.y) == pytest.approx(removed["exact_answer"].tolist())

    rows = tables.mdl()
    figure = named("Description length: first operand", mdl=rows).figure
    assert {t.name for t in figure.data if t.name} & {"carry", "first operand"} == {"first operand"}

    rows = tables.transfer(steps=(5, 110))
    figure = named("Probes carried over: carry", transfer=rows).figure
    matrix = next(t for t in figure.data if t.name == "test_score")
    pivot = rows.pivot(index="fit_step", columns="eval_step", values="test_score").to_numpy()
    np.testing.assert_allclose(np.array(matrix.z, dtype=float), pivot, atol=1e-3)


def test_downloads_hold_the_rows_of_their_figure():
    rows = tables.patch(steps=STEPS[-1:])
    patched = pd.concat([rows, rows.assign(label=3)], ignore_index=True)
    section = named("Patching: carry, label 3", patch=patched)
    ((name, rows),) = section.downloads.items()
    assert name == "patch_carry_3"
    assert len(rows) == len(patched) // 2
    assert set(rows["label"]) == {3}
    page = render_report({}, [section])
    data = page.split("base64,")[1].split('"')[0]
    read = pd.read_csv(io.StringIO(base64.b64decode(data).decode()))
    assert read["logit_diff_normalised"].tolist() == pytest.approx(rows["logit_diff_normalised"].tolist(), nan_ok=True)


def test_the_timeline_takes_further_panels():
    panel = patch_panel(tables.patch(), "carry", 2)
    given = {"emergence_curve": tables.emergence_curve(), "emergence": tables.emergence()}
    texts = [
        " ".join(
            a.text for a in named("Timeline", metrics=tables.metrics(), **given, panels=p).figure.layout.annotations
        )
        for p in ([], [panel])
    ]
    assert ["Patching resid_pre" in text for text in texts] == [False, True]


def test_conditions_have_the_same_names_in_table_and_figure():
    section = named("Ablation", ablate=tables.ablate())
    assert list(section.table["condition"])[:3] == ["intact", "feature removed", "random directions"]
    assert {t.name for t in section.figure.data} == set(section.table["condition"])
    assert set(section.downloads["ablate"]["condition"]) == {"intact", "ablated", "random"}


def test_figures_of_square_cells_are_not_stretched():
    wide = render_report({}, [named("Interchange: carry", interchange=tables.interchange(steps=STEPS))])
    square = render_report({}, [named("Probes carried over: carry", transfer=tables.transfer(STEPS))])
    assert "max-width:672px" in square
    assert "max-width:672px" not in wide


def test_methods_and_limits_name_every_lens():
    text = {s.title: s.text for s in sections()}
    for word in (
        "Ablation",
        "Probes carried over",
        "Description length",
        "Interchange",
        "Patching",
        "Attribution",
        "Single heads and neurons",
    ):
        assert f"**{word}**" in text["Methods"]
    assert "need not be the one that the model itself" in text["Limits"]


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


def test_of_several_calls_the_one_with_most_steps_is_taken(stored):
    run, write = stored
    assert stored_rows(run, "patch", ["feature"]).empty
    write("patch", "1", rows_of([5, 9], analysis="z", value=1.0))
    write("patch", "2", rows_of([9], analysis="a", value=2.0))
    write("patch", "3", rows_of([9], analysis="b", value=3.0, feature="other"))
    found = stored_rows(run, "patch", ["feature"])
    assert found[["feature", "step", "value"]].values.tolist() == [["carry", 5, 1], ["carry", 9, 1], ["other", 9, 3]]
    # With as many steps, the one with more rows; step 9 alone has two of "a".
    write("patch", "4", rows_of([9, 9, 9], analysis="c", value=4.0, feature="other"))
    assert stored_rows(run, "patch", ["feature"], feature="other")["value"].tolist() == [4.0] * 3
    assert stored_rows(run, "patch", ["feature"], feature="absent").empty


def test_labels_are_chosen_one_by_one(stored):
    run, write = stored
    write("patch", "1", rows_of([5, 9], analysis="a", label=1))
    write("patch", "2", rows_of([9], analysis="b", label=2))
    assert stored_rows(run, "patch", ["feature", "label"])["label"].tolist() == [1, 1, 2]
    assert stored_rows(run, "patch", ["feature"])["label"].tolist() == [1, 1]


def test_tables_are_of_these_features_and_probes(stored):
    run, write = stored
    mine, other = CONFIG.digest(), ProbeConfig(n_train=61, n_test=40).digest()
    for settings, feature in [(mine, "first_operand"), (mine, "carry"), (mine, "sum"), (other, "carry")]:
        columns = {"settings": settings, "feature": feature}
        write("mdl", f"{settings}-{feature}", rows_of([5], **columns))
        write("transfer", f"{settings}-{feature}", rows_of([5], **columns).rename(columns={"step": "eval_step"}))
        write("ablate", f"{settings}-{feature}", rows_of([5], **columns, method="project_out"))
        write("patch", f"{settings}-{feature}", rows_of([5], feature=feature, label=1))
    found = stored_tables(run, ["carry", "first_operand"], CONFIG)
    for name in ("mdl", "transfer", "ablate_over_steps"):
        assert found[name]["feature"].tolist() == ["carry", "first_operand"], name
        assert set(found[name]["settings"]) == {mine}
    # Patches need no probe.
    assert found["patch"]["feature"].tolist() == ["carry", "carry", "first_operand"]
    assert found["interchange"].empty
    assert found["ablate_units"].empty


def test_units_are_chosen_by_site_and_method(stored):
    run, write = stored
    for part, name, method in [("1", "z", "mean"), ("2", "z", "zero"), ("3", "mlp_post", "mean")]:
        write("ablate_units", part, rows_of([9], name=name, method=method, analysis=part).drop(columns="feature"))
    found = stored_tables(run, ["carry"], CONFIG)["ablate_units"]
    assert found[["name", "method"]].values.tolist() == [["z", "mean"], ["z", "zero"], ["mlp_post", "mean"]]


def test_interchanges_are_corrected_over_what_the_report_shows(stored):
    run, write = stored
    rows = tables.interchange(labels=(1,), steps=(110,)).drop(columns="p_value_holm")
    rows["settings"], rows["analysis"] = CONFIG.digest(), "a"
    p_values = {"feature": 0.01, "mean_shift": 0.02}
    rows["p_value_paired"] = [p_values.get(name, np.nan) for name in rows["condition"]]
    write("interchange", "1", rows)
    write("interchange", "2", rows.assign(label=2, p_value_paired=2 * rows["p_value_paired"]))
    found = stored_tables(run, ["carry"], CONFIG)["interchange"]
    swapped = found[found["condition"] == "feature"]
    expected = holm(np.array([0.01] * 4 + [0.02] * 4))
    assert swapped["p_value_holm"].tolist() == pytest.approx(expected.tolist())
    assert found[found["condition"] == "none"]["p_value_holm"].isna().all()
    pd.testing.assert_frame_equal(found, with_holm(found.drop(columns="p_value_holm")))


def test_a_panel_of_one_step_is_left_to_its_section():
    rows = tables.ablate_over_steps()
    for steps, is_curve in [((716,), False), ((0, 716), False), ((210, 716), True)]:
        panel = ablation_panel(pd.DataFrame(rows[rows["step"].isin(steps)]), "carry")
        assert reporting._is_curve(panel) == is_curve
    described = tables.mdl()
    last = (described["step"] == 716) | (described["source"] == "untrained")
    assert not reporting._is_curve(mdl_panel(pd.DataFrame(described[last]), "carry"))
    assert reporting._is_curve(mdl_panel(described, "carry"))


@pytest.mark.slow
def test_a_report_shows_the_lenses_that_were_computed_and_computes_no_other(run_copy):
    quiet = {"progress": False}

    def titles() -> list[str]:
        page = reporting.report(run_copy, "carry", config=CONFIG, n_trials=2, **quiet).read_text(encoding="utf-8")
        return re.findall("<h2>(.*?)</h2>", page)

    expected = ["Timeline", "Verdicts", "Probes: carry", "Ablation", *ALWAYS[3:], "Run card"]
    assert titles() == expected
    transfer(run_copy, "carry", run_copy.steps[-2:], config=CONFIG, **quiet)
    transfer(run_copy, "carry", "last", config=CONFIG, **quiet)  # Other steps of the same probes: not a second matrix.
    patch(run_copy, "carry", components="z", labels=3, n_pairs=8, attribution=False, **quiet)
    ablate_units(run_copy, n=8, **quiet)
    own = ["Probes carried over: carry", "Patching: carry, label 3", "Single attention heads, mean"]
    assert titles() == [*expected[:3], own[0], "Ablation", *own[1:], *expected[4:]]
    ablate(run_copy, "carry", run_copy.steps[-2:], config=CONFIG, n_trials=2, **quiet)
    assert "Ablation over training: carry, project out" in titles()
    # Its panel stands in the timeline too.
    assert (run_copy.path / "report.html").read_text(encoding="utf-8").count("Ablating carry") == 2
    assert not run_copy.table("mdl").parts()
    assert not run_copy.table("interchange").parts()
