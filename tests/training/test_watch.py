"""Lenses in the loop: the tables that a later call would make, the run's bits as without, faults that end nothing."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from conftest import tiny_train_config
from helpers import stopped_after

import qfl_interp as qfl
from qfl_interp.analyses import probe
from qfl_interp.runs.run import Run
from qfl_interp.training.watch import headline

PROBE = qfl.ProbeConfig(n_train=60, n_test=40)
LENSES = {"probe": {"features": "carry", "config": PROBE, "n_untrained": 0}}
CONFIG = tiny_train_config(n_steps=8, n_checkpoints=6)


class _Kept:
    """A mirror that keeps what it is given."""

    def __init__(self):
        self.rows = []

    def log(self, step, values):
        self.rows.append((step, dict(values)))

    def close(self):
        pass


@pytest.fixture(scope="module")
def plain(built_once, addition, model_config) -> qfl.Run:
    def build(folder):
        qfl.train(addition, model_config, CONFIG, folder, progress=False)

    return qfl.Run.open(built_once("unwatched", build))


def _train(addition, model_config, out, kept=None, **how):
    loggers = (lambda run: (kept,)) if kept else (lambda run: ())
    return qfl.train(addition, model_config, CONFIG, out, make_loggers=loggers, progress=False, **how)


@pytest.mark.parametrize("apart", [False, True], ids=["here", "second process"])
def test_tables_are_those_of_a_later_call_and_the_run_has_the_same_bits(apart, plain, addition, model_config, tmp_path):
    kept = _Kept()
    run = _train(addition, model_config, tmp_path / "run", kept, lenses=LENSES, at="log:3", apart=apart)
    for step in plain.steps:
        one, other = plain.load_checkpoint(step).model, run.load_checkpoint(step).model
        assert all(torch.equal(one[name], other[name]) for name in one)
    seconds = ["seconds", "tokens_per_s"]
    pd.testing.assert_frame_equal(run.metrics.drop(columns=seconds), plain.metrics.drop(columns=seconds))
    steps = plain.resolve_steps("log:3")
    parts = run.table("probe").parts()
    later = probe(run, "carry", steps=steps, config=PROBE, n_untrained=0, progress=False)
    assert run.table("probe").parts() == parts, "nothing was left to compute"
    told = {step: values for step, values in kept.rows if any(name.startswith("probe/") for name in values)}
    assert sorted(told) == steps
    for step, values in told.items():
        row = later.summary[later.summary["step"] == step].iloc[0]
        assert values["probe/carry/trained/test_loss"] == row["test_loss"]


def test_what_was_saved_before_a_stop_is_looked_at_when_training_goes_on(plain, addition, model_config, tmp_path):
    with stopped_after(5):
        _train(addition, model_config, tmp_path / "run")
    run = _train(addition, model_config, tmp_path / "run", lenses=LENSES, at="all", resume=True)
    assert sorted(run.table("probe").read()["step"].unique()) == plain.steps


def test_a_lens_that_fails_is_named_and_training_goes_on(plain, addition, model_config, tmp_path, capfd):
    run = _train(addition, model_config, tmp_path / "run", lenses={"patch": {"features": "carri"}}, at="last")
    assert run.finished
    assert "lens 'patch' at step 8 failed while training: QflError: no feature" in capfd.readouterr().err
    assert isinstance(run, Run)


BAD = {
    r"no lens is named 'prob'\. Did you mean 'probe'": ({"prob": {}}, "all"),
    r"lens 'probe' cannot be called so: .*'featurez'": ({"probe": {"featurez": 1}}, "all"),
    r"lenses can look at checkpoints alone, got step 6": (LENSES, "6"),
}  # fmt: skip


@pytest.mark.parametrize(("message", "case"), BAD.items(), ids=list(BAD))
def test_what_cannot_be_looked_at_is_refused_before_a_folder_is_made(message, case, addition, model_config, tmp_path):
    lenses, at = case
    with pytest.raises(qfl.QflError, match=message):
        _train(addition, model_config, tmp_path / "bad", lenses=lenses, at=at)
    assert not (tmp_path / "bad").exists()


def test_headline_numbers_of_a_short_table():
    table = pd.DataFrame({
        "step": [1, 1, 2], "feature": ["a", "b", "a"], "layer": [0, 3, 1], "loss": [0.5, float("nan"), 0.1],
        "n": [7, 7, 7],
    })  # fmt: skip
    assert headline("probe", table, 1) == {
        "probe/a/layer 0/loss": 0.5,
        "probe/a/layer 0/n": 7.0,
        "probe/b/layer 3/n": 7.0,
    }
    assert headline("probe", table.drop(columns=["layer", "n"]), 2) == {"probe/a/loss": 0.1}
    many = pd.DataFrame({"step": [0] * 99, "layer": range(99), "loss": [0.5] * 99})
    assert len(headline("x", many, 0)) == 64
