"""Chance levels: of the task with its options, and of a loss in the task's own unit alone."""

from __future__ import annotations

import math

import pandas as pd
import pytest

import qfl_interp as qfl
from qfl_interp.analyses.sweeps.scaling import _chance
from qfl_interp.analyses.transition import base_rate, known
from qfl_interp.recipes import loss_unit
from qfl_interp.sweep.definition import SweepConfig
from qfl_interp.sweep.records import shown_options
from qfl_interp.sweep.storage import Storage
from qfl_interp.sweep.sweep import Sweep


def test_a_loss_in_another_unit_has_no_chance_level(addition):
    """Half squared errors are far below a chance in nats from the start."""
    assert base_rate(addition, loss_unit("cross_entropy")) == addition.baselines["base_rate"]
    assert math.isnan(base_rate(addition, loss_unit("squared_error")))
    assert math.isnan(base_rate(addition, loss_unit("here:half_square")))
    numbers = qfl.load_task("linear_regression", length=4, d=2)
    assert base_rate(numbers, loss_unit("squared_error")) == numbers.baselines["base_rate"]
    assert math.isnan(base_rate(numbers, loss_unit("here:absolute_errors")))
    assert known(math.nan) is None
    assert known(0.5) == 0.5


CASES = [
    ("linear_regression", {"noise": 2.0}, "squared_error", 2.5),  # half of 1 + 2^2; without the option 0.5
    ("modular_addition", {"p": 13}, "cross_entropy", math.log(13)),
    ("modular_addition", {"p": 13}, "squared_error", math.nan),
]


@pytest.mark.parametrize(("name", "options", "loss", "wanted"), CASES)
def test_the_chance_of_a_sweep_is_that_of_its_tasks_options(name, options, loss, wanted, tmp_path):
    grid = {
        "task": name, "task_options": options, "budget_flops": [1e8], "d_model": 8, "n_layers": 1,
        "batch_size": 8, "lr": 1e-3, "seed": 0, "loss": loss,
    }  # fmt: skip
    sweep = Sweep(Storage(str(tmp_path)), SweepConfig.from_dict({"name": "made_up", "grid": [grid]}))
    task = qfl.load_task(name, **options)
    rows = pd.DataFrame([{"task": name, "length": task.length, "task_options": shown_options(task.options)}])
    found = _chance(sweep, rows, "answer")
    assert found.used == pytest.approx(wanted, rel=1e-9, nan_ok=True)
    assert found.base_rate == pytest.approx(wanted, rel=1e-9, nan_ok=True)
