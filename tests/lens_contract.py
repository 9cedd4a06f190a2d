"""What every registered lens promises, whoever wrote it: one function a promise."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray

import qfl_interp as qfl
from qfl_interp.analyses.lens import Lens, Page
from qfl_interp.columns import Columns
from qfl_interp.plots.panels import Panel
from qfl_interp.plugins import LENSES, entry_points
from qfl_interp.report.page import Section

# What makes any lens cheap: a value for a parameter of this name, or for a configuration of this class.
SMALL: dict[str, Any] = {
    "steps": "log:3",
    "n": 24,
    "n_test": 24,
    "n_pairs": 6,
    "n_random": 2,
    "n_trials": 2,
    "n_untrained": 2,
    "n_resamples": 50,
    "resamples": 2,
    "min_cluster_size": 12,
    "min_samples": 4,
    "span": 8,
}
CONFIGS: dict[type, Any] = {
    qfl.ProbeConfig: qfl.ProbeConfig(n_train=64, n_test=64),
    qfl.PolcaConfig: qfl.PolcaConfig(basis="random", n_directions=3, n_examples=80, n_hessian=40, seed=1),
    qfl.CurvatureConfig: qfl.CurvatureConfig(n_examples=4, n_rank_examples=8, tol=0.5, max_products=12),
    qfl.SgldConfig: qfl.SgldConfig(n_chains=2, n_draws=2, n_burn_in=1, batch_size=2),
}
# Whose summary has a column a step.
OPEN_SUMMARIES = {"transfer"}
KEYS = {"run_id", "config_hash", "seed"}


def function_of(name: str) -> Callable[..., Any]:
    """The call of a lens: the function of its name in the module of its class."""
    return getattr(importlib.import_module(entry_points(LENSES)[name].module), name.replace("-", "_"))


def small_call(function: Callable[..., Any], **more: Any) -> dict[str, Any]:
    """Arguments that make it cheap."""
    found = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        kinds = {parameter.annotation, *typing.get_args(parameter.annotation)}
        small = [config for kind, config in CONFIGS.items() if kind in kinds]
        if small or name in SMALL:
            found[name] = small[0] if small else SMALL[name]
    if "span" in found:
        found["steps"] = "all"  # breakthroughs need steps on both sides
    return found | {"progress": False} | more


def check_registered(name: str, lens: type[Lens]) -> None:
    """It says what it is; its function stands beside it and says what every parameter is."""
    assert issubclass(lens, Lens)
    assert lens.name == name.replace("-", "_")
    assert lens.question.endswith("?")
    assert isinstance(lens.methods, str)
    function = function_of(name)
    parameters = inspect.signature(function).parameters
    assert next(iter(parameters)) == "run"
    assert {"device", "progress"} <= set(parameters)
    doc = inspect.getdoc(function) or ""
    for parameter in parameters:
        said = re.search(rf"\n    {parameter}( \(--[\w-]+\))?: ", doc)
        assert said, f"{name}: the docstring says nothing of {parameter}"


def check_rows(rows: pd.DataFrame) -> None:
    """Tidy and typed: unique columns of one plain type each, whose run it is, no row twice."""
    assert len(rows) > 0
    assert rows.columns.is_unique
    assert set(rows.columns) >= KEYS
    assert any("step" in column for column in rows.columns)
    for column in rows.columns:
        assert rows[column].dropna().map(lambda value: isinstance(value, (str, bool, int, float))).all(), column
        assert len(set(rows[column].dropna().map(type))) <= 1, f"{column} has values of several types"
    assert not rows.duplicated().any()
    json.loads(rows.to_json(orient="records"))


def check_columns(names: Iterable[str], defined: Columns) -> None:
    """A table's columns are those that are defined: none without a definition, none defined that is never there."""
    names = set(names)
    assert names <= set(defined), f"without a definition: {sorted(names - set(defined))}"
    unused = {name for name, column in defined.items() if not column.only} - names
    assert not unused, f"defined, but not there: {sorted(unused)}"
    for name, column in defined.items():
        assert column.text, name
        assert not column.text.endswith("."), name


def check_tables(run: qfl.Run, lens: type[Lens], result: Any) -> None:
    """The tables that it wrote, and those of its result, have the columns that it defines."""
    written = {path.name for path in (run.path / "analyses").glob("*")}
    for name, defined in lens.tables.items():
        if name in written:
            check_columns(run.table(name).read().columns, defined)
    for name, defined in {**lens.result, **result.columns}.items():
        if name != "summary":
            check_columns(getattr(result, name).columns, defined)
    for name, table in vars(result).items():
        if isinstance(table, pd.DataFrame) and name != "summary":
            assert "not defined" not in repr(result.columns_help(name)), name
    named = {name for table in lens.result.values() for name in table}
    known = lens.name in OPEN_SUMMARIES or set(map(str, result.summary)) <= named
    assert known, f"summary without a definition: {sorted(set(map(str, result.summary)) - named)}"


def check_cube(result: Any) -> None:
    """Every number of the labelled array is that of the row with the values of its axes."""
    rows, dims = result.rows, result.cube.dims
    names = [name for name in ("feature", "label") if name in rows and name not in dims]
    chosen = {name: rows[name].iloc[0] for name in names if rows[name].nunique() > 1}
    found = result.to_xarray(**chosen)
    assert tuple(found.sizes) == dims
    for name, value in (dict(result.cube.chosen) | chosen).items():
        rows = rows[rows[name] == value]
    numbers = [name for name in found.data_vars if found[name].dtype.kind == "f"]
    assert numbers
    places = {dim: xarray.DataArray(rows[dim].to_numpy(), dims="row") for dim in dims}
    for name in numbers:
        assert found[name].dims == dims
        np.testing.assert_array_equal(found[name].sel(places).to_numpy(), rows[name].to_numpy(), err_msg=name)


def files_of(run: qfl.Run) -> dict[Path, bytes]:
    """What lies in the tables and stores of a run, but for locks."""
    folders = [run.path / "analyses", run.path / "activations"]
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if _kept(path)}


def _kept(path: Path) -> bool:
    return path.is_file() and not path.name.endswith(".lock")


def check_drawn(result: Any, lens: type[Lens], page: Page) -> None:
    """A figure, panels and sections."""
    figure = result.plot()
    assert isinstance(figure, go.Figure)
    assert len(figure.to_json()) > 0
    panels, sections = lens.panels(page), lens.sections(page)
    assert all(isinstance(panel, Panel) for panel in panels)
    assert all(isinstance(section, Section) for section in sections)
    assert all(section.figure is None or isinstance(section.figure, go.Figure) for section in sections)


def check_options(parameters: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """The command has an option for each of the function's parameters, for a configuration's fields, and its own."""
    wanted = {"out", "quiet", "as_json"}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        kinds = (parameter.annotation, *typing.get_args(parameter.annotation))
        fields = [set(kind.__dataclass_fields__) for kind in kinds if hasattr(kind, "__dataclass_fields__")]
        wanted |= fields[0] if fields and name not in parameters else {name}
    wanted -= {"progress", "store"}  # --quiet; where there is one, a flag or an object of the library
    assert wanted - set(parameters) == set()
