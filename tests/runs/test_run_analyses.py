"""Registered analyses as methods of a run and functions of the library."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pandas as pd
import pytest

import qfl_interp as qfl
from qfl_interp import analyses
from qfl_interp.plugins import LENSES, entry_points
from qfl_interp.runs.analyses import analyses as registered
from qfl_interp.runs.series import Checkpoints

SMALL = {"steps": "last", "config": qfl.ProbeConfig(n_train=60, n_test=40), "n_untrained": 0, "progress": False}


def test_a_method_is_the_function_with_the_run_given(run_copy):
    wanted = analyses.probe(run_copy, "carry", **SMALL).rows
    pd.testing.assert_frame_equal(run_copy.probe("carry", **SMALL).rows, wanted)
    pd.testing.assert_frame_equal(qfl.probe(run_copy, "carry", **SMALL).rows, wanted)
    of_model = qfl.probe(run_copy.load_model(), "carry", task=run_copy.task, **SMALL).rows
    assert of_model["test_loss"].tolist() == pytest.approx(wanted["test_loss"].tolist())


@pytest.mark.parametrize("name", ["probe", "ablate_units", "timeline", "report"])
def test_its_signature_and_words_are_the_functions(tiny_run, name):
    method, function = getattr(tiny_run, name), getattr(analyses, name)
    first, *own = inspect.signature(function).parameters
    assert (first, own) == ("run", list(inspect.signature(method).parameters))
    assert inspect.getdoc(method) == inspect.getdoc(function)


def test_all_are_listed_and_none_hides_an_attribute(tiny_run):
    names = {name.replace("-", "_") for name in entry_points(LENSES)} | {"timeline", "report"}
    assert names <= set(registered())
    assert set(registered()) <= set(dir(tiny_run))
    assert set(registered()) <= set(dir(qfl))
    for kind in (qfl.Run, qfl.Suite):
        assert [name for name in registered() if hasattr(kind, name)] == []


def test_listing_them_imports_no_torch(tiny_run):
    code = f"""
import sys
from qfl_interp.runs.run import Run
run = Run.open({str(tiny_run.path)!r})
print("probe" in dir(run), "torch" in sys.modules, any(name.startswith("qfl_interp.analyses.") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]


def test_an_unknown_name_suggests_the_nearest(tiny_run):
    with pytest.raises(AttributeError, match=r"Run has no attribute 'prob'. Did you mean 'probe'\? Registered analys"):
        _ = tiny_run.prob
    with pytest.raises(AttributeError, match=r"Run has no attribute 'stepz'. Did you mean 'steps'"):
        _ = tiny_run.stepz
    with pytest.raises(AttributeError, match=r"no attribute 'ablate_unit'. Did you mean 'ablate_units'"):
        _ = qfl.ablate_unit
    assert not hasattr(tiny_run, "_repr_mimebundle_")


def test_a_property_that_fails_says_its_own_reason():
    class Broken(Checkpoints):
        @property
        def task(self):
            return None.length

    Broken.__abstractmethods__ = frozenset()
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'length'"):
        _ = Broken().task
