"""Stacks: each member is its run alone, whatever happens to the others."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from conftest import tiny_train_config
from helpers import FullDisk

import qfl_interp as qfl
from benchmarks.kill_resume import fingerprint
from qfl_interp.errors import StorageError
from qfl_interp.runs.flops import flops_per_step
from qfl_interp.runs.run import Run
from qfl_interp.runs.writer import RunWriter
from qfl_interp.training import stacked
from qfl_interp.training.session import RunSession
from qfl_interp.training.stacked import stack_key, train_stacked
from qfl_interp.training.train import plan_run

MEMBERS = ((3, 1e-3), (3, 1e-2), (4, 3e-3), (5, 1e-3))  # seed, learning rate


def _plan(task, model, seed, lr, **changes):
    return plan_run(task, model, tiny_train_config(seed=seed, lr=lr, n_steps=20, save_optimizer=True, **changes))


def _runs(task, model, folder, members=MEMBERS, **changes):
    return [(_plan(task, model, seed, lr, **changes), folder / f"{seed}-{lr}") for seed, lr in members]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, addition, model_config):
    """A stack trained without interruption: read only."""
    runs = _runs(addition, model_config, tmp_path_factory.mktemp("whole"))
    assert train_stacked(addition, runs) == [None] * len(runs)
    return [path for _, path in runs]


def _fingerprints(paths):
    return [fingerprint(path) for path in paths]


def _assert_equal_runs(ours: Run, solo: Run, atol: float):
    assert ours.config == solo.config
    assert ours.steps == solo.steps
    assert list(ours.metrics.columns) == list(solo.metrics.columns)
    for column in set(solo.metrics.columns) - {"seconds", "tokens_per_s"}:
        rtol = 0 if column in ("step", "flops", "actual_flops", "lr") else 2e-4
        np.testing.assert_allclose(ours.metrics[column], solo.metrics[column], rtol=rtol, atol=rtol, err_msg=column)
    for step in solo.steps:
        a, b = (run.load_checkpoint(step, with_optimizer=True) for run in (ours, solo))
        for got, want in ((a.model, b.model), (a.optimizer, b.optimizer)):
            assert got.keys() == want.keys()
            for name, tensor in want.items():
                if ".b_K" in name:  # its gradient is zero up to rounding, which AdamW blows up to full steps
                    continue
                exact = step == 0 or name.endswith("/step")
                near = 0 if exact else atol if "/exp_avg" not in name else 1e-4 * float(tensor.abs().max())
                torch.testing.assert_close(got[name], tensor, rtol=0, atol=near, msg=lambda m, n=name: f"{n}: {m}")
    assert ours.verify()
    assert not (ours.path / "resume").exists()


@pytest.mark.parametrize("index", range(len(MEMBERS)), ids=lambda i: f"seed{MEMBERS[i][0]}-lr{MEMBERS[i][1]}")
def test_each_member_equals_its_solo_run(whole, tmp_path, addition, model_config, index):
    config = _plan(addition, model_config, *MEMBERS[index])
    solo = qfl.train(addition, model_config, config.train, tmp_path / "solo", progress=False)
    _assert_equal_runs(Run.open(whole[index]), solo, atol=1e-2 * config.train.lr)


def test_members_differ(whole):
    weights = [Run.open(path).load_checkpoint(20).model["unembed.W_U"] for path in whole]
    assert len({tuple(w.flatten().tolist()) for w in weights}) == len(whole)


@pytest.mark.slow
def test_gpt2_style_equals_its_solo_run(tmp_path, addition):
    model = qfl.ModelConfig(d_model=16, n_layers=2, style="gpt2")
    runs = _runs(addition, model, tmp_path, MEMBERS[1:3])
    assert train_stacked(addition, runs) == [None, None]
    for config, path in runs:
        solo = qfl.train(addition, model, config.train, tmp_path / f"solo-{path.name}", progress=False)
        _assert_equal_runs(Run.open(path), solo, atol=1e-2 * config.train.lr)


def test_bits_do_not_depend_on_the_company(whole, tmp_path, addition, model_config):
    config, path = _runs(addition, model_config, tmp_path)[2]
    assert train_stacked(addition, [(config, path)]) == [None]
    assert fingerprint(path) == fingerprint(whole[2])
    changed = _runs(addition, model_config, tmp_path / "pair")[1:3]
    train_stacked(addition, changed[::-1])
    assert _fingerprints(path for _, path in changed) == _fingerprints(whole[1:3])


def test_more_runs_than_fit_train_as_several_stacks(whole, tmp_path, addition, model_config, monkeypatch):
    seen = []
    true_init = stacked.loop._StackedLoop.__init__

    def init(self, task, members, *rest):
        seen.append(len(members))
        true_init(self, task, members, *rest)

    monkeypatch.setattr(stacked.loop._StackedLoop, "__init__", init)
    monkeypatch.setattr(stacked.loop, "max_members", lambda *_, **__: 3)
    runs = _runs(addition, model_config, tmp_path)
    assert train_stacked(addition, runs) == [None] * 4
    assert seen == [2, 2], "as equal as can be"
    assert _fingerprints(path for _, path in runs) == _fingerprints(whole)
    assert train_stacked(addition, runs) == [None] * 4
    assert seen == [2, 2], "finished runs are not trained again"


@pytest.mark.parametrize(
    ("n_runs", "most", "sizes"), [(8, 5, [4, 4]), (7, 3, [2, 2, 3]), (4, 4, [4]), (5, 1, [1] * 5), (1, 9, [1])], ids=str
)
def test_stacks_are_of_equal_size(n_runs, most, sizes):
    parts = [range(n_runs)[part] for part in stacked.loop._equal_parts(n_runs, most)]
    assert [len(part) for part in parts] == sizes
    assert [index for part in parts for index in part] == list(range(n_runs))


@pytest.mark.slow
def test_a_shape_that_is_faster_alone_trains_alone(tmp_path, addition, model_config, monkeypatch, capsys):
    """Bit for bit as `train`; what ends one run is its own error."""
    monkeypatch.setattr(stacked.loop, "faster_alone", lambda *_, **__: True)
    runs = _runs(addition, model_config, tmp_path, (MEMBERS[0], (3, 1e6), MEMBERS[2]), divergence_loss=20.0)
    errors = train_stacked(addition, runs, progress=True)
    assert [error is None for error in errors] == [True, False, True]
    assert isinstance(errors[1], qfl.DivergedError)
    assert "training one by one" in capsys.readouterr().err
    for config, path in (runs[0], runs[2]):
        solo = qfl.train(addition, model_config, config.train, tmp_path / f"solo-{path.name}", progress=False)
        assert fingerprint(path) == fingerprint(solo.path)
    again = train_stacked(addition, [runs[0]])
    assert again == [None], "a finished run is left as it is"
    with monkeypatch.context() as patched:
        FullDisk(patched, 5)
        with pytest.raises(StorageError, match="the disk is full"):
            train_stacked(addition, _runs(addition, model_config, tmp_path / "full"))


class _Dies(Exception):
    """As if the process ended."""


def _die_at(monkeypatch, step, members):
    """The process ends when this many members have saved `step`."""
    true_save, saved = RunSession.save, []

    def save(self, state):
        true_save(self, state)
        if state.step == step:
            saved.append(1)
            if len(saved) == members:
                raise _Dies

    monkeypatch.setattr(RunSession, "save", save)


@pytest.mark.parametrize(
    ("keep", "members"),
    [
        pytest.param(True, 2, id="optimizer-kept-between-members", marks=pytest.mark.slow),
        pytest.param(True, 4, id="optimizer-kept-after-all", marks=pytest.mark.slow),
        pytest.param(False, 2, id="resume-points-between-members"),
        pytest.param(False, 4, id="resume-points-after-all", marks=pytest.mark.slow),
    ],
)
def test_a_killed_stack_goes_on_with_the_same_bits(whole, tmp_path, addition, model_config, monkeypatch, members, keep):
    """Between members, their resume points are at different steps."""
    runs = [
        (plan_run(addition, model_config, tiny_train_config(seed=s, lr=lr, n_steps=20, save_optimizer=keep)), path)
        for (s, lr), (_, path) in zip(MEMBERS, _runs(addition, model_config, tmp_path), strict=True)
    ]
    if keep:
        wanted = _fingerprints(whole)
    else:
        others = [(config, tmp_path / "whole" / path.name) for config, path in runs]
        train_stacked(addition, others)
        wanted = _fingerprints(path for _, path in others)
    with monkeypatch.context() as patched:
        step = sorted(RunSession(runs[0][0], RunWriter(runs[0][1], runs[0][0], addition, resume=True)).to_save)[-3]
        _die_at(patched, step, members)
        with pytest.raises(_Dies):
            train_stacked(addition, runs, resume_seconds=0.0)
    assert not any(Run.open(path).finished for _, path in runs)
    assert train_stacked(addition, runs) == [None] * 4
    assert _fingerprints(path for _, path in runs) == wanted
    assert all(len(Run.open(path).provenance) == 2 for _, path in runs)


@pytest.mark.slow
def test_a_real_sigkill(whole, tmp_path, addition, model_config):
    runs = _runs(addition, model_config, tmp_path)
    process = os.fork()
    if not process:
        true_save = RunSession.save

        def save(self, state):
            true_save(self, state)
            if state.step >= 9 and self.writer.path == runs[1][1]:
                os.kill(os.getpid(), signal.SIGKILL)

        RunSession.save = save
        train_stacked(addition, runs)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status)
    assert not any(Run.open(path).finished for _, path in runs)
    assert train_stacked(addition, runs) == [None] * 4
    assert _fingerprints(path for _, path in runs) == _fingerprints(whole)


def test_ctrl_c_leaves_resume_points_for_all(whole, tmp_path, addition, model_config, monkeypatch):
    runs = _runs(addition, model_config, tmp_path)
    with monkeypatch.context() as patched:
        true_update = stacked.loop._StackedLoop._update

        def update(self):
            true_update(self)
            if self.step == 7:
                os.kill(os.getpid(), signal.SIGINT)

        patched.setattr(stacked.loop._StackedLoop, "_update", update)
        with pytest.raises(KeyboardInterrupt):
            train_stacked(addition, runs, resume_seconds=1e9)
    assert [[p.name for p in (path / "resume").iterdir()] for _, path in runs] == [["step_00000007"]] * 4
    assert train_stacked(addition, runs) == [None] * 4
    assert _fingerprints(path for _, path in runs) == _fingerprints(whole)


def test_a_member_that_diverges_leaves_the_others_as_they_were(tmp_path, addition, model_config):
    members = (MEMBERS[0], (3, 1e6), MEMBERS[2])
    runs = _runs(addition, model_config, tmp_path, members, divergence_loss=20.0)
    errors = train_stacked(addition, runs)
    assert [error is None for error in errors] == [True, False, True]
    assert isinstance(errors[1], qfl.DivergedError)
    with pytest.raises(qfl.DivergedError) as alone:
        qfl.train(addition, model_config, runs[1][0].train, tmp_path / "solo", progress=False)
    ours, theirs = (str(e).split(": training loss")[0] for e in (errors[1], alone.value))
    assert ours == theirs
    assert list(Run.open(runs[1][1]).metrics.step) == list(Run.open(tmp_path / "solo").metrics.step)
    assert not Run.open(runs[1][1]).finished
    without = [(config, tmp_path / "without" / path.name) for config, path in (runs[0], runs[2])]
    assert train_stacked(addition, without) == [None, None]
    assert _fingerprints(path for _, path in without) == _fingerprints([runs[0][1], runs[2][1]])


def test_what_is_one_members_own_error(whole, tmp_path, addition, model_config):
    """A locked directory, another run's, a stranger's: the others are trained."""
    runs = _runs(addition, model_config, tmp_path)
    other = _plan(addition, model_config, 9, 1e-3)
    with RunWriter(runs[1][1], other, addition, resume=False):
        pass
    runs[2][1].mkdir()
    (runs[2][1] / "thesis.tex").write_text("precious")
    with RunWriter(runs[0][1], runs[0][0], addition, resume=False):
        errors = train_stacked(addition, runs)
    for error, message in zip(
        errors[:3], ["another process is training", "another configuration", "is no run"], strict=True
    ):
        assert isinstance(error, qfl.QflError)
        assert message in str(error)
    assert errors[3] is None
    assert fingerprint(runs[3][1]) == fingerprint(whole[3])
    assert (runs[2][1] / "thesis.tex").read_text() == "precious"


def test_a_full_disk_raises(whole, tmp_path, addition, model_config, monkeypatch):
    runs = _runs(addition, model_config, tmp_path)
    with monkeypatch.context() as patched:
        FullDisk(patched, 60)
        with pytest.raises(StorageError, match="the disk is full"):
            train_stacked(addition, runs, resume_seconds=0.0)
    assert train_stacked(addition, runs) == [None] * 4
    assert _fingerprints(path for _, path in runs) == _fingerprints(whole)


def test_which_runs_can_be_stacked(addition, model_config):
    one = _plan(addition, model_config, 3, 1e-3)
    key = stack_key(one)
    assert key == stack_key(_plan(addition, model_config, 7, 1e-1))
    budget = 19.5 * flops_per_step(model_config, batch_size=16, n_ctx=one.n_ctx_real)
    by_budget = tiny_train_config(n_steps=None, budget_flops=budget, save_optimizer=True)
    assert key == stack_key(plan_run(addition, model_config, by_budget))
    assert hash(key) == hash(stack_key(_plan(addition, model_config, 7, 1e-1)))
    others = [
        _plan(addition, model_config, 3, 1e-3, **changes)
        for changes in ({"batch_size": 8}, {"weight_decay": 0.0}, {"n_val": 31}, {"compile": True})
    ]
    others.append(plan_run(addition, model_config, tiny_train_config(n_steps=21, save_optimizer=True)))
    others.append(_plan(addition, qfl.ModelConfig(d_model=24, n_layers=2), 3, 1e-3))
    others.append(_plan(qfl.load_task("addition", length=7), model_config, 3, 1e-3))
    assert key not in [stack_key(other) for other in others]
    assert stack_key(others[3]) == others[3].digest, "compiled runs train alone"


def test_runs_that_cannot_be_stacked_are_refused(tmp_path, addition, model_config):
    runs = [*_runs(addition, model_config, tmp_path)[:1], *_runs(addition, model_config, tmp_path / "b", n_val=8)[:1]]
    with pytest.raises(ValueError, match=r"2 different kinds\. Group them by stack_key"):
        train_stacked(addition, runs)
    with pytest.raises(ValueError, match="must be a run of fresh"):
        train_stacked(qfl.load_task("addition", length=7), runs[:1])
    with pytest.raises(ValueError, match="not compiled"):
        train_stacked(addition, _runs(addition, model_config, tmp_path, MEMBERS[:1], compile=True))
    assert not any(tmp_path.iterdir())
    assert train_stacked(addition, []) == []
