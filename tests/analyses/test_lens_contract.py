"""Every registered lens keeps the contract of tests/lens_contract.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lens_contract as contract
import pandas as pd
import pytest
import typer.main

import qfl_interp as qfl
from qfl_interp.analyses.all_tables import all_tables
from qfl_interp.analyses.lens import Page
from qfl_interp.analyses.registered import lenses
from qfl_interp.cli.main import build_app
from qfl_interp.columns import Column
from qfl_interp.plugins import LENSES, entry_points

NAMES = sorted(entry_points(LENSES))
# Those of a run of tokens; `edge` is of a network of vectors, and has its tests with these.
OF_TRANSFORMERS = [name for name in NAMES if name != "edge"]
LENS = {lens.name.replace("_", "-"): lens for lens in lenses()}
# Lenses without a table of parts of their own: what they write is checked by their own tests.
WITHOUT_PARTS = {"capture", "emergence", "polca", "curvature"}


def _copy(run: qfl.Run, folder: Path) -> qfl.Run:
    return qfl.Run.open(shutil.copytree(run.path, folder))


@pytest.fixture(scope="module")
def looked(tiny_run, tmp_path_factory):
    """A lens' first call on a copy of the tiny run: the copy and the result, computed once."""
    found = {}

    def look(name: str):
        if name not in found:
            run = _copy(tiny_run, tmp_path_factory.mktemp(name) / "run")
            function = contract.function_of(name)
            found[name] = run, function(run, **contract.small_call(function))
        return found[name]

    return look


def test_all_are_registered_and_loaded():
    assert set(NAMES) == set(LENS)
    assert {"probe", "ablate-units", "polca", "curvature"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_registration(name):
    contract.check_registered(name, LENS[name])


@pytest.mark.parametrize("name", NAMES)
def test_options_are_the_functions_parameters(name):
    command = typer.main.get_command(build_app()).commands[name]
    contract.check_options({p.name: p for p in command.params}, contract.function_of(name))


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_rows_are_tidy_and_drawn(name, looked):
    run, result = looked(name)
    contract.check_rows(result.to_dataframe())
    assert result.title in repr(result) or repr(result).startswith(result.title)
    features = tuple(f.name for f in run.task.features.values() if f.by_default)
    how = {"steps": contract.SMALL["steps"], "config": contract.CONFIGS[qfl.ProbeConfig], "n_trials": 2}
    contract.check_drawn(result, LENS[name], Page(run, features, progress=False, **how))


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_every_column_is_defined(name, looked):
    run, result = looked(name)
    contract.check_tables(run, LENS[name], result)


# Of the others rows are no cube.
CUBES = sorted({*OF_TRANSFORMERS} - {"capture", "polca"})


@pytest.mark.parametrize("name", CUBES)
def test_a_labelled_array_has_the_rows_numbers(name, looked):
    contract.check_cube(looked(name)[1])


def test_every_table_is_some_lens_table(looked):
    """None is written without a definition; of those defined all are written by the calls here, but two."""
    written = {path.name for name in OF_TRANSFORMERS for path in (looked(name)[0].path / "analyses").glob("*")}
    defined = {table.name for table in all_tables()}
    assert written <= defined
    # With steps="auto", and of homogeneous networks: their own tests look at these.
    assert defined - written == {"metrics", "emergence_steps", "edge", "edge_layers"}


def test_columns_of_metrics_are_defined(tiny_run):
    (metrics,) = (table.columns for table in all_tables() if table.name == "metrics")
    contract.check_columns(tiny_run.metrics.columns, metrics)
    tokens = {name for name, column in metrics.items() if not column.only.startswith("of forks")}
    assert set(tiny_run.metrics) == tokens


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_a_second_call_computes_nothing(name, looked, monkeypatch):
    run, result = looked(name)
    before = contract.files_of(run)
    function = contract.function_of(name)
    # Verdicts are drawn anew from tables, and a plan of POLCA asks a model for its shape.
    if name not in ("emergence", "polca"):
        monkeypatch.setattr(qfl.Run, "load_model", lambda *a, **k: pytest.fail("a model was loaded again"))
    again = function(run, **contract.small_call(function))
    pd.testing.assert_frame_equal(again.to_dataframe(), result.to_dataframe())
    assert contract.files_of(run) == before


@pytest.mark.parametrize("name", sorted(set(OF_TRANSFORMERS) - WITHOUT_PARTS))
def test_what_is_missing_alone_is_computed(name, looked, tmp_path):
    run, result = looked(name)
    copy = _copy(run, tmp_path / "copy")
    table = copy.table(LENS[name].name)
    lost = table.parts()[1::2]
    assert lost
    whole = contract.files_of(copy)
    for part in lost:
        for path in table.folder.glob(f"*{part}*"):
            path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in contract.files_of(copy)}
    function = contract.function_of(name)
    again = function(copy, **contract.small_call(function))
    pd.testing.assert_frame_equal(again.to_dataframe(), result.to_dataframe())
    assert contract.files_of(copy) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


# Lenses go to other processes in one way: one of parts and one of its own stand for all.
IN_PROCESSES = ["probe", "polca"]


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PROCESSES)
def test_two_processes_give_the_same_rows(name, looked, tiny_run, tmp_path):
    run = _copy(tiny_run, tmp_path / "run")
    function = contract.function_of(name)
    rows = function(run, **contract.small_call(function, jobs=2)).to_dataframe()
    pd.testing.assert_frame_equal(rows, looked(name)[1].to_dataframe())


def test_a_column_without_its_definition_is_caught():
    defined = {"step": Column("updates"), "tokens": Column("tokens", only="of suites")}
    contract.check_columns(["step"], defined)
    with pytest.raises(AssertionError, match=r"without a definition: \['loss'\]"):
        contract.check_columns(["step", "loss"], defined)
    with pytest.raises(AssertionError, match=r"not there: \['step'\]"):
        contract.check_columns(["tokens"], defined)


def test_a_lens_that_breaks_its_word_is_caught(looked):
    """The contract itself can fail."""
    rows = looked("ablate-units")[1].to_dataframe()
    bad = {
        "a column of the run's is gone": rows.drop(columns="run_id"),
        "a row twice": pd.concat([rows, rows.iloc[:1]]),
        "several types": rows.assign(unit=["a", *rows["unit"][1:]]),
        "nested": rows.assign(unit=[[1]] * len(rows)),
    }
    for table in bad.values():
        with pytest.raises(AssertionError):
            contract.check_rows(table)
    contract.check_rows(rows)
    json.loads(rows.to_json(orient="records"))
