"""Mirrors of the metrics: what TensorBoard and W&B are told."""

from __future__ import annotations

import builtins
import sys
import types
import warnings

import pytest
from conftest import tiny_train_config

import qfl_interp as qfl
from qfl_interp.training import loggers


def test_tensorboard_holds_every_value(tmp_path, addition, model_config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own imports warn of deprecations
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run = qfl.train(
            addition, model_config, tiny_train_config(n_steps=6, n_checkpoints=2), tmp_path / "run",
            progress=False,
            make_loggers=lambda run: [loggers.TensorBoardLogger(run.path / "tensorboard")],
        )  # fmt: skip
        events = EventAccumulator(str(run.path / "tensorboard"))
        events.Reload()
    metrics = run.metrics.set_index("step")
    assert set(events.Tags()["scalars"]) == set(metrics.columns)
    for name in metrics.columns:
        logged = metrics[name].dropna()
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == list(logged.index)
        assert [event.value for event in scalars] == pytest.approx(list(logged), rel=1e-6)


def test_wandb_gets_every_row(monkeypatch, tmp_path, addition, model_config):
    calls = []

    class FakeRun:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    def init(**arguments):
        calls.append(arguments)
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    run = qfl.train(
        addition, model_config, tiny_train_config(n_steps=3), tmp_path / "run", progress=False,
        make_loggers=lambda run: [
            loggers.WandbLogger("p", config=run.config.train.to_dict(), mode="offline")
        ],
    )  # fmt: skip
    opened, *rows, closed = calls
    assert opened["project"] == "p"
    assert opened["mode"] == "offline"
    assert opened["config"]["n_steps"] == 3
    assert closed == "finished"
    assert [step for step, _ in rows] == [0, 1, 2, 3]
    assert rows[2][1]["train_loss"] == run.metrics.train_loss[2]
    assert "step" not in rows[2][1]


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("tensorboard", lambda: loggers.TensorBoardLogger("nowhere")),
        ("wandb", lambda: loggers.WandbLogger("project")),
    ],
)
def test_a_missing_package_says_how_to_get_it(monkeypatch, module, make):
    true_import = builtins.__import__

    def no_module(name, *arguments, **keywords):
        if name.split(".")[0] == module:
            raise ImportError(f"No module named {name!r}")
        return true_import(name, *arguments, **keywords)

    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(builtins, "__import__", no_module)
    with pytest.raises(qfl.QflError, match=rf"{module} is not installed. Run: pip install 'qfl-interp\[loggers\]'"):
        make()
