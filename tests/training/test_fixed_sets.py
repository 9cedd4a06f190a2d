"""Training on a fixed training set: the numbers that follow, kills and resumes, what trains in no stack."""

from __future__ import annotations

import pytest
from helpers import FullDisk

import qfl_interp as qfl
from benchmarks.kill_resume import fingerprint
from qfl_interp.data.training_stream import training_problems
from qfl_interp.errors import StorageError
from qfl_interp.runs.config import RunConfig
from qfl_interp.training.stacked import stack_key, train_stacked
from qfl_interp.training.train import plan_run

MODEL = qfl.ModelConfig(d_model=16, n_layers=1, n_heads=2)
DRAWS = {
    "all": {"batch_size": "all"},
    "batch": {"batch_size": 10, "draw": "batch"},
    "epoch": {"batch_size": 10, "draw": "epoch"},
}
EACH = pytest.mark.parametrize("changes", DRAWS.values(), ids=list(DRAWS))


def config(**changes) -> qfl.TrainConfig:
    return qfl.TrainConfig(**{"n_steps": 12, "n_val": 8, "n_checkpoints": 4, "seed": 2} | changes)


@pytest.fixture(scope="module")
def task():
    return qfl.load_task("modular_addition", p=7, train_fraction=0.5)


@EACH
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, task, changes):
    whole = qfl.train(task, MODEL, config(**changes), tmp_path / "whole", progress=False)
    with monkeypatch.context() as patched:
        FullDisk(patched, 14)
        with pytest.raises(StorageError, match="the disk is full"):
            qfl.train(task, MODEL, config(**changes), tmp_path / "cut", progress=False, resume_seconds=0.0)
    cut = qfl.Run.open(tmp_path / "cut")
    assert 0 < cut.metrics.step.max() < 12
    assert qfl.resume(cut.path, progress=False).finished
    assert fingerprint(cut.path) == fingerprint(whole.path)


def test_each_draw_trains_otherwise(tmp_path, task):
    draws = DRAWS | {"fresh": {"batch_size": 10}}
    runs = [qfl.train(task, MODEL, config(**c), tmp_path / name, progress=False) for name, c in draws.items()]
    assert len({run.metrics.train_loss.iloc[3] for run in runs}) == 4
    assert len({run.run_id for run in runs}) == 4


def test_the_whole_set_counts_as_so_many_examples(tmp_path, task):
    n = len(training_problems(task))
    plan = plan_run(task, MODEL, config(batch_size="all"))
    same = plan_run(task, MODEL, config(batch_size=n))
    assert (plan.batch_size, plan.n_train) == (n, n)
    assert plan.to_dict()["n_train"] == n
    assert plan.flops_per_step == same.flops_per_step
    assert plan.actual_flops_per_step == same.actual_flops_per_step
    unsaid = [plan_run(task, MODEL, config(n_val=None, n_steps=5_000, batch_size=b)) for b in ("all", n)]
    assert unsaid[0].n_val == unsaid[1].n_val > 128
    budgets = [plan_run(task, MODEL, config(n_steps=None, budget_flops=1e8, batch_size=b)) for b in ("all", n)]
    assert budgets[0].n_steps == budgets[1].n_steps
    run = qfl.train(task, MODEL, config(batch_size="all"), tmp_path / "run", progress=False)
    assert RunConfig.read(run.path) == plan
    last = run.metrics.iloc[-1]
    assert last.tokens_per_s == pytest.approx(12 * n * 5 / last.seconds, rel=0.05)
    assert same.n_train is None
    assert "n_train" not in same.to_dict()


@EACH
def test_it_trains_in_no_stack(tmp_path, task, changes):
    one, other = (plan_run(task, MODEL, config(**changes, lr=lr)) for lr in (1e-3, 2e-3))
    assert stack_key(one) == one.digest != stack_key(other)
    with pytest.raises(ValueError, match="must be a run of fresh examples of ModularAddition"):
        train_stacked(task, [(one, tmp_path / "run")])
