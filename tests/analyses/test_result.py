"""What a result draws of what was computed: nothing hidden without a word, every option within reach."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import pandas as pd
import pytest
from plotly.graph_objects import Figure

import qfl_interp as qfl
import qfl_interp.analyses.notebook as notebook
from qfl_interp.analyses import ablate, emergence, interchange, mdl, patch, probe, transfer
from qfl_interp.analyses.cube import Cube
from qfl_interp.analyses.result import Result
from qfl_interp.columns import Column
from qfl_interp.plots.theme import new_figure

CONFIG = qfl.ProbeConfig(n_train=60, n_test=40)
QUICK = {"config": CONFIG, "progress": False}
FEATURES = ["first_operand", "carry"]
# Those whose pairs change the answer.
DECIDING = ["xor", "carry"]


def table() -> pd.DataFrame:
    """Three features, of which two have labels 1 and 2 and one has 7."""
    sites = [("xor", 1), ("xor", 2), ("carry", 1), ("carry", 2), ("sum", 7)]
    return pd.DataFrame(sites, columns=["feature", "label"]).assign(value=range(5))


def draw(rows: pd.DataFrame, levels: list[float], *, log: bool = False, step: int | None = None) -> Figure:
    """A figure that says what it was given."""
    return Figure(layout={"meta": [rows["value"].tolist(), levels, log, step]})


def result(*one_of: str) -> Result:
    return Result("Three features", table(), table(), functools.partial(draw, levels=[0.5]), one_of=one_of)


def drawn(*one_of: str, **options) -> list:
    return list(result(*one_of).plot(**options).layout.meta)


def test_a_figure_of_all_features_draws_all_or_the_one_that_is_named():
    assert drawn() == [[0, 1, 2, 3, 4], [0.5], False, None]
    assert drawn(feature="carry") == [[2, 3], [0.5], False, None]
    assert "plot()" not in repr(result())


def test_a_figure_of_one_feature_draws_the_first_and_the_text_names_the_others():
    assert drawn("feature")[0] == [0, 1]
    assert drawn("feature", feature="sum")[0] == [4]
    said = "plot() draws feature xor; plot(feature='carry') another of carry, sum."
    assert repr(result("feature")).splitlines()[-1] == said
    assert result("feature")._repr_html_().endswith(said)
    alone = Result("One", table()[:1], table()[:1], draw, one_of=("feature", "label"))
    assert "plot()" not in repr(alone)


def test_a_label_is_chosen_among_those_of_its_feature():
    assert drawn("feature", "label")[0] == [0]
    assert drawn("feature", "label", label=2)[0] == [1]
    assert drawn("feature", "label", feature="sum")[0] == [4]
    assert repr(result("feature", "label")).splitlines()[-1] == "plot() draws label 1; plot(label=2) another of 2."
    with pytest.raises(qfl.QflError, match=r"no label of this result is named '2'.* Known: 7\."):
        drawn("feature", "label", feature="sum", label=2)


def test_an_unknown_feature_is_answered_with_those_there_are():
    with pytest.raises(
        qfl.QflError, match=r"no feature of this result is named 'cary'. Did you mean 'carry'.*sum, xor"
    ):
        drawn("feature", feature="cary")
    without = Result("No feature", table(), table().drop(columns="feature"), draw)
    with pytest.raises(qfl.QflError, match=r"no feature of this result is named 'carry'. Known: none"):
        without.plot("carry")


def test_options_reach_the_figure_and_an_unknown_one_is_answered_with_those_there_are():
    assert drawn("feature", log=True, step=3) == [[0, 1], [0.5], True, 3]
    message = r"plot\(\) of this result has no option 'steps'. Beside a feature it has: {}\."
    with pytest.raises(TypeError, match=message.format("label, log, step")):
        drawn("feature", "label", steps=3)
    with pytest.raises(TypeError, match=message.format("none")):
        Result("Bare", table(), table(), lambda rows: Figure()).plot(steps=3)
    with pytest.raises(TypeError, match="no option 'levels'"):  # the lens has chosen it
        drawn("feature", levels=[1.0])


def cubic(**changes) -> Result:
    """Two steps by three labels, of two features; the value says which cell it is."""
    cells = [(f, s, label) for f in ("xor", "carry") for s in (0, 10) for label in range(3)]
    rows = pd.DataFrame(cells, columns=["feature", "step", "label"])
    rows = rows.assign(value=100 * rows["step"] + rows["label"] + 0.5, flops=3.0 * rows["step"], site="resid", seed=7)
    rows.loc[rows["feature"] == "carry", "value"] *= -1
    defined = {"value": Column("what is measured", "nats"), "label": Column("which label")}
    options = {"columns": {"rows": defined}, "cube": Cube(("step", "label"))} | changes
    return Result("Cubic", rows, rows, draw, **options)


def test_a_cube_has_the_tables_values_at_their_places():
    rows, found = cubic().rows, cubic().to_xarray(feature="carry")
    assert found["value"].dims == ("step", "label")
    for row in rows[rows["feature"] == "carry"].to_dict("records"):
        assert float(found["value"].sel(step=row["step"], label=row["label"])) == row["value"]
    back = found["value"].to_dataframe().reset_index()
    assert sorted(back["value"]) == sorted(rows[rows["feature"] == "carry"]["value"])
    assert found["value"].attrs == {"long_name": "what is measured", "units": "nats"}
    assert found["flops"].dims == ("step",)
    assert found["flops"].values.tolist() == [0.0, 30.0]
    assert found.attrs == {"feature": "carry", "site": "resid", "seed": 7}
    assert float(cubic().to_xarray(feature="xor")["value"].sum()) == float(rows["value"][:6].sum())


def test_a_cube_keeps_its_axes_whatever_the_values_are():
    one = cubic()
    flat = dataclasses.replace(one, rows=one.rows.assign(value=1.0))
    assert flat.to_xarray(feature="carry")["value"].shape == (2, 3)
    shuffled = dataclasses.replace(one, rows=one.rows.sample(frac=1, random_state=0))
    assert shuffled.to_xarray(feature="xor").equals(one.to_xarray(feature="xor"))


def test_a_cube_of_one_axis():
    rows = pd.DataFrame({"step": [10, 0, 5], "value": [1.0, 2.0, 3.0]})
    found = Result("Along steps", rows, rows, draw, cube=Cube(("step",))).to_xarray()
    assert found["step"].values.tolist() == [0, 5, 10]
    assert found["value"].values.tolist() == [2.0, 3.0, 1.0]


def test_what_is_no_cube_says_why():
    with pytest.raises(qfl.QflError, match=r"2 rows of one cell, step 0, label 0\. .* to_xarray\(feature='xor'\)"):
        cubic().to_xarray()
    with pytest.raises(qfl.QflError, match=r"no row has feature 'cary'\. Known: 'xor', 'carry'"):
        cubic().to_xarray(feature="cary")
    one = cubic()
    with pytest.raises(qfl.QflError, match=r"1 of 6 cells have no row, such as step 10, label 2"):
        dataclasses.replace(one, rows=one.rows[:5]).to_xarray()
    with pytest.raises(qfl.QflError, match="rows of this result are no cube: Cubic"):
        cubic(cube=None).to_xarray(feature="xor")


def test_columns_help_defines_and_heads_of_a_notebooks_table_say_it():
    found = cubic()
    said = repr(found.columns_help())
    assert "value    what is measured [nats]" in said
    assert "step     not defined by the lens" in said
    assert found.columns_help().to_dataframe()["column"].tolist() == list(found.rows)
    assert '<th title="what is measured [nats]">value</th>' in found._repr_html_()
    assert "<th>step</th>" in found._repr_html_()
    hostile = cubic(columns={"rows": {"value": Column('"><script>')}})
    assert "<script>" not in hostile._repr_html_() + hostile.columns_help()._repr_html_()
    with pytest.raises(qfl.QflError, match=r"no table of this result is named 'row'. Did you mean 'rows'"):
        found.columns_help("row")


def test_in_a_notebook_the_table_and_the_figure_are_shown(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.core.display_functions.display", lambda data, raw: shown.append(data))
    cubic()._ipython_display_()
    assert [sorted(data) for data in shown] == [["text/html", "text/plain"]]  # of a terminal
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    Result("Drawn", table(), table(), lambda rows: new_figure("drawn", 10 * len(rows)))._ipython_display_()
    figure = shown[2][notebook.PLOTLY]
    assert figure["layout"]["height"] == 50
    assert figure["config"]["showSendToCloud"] is False
    none = Result("An estimate", table(), table(), not_drawn)
    none._ipython_display_()
    assert shown[4] == {"text/plain": "no figure here."}
    monkeypatch.setattr(notebook, "_MOST_BYTES", 10)
    assert "MB: .plot() shows it" in notebook.figure_bundle(result().plot)["text/plain"]


def not_drawn(_: pd.DataFrame) -> Figure:
    raise qfl.QflError("no figure here.")


def heading(figure: Figure) -> str:
    return " ".join(str(text.text) for text in figure.layout.annotations)


@pytest.mark.slow
def test_lenses_of_one_feature_draw_the_one_that_is_named(run_copy):
    steps, few = run_copy.steps[-2:], {"n_pairs": 6, "labels": [2, 3]}
    calls = {
        "probe": probe(run_copy, FEATURES, steps, n_untrained=0, **QUICK),
        "transfer": transfer(run_copy, FEATURES, steps, **QUICK),
        "interchange": interchange(run_copy, DECIDING, n_random=1, **few, **QUICK),
        "patch": patch(run_copy, DECIDING, components="resid_pre", **few, progress=False),
    }
    for name, found in calls.items():
        first = DECIDING[0] if name in ("interchange", "patch") else FEATURES[0]
        assert f"plot() draws feature {first}; plot(feature='carry')" in repr(found), name
        assert first.replace("_", " ") in heading(found.plot()), name
        assert "carry" in heading(found.plot("carry")), name
        assert first.replace("_", " ") not in heading(found.plot("carry")), name
    assert "label 3" in heading(calls["patch"].plot("carry", label=3))
    earlier = calls["probe"].plot("carry", step=steps[0], beside="shuffled")
    assert f"step {steps[0]}" in heading(earlier)
    with pytest.raises(TypeError, match="Beside a feature it has: beside, step"):
        calls["probe"].plot(metric="loss")


@pytest.mark.slow
def test_lenses_of_all_features_draw_them_all(run_copy):
    steps = run_copy.steps[-2:]
    described = mdl(run_copy, FEATURES, steps, n_untrained=0, **QUICK)
    assert {"carry", "first operand"} <= {trace.name for trace in described.plot().data}
    assert "first operand" not in {trace.name for trace in described.plot("carry").data}
    ablated = ablate(run_copy, FEATURES, n_trials=2, **QUICK)
    shown = ["first operand", "carry", "carry without next token"]
    assert [name.replace("<br>", " ") for name in ablated.plot().layout.xaxis.ticktext] == shown
    assert list(ablated.plot("carry").layout.xaxis.ticktext) == ["carry"]
    assert "as the paper counts" in heading(ablated.plot(counts=("answer", "paper")))
    emerged = emergence(run_copy, FEATURES, steps, n_resamples=10, **QUICK)
    assert all(f"<b>{name}</b>" in heading(emerged.plot()) for name in ("first operand", "carry"))
    assert "<b>first operand</b>" not in heading(emerged.plot("carry", mean="arithmetic"))
    assert "arithmetic mean" in heading(emerged.plot("carry", mean="arithmetic"))
