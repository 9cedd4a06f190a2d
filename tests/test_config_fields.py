"""Every field of every public configuration, given nonsense: a valid value of its type, or an error that names it."""

from __future__ import annotations

import dataclasses
import math
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.curvature.config import SgldConfig
from qfl_interp.homogeneous.depthwise import DepthwiseRule
from qfl_interp.mlp_config import MLPConfig
from qfl_interp.models.build import build_hooked
from qfl_interp.sweep.definition import Grid, SweepConfig

POINT = {"task": "addition", "length": 4, "budget_flops": 1e9, "d_model": 16, "n_layers": 2}
BASES: dict[type, dict[str, Any]] = {
    qfl.ModelConfig: {"d_model": 16, "n_layers": 2},
    qfl.TrainConfig: {"n_steps": 10},
    qfl.ProbeConfig: {},
    qfl.PolcaConfig: {},
    qfl.CurvatureConfig: {},
    SgldConfig: {},
    MLPConfig: {"d_in": 4, "d_out": 2, "width": 8},
    DepthwiseRule: {},
    SweepConfig: {"name": "tiny", "grids": (Grid.from_dict(POINT),)},
    Grid: {"axes": Grid.from_dict(POINT).axes, "settings": {}},
}
STRANGE = [
    math.nan, math.inf, -math.inf, True, "no", 10**9, 10**30, 10**400, 10**5000, -1, -1.5, None, [], ["x"], [math.nan],
    {}, object(), 1j, b"no", np.float64("nan"), np.float32(0.5), np.int64(3), np.int64(-3), np.bool_(True),
    np.str_("no"), np.array([1.0, 2.0]), np.array(7), torch.tensor(2.0), (0.5, "x"), (0.1, 0.2, 0.3),
]  # fmt: skip


def cases() -> Iterator[Any]:
    for config, base in BASES.items():
        for field in dataclasses.fields(config):
            yield pytest.param(config, base, field.name, id=f"{config.__name__}-{field.name}")


def plain(value: Any) -> bool:
    """Whether a value holds Python's own types alone, all finite."""
    if isinstance(value, (tuple, list)):
        return all(map(plain, value))
    if isinstance(value, float):
        return type(value) is float and math.isfinite(value)
    return type(value) in (int, bool, str, type(None), Grid) or isinstance(value, dict)


def unhooked(config: Any, values: dict[str, Any]) -> Any:
    """A configuration made without the tests' own type checker, which users do not have."""
    made = object.__new__(config)
    for field in dataclasses.fields(config):
        default = {} if field.default is dataclasses.MISSING else field.default
        object.__setattr__(made, field.name, values.get(field.name, default))
    made.__post_init__()
    return made


def attempt(config: Any, values: dict[str, Any]) -> tuple[Any, str, float, int]:
    """What is made, or the error's text; the seconds and bytes that took."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        made, text = unhooked(config, values), ""
    except (ValueError, TypeError, qfl.QflError) as error:
        made, text = None, str(error)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, text, seconds, peak


@pytest.mark.parametrize(("config", "base", "name"), [*cases()])
def test_a_field_is_valid_or_its_error_names_it(config, base, name):
    hint = str(get_type_hints(config)[name])
    for value in STRANGE:
        made, text, seconds, peak = attempt(config, base | {name: value})
        given = f"{name} given as {type(value)!s}"
        if made is None:
            assert name in text, f"{given} is refused without its name: {text}"
            assert len(text) < 1000
        else:
            found = getattr(made, name)
            unlimited = name in config._unlimited and found == math.inf if hasattr(config, "_unlimited") else False
            assert plain(found) or unlimited, f"{given} became {found!r}"
            if hint in ("<class 'int'>", "<class 'bool'>", "<class 'str'>", "<class 'float'>"):
                assert f"<class '{type(found).__name__}'>" == hint, f"{given} became {found!r}"
        assert seconds < 1
        assert peak < 2**22


@pytest.mark.parametrize("given", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)])
def test_scalars_of_arrays_become_numbers(given):
    values = {"n_steps": np.int64(10), "lr": given, "save_optimizer": np.bool_(True)}
    config = unhooked(qfl.TrainConfig, values)
    assert (type(config.n_steps), type(config.lr), type(config.save_optimizer)) == (int, float, bool)
    assert config == qfl.TrainConfig(n_steps=10, lr=0.5, save_optimizer=True)


def test_no_is_not_yes():
    with pytest.raises(ValueError, match="save_optimizer must be true or false, got 'no'"):
        unhooked(qfl.TrainConfig, {"n_steps": 10, "save_optimizer": "no"})


def test_a_model_that_no_memory_holds_is_refused_before_it_is_made():
    start = time.perf_counter()
    with pytest.raises(qfl.QflError, match=r"parameters .*d_model 1,?000,?000,?000.* need about .* GiB"):
        build_hooked(qfl.ModelConfig(d_model=10**9, n_layers=2), d_vocab=10, n_ctx=8)
    assert time.perf_counter() - start < 1
