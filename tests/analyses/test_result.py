"""What a result draws of what was computed: nothing hidden without a word, every option within reach."""

from __future__ import annotations

import functools

import pandas as pd
import pytest
from plotly.graph_objects import Figure

import qfl_interp as qfl
from qfl_interp.analyses import ablate, emergence, interchange, mdl, patch, probe, transfer
from qfl_interp.analyses.result import Result

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
    assert list(ablated.plot().layout.xaxis.ticktext) == shown
    assert list(ablated.plot("carry").layout.xaxis.ticktext) == ["carry"]
    assert "as the paper counts" in heading(ablated.plot(counts=("answer", "paper")))
    emerged = emergence(run_copy, FEATURES, steps, n_resamples=10, **QUICK)
    assert all(f"<b>{name}</b>" in heading(emerged.plot()) for name in ("first operand", "carry"))
    assert "<b>first operand</b>" not in heading(emerged.plot("carry", mean="arithmetic"))
    assert "arithmetic mean" in heading(emerged.plot("carry", mean="arithmetic"))
