"""What a sweep will cost, from a few measured updates."""

from __future__ import annotations

import tomllib

import pytest
from helpers_sweep import TOML

from qfl_interp.sweep import SweepConfig, calibration
from qfl_interp.sweep.plan import plan_sweep


def test_updates_validations_and_the_rest_are_told_apart(monkeypatch):
    """A clock of 10 ms an update, a third of that an example validated over the batch, and 0.2 s a run."""
    definition = {"name": "one"} | tomllib.loads(TOML.replace("n_val = 32", "n_val = 1000"))
    runs = plan_sweep(SweepConfig.from_dict(definition)).runs
    trained = []

    def train(task, config, path, device):
        trained.append(config)
        now[0] += 0.2 + 0.01 * (config.n_steps + 2 / 3 * config.n_val / config.batch_size)

    now = [0.0]
    monkeypatch.setattr(calibration, "train_planned", train)
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now[0])
    cost = calibration.calibrate(runs)
    assert max(config.n_val for config in trained) <= 64, "measured on few examples, whatever the runs validate on"
    run = runs[0]
    expected = 0.2 + 0.01 * run.config.n_steps + run.config.n_validations * 0.01 / 3 * 1000 / 8
    assert cost.run_seconds(run) == pytest.approx(expected)
