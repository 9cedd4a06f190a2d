"""Replays: steps that were not saved come out as if they had been, and a training that differs is refused."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from conftest import tiny_train_config
from helpers import stopped_after

import qfl_interp as qfl
from qfl_interp.analyses import polca
from qfl_interp.training.replay import Replay, replay
from qfl_interp.training.trainee import Trainee

LAST = 12


@pytest.fixture(scope="module")
def dense(built_once, addition, model_config) -> qfl.Run:
    """Every step saved."""

    def build(folder):
        config = tiny_train_config(n_steps=LAST, n_checkpoints=99, save_optimizer=True)
        qfl.train(addition, model_config, config, folder, progress=False)

    return qfl.Run.open(built_once("replay_dense", build))


@pytest.fixture(scope="module")
def sparse(built_once, addition, model_config) -> qfl.Run:
    """The same training, with a checkpoint at both ends and one between."""

    def build(folder):
        config = tiny_train_config(n_steps=LAST, n_checkpoints=2, save_every=5, save_optimizer=True)
        qfl.train(addition, model_config, config, folder, progress=False)

    return qfl.Run.open(built_once("replay_sparse", build))


@pytest.fixture
def updates(monkeypatch) -> list[int]:
    """The steps at which an update is made."""
    made, update = [], Trainee.update

    def counted(trainee):
        made.append(trainee.step)
        return update(trainee)

    monkeypatch.setattr(Trainee, "update", counted)
    return made


def test_every_step_is_what_it_would_have_been_saved_as(dense, sparse):
    replayed = qfl.replay(sparse)
    assert len(sparse.steps) < len(dense.steps) == len(replayed.steps)
    for step in dense.steps:
        one, other = (run.load_checkpoint(step, with_optimizer=True) for run in (replayed, dense))
        assert all(torch.equal(one.model[name], other.model[name]) for name in other.model), step
        assert one.optimizer.keys() == other.optimizer.keys()
        assert all(torch.equal(one.optimizer[name], other.optimizer[name]) for name in other.optimizer), step


def test_ascending_steps_cost_one_training_and_a_step_back_the_way_from_a_checkpoint(sparse, updates):
    replayed = replay(sparse)
    for step in (1, 2, 4, 3):  # 3 is gone: two are kept
        replayed.load_model(step)
    assert updates == [0, 1, 2, 3, 0, 1, 2]
    updates.clear()
    replayed.load_model(2 + sparse.steps[1])
    assert updates == [sparse.steps[1], sparse.steps[1] + 1]
    replayed.load_model(sparse.steps[-1])
    assert len(updates) == 2


def test_steps_are_multiples_and_those_saved(sparse):
    assert replay(sparse, 4).steps == sorted({0, 4, 8, 12, *sparse.steps})
    assert replay(sparse, 4).resolve_steps("every:4") == [0, 4, 8, 12]
    with pytest.raises(qfl.QflError, match=r"step 3 of .* was not saved. The nearest saved step is 4"):
        replay(sparse, 4).load_model(3)
    with pytest.raises(qfl.QflError, match="every must be at least 1, got 0"):
        replay(sparse, 0)


def test_polca_of_a_replay_is_polca_of_a_run_that_saved_every_step(dense, sparse):
    config = qfl.PolcaConfig(basis_steps="0,5,10", n_examples=20, n_hessian=20, tol=1e-2)
    how = {"config": config, "progress": False, "resamples": 0, "span": 4}
    found, wanted = (polca(run, "every:2", **how) for run in (replay(sparse, 2), dense))
    np.testing.assert_array_equal(found.data.trajectories.values, wanted.data.trajectories.values)
    assert torch.equal(found.data.losses, wanted.data.losses)
    assert found.data.intervals["captured"].tolist() == wanted.data.intervals["captured"].tolist()


def test_a_dry_run_counts_what_is_left_and_writes_nothing(sparse):
    config = qfl.PolcaConfig(basis_steps="0,4,8", n_examples=20, n_hessian=20, tol=1e-2, seed=1)
    how = {"config": config, "progress": False, "resamples": 0, "span": 4}
    tables = [sparse.table(name) for name in ("polca_basis", "polca_nodes")]
    there = [table.parts() for table in tables]
    left = polca(replay(sparse, 4), "every:4", dry_run=True, **how)
    n = dict(zip(left.rows["work"], left.rows["n"], strict=True))
    # 4 checkpoints and 3 midpoints; to step 8 for the directions and again for the points; 25 products a direction
    assert n == {"updates trained again": 8 + 8, "Hessian products": 75, "points of gradients": 7}
    assert (left.rows["hours"] >= 0).all()
    assert "along 3 directions" in left.title
    assert there == [table.parts() for table in tables]
    polca(replay(sparse, 4), "every:4", **how)
    parts = [(table, part) for table, old in zip(tables, there, strict=True) for part in set(table.parts()) - set(old)]
    written = sum(tensor.nbytes for table, part in parts for tensor in table.read_tensors(part).values())
    memory, disk = (2**20 * float(number) for number in re.findall(r"([\d.]+) MiB", left.title))
    assert disk == pytest.approx(written, rel=0.02)
    n_parameters = sum(tensor.numel() for tensor in sparse.load_checkpoint("last").model.values())
    assert memory > 256 * 2**20 + 15 * 4 * n_parameters  # projections, directions, a model, and a training
    assert polca(replay(sparse, 4), "every:4", dry_run=True, **how).rows.empty


def test_another_loss_than_the_logged_one_is_refused_at_the_first_step(sparse, updates):
    replayed = replay(sparse)
    replayed._logged[1] = float(np.nextafter(replayed._logged[1], 9))
    with pytest.raises(qfl.QflError, match=r"must repeat itself to the bit, got the loss .* at step 1 .* threads"):
        replayed.load_model(3)
    assert updates == [0]


def test_a_replay_that_differs_is_refused_before_directions_are_found(sparse):
    replayed, middle = replay(sparse), sparse.steps[1]
    replayed._logged[1] += 1.0
    config = qfl.PolcaConfig(basis_steps=str(middle), n_examples=20, n_hessian=20, tol=1e-2, seed=5)
    before = sparse.table("polca_basis").parts()
    with pytest.raises(qfl.QflError, match="at step 1 of"):
        polca(replayed, config=config, progress=False, span=4)
    assert sparse.table("polca_basis").parts() == before


def test_another_number_of_threads_is_refused_before_anything_is_trained(sparse, updates, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(qfl.QflError, match=r"threads as the training, got 2 .*trained on 1: set OMP_NUM_THREADS=1\."):
        replay(sparse).load_model(3)
    assert updates == []
    assert replay(sparse).load_checkpoint(sparse.steps[1]).step == sparse.steps[1]  # a saved one needs no training


def test_jobs_are_refused_where_a_run_was_trained_on_more_threads_than_they_have(sparse, updates, monkeypatch):
    sessions = [session | {"threads": 2} for session in sparse.provenance]
    monkeypatch.setattr(Replay, "provenance", property(lambda run: sessions))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    config = qfl.PolcaConfig(basis_steps=str(sparse.steps[1]), n_examples=20, n_hessian=20, tol=1e-2, seed=6)
    before = sparse.table("polca_basis").parts()
    with pytest.raises(qfl.QflError, match=r"got 1 where .* was trained on 2: set OMP_NUM_THREADS=2, with jobs=1\."):
        polca(replay(sparse), config=config, progress=False, span=4, jobs=2)
    with pytest.raises(qfl.QflError, match=r"got 1 where .* was trained on 2"):
        polca(replay(sparse), config=config, progress=False, span=4, jobs=2, dry_run=True)
    assert updates == []
    assert sparse.table("polca_basis").parts() == before


def test_other_weights_than_the_saved_ones_are_refused(sparse, monkeypatch):
    load, middle = qfl.Run.load_checkpoint, sparse.steps[1]

    def changed(run, step, **how):
        state = load(run, step, **how)
        if step == middle and not how.get("with_optimizer"):
            next(iter(state.model.values())).view(-1)[0] += 1e-6
        return state

    replayed = replay(sparse)
    replayed.load_model(middle - 1)
    monkeypatch.setattr(qfl.Run, "load_checkpoint", changed)
    monkeypatch.setattr(Replay, "_has_state", lambda self, step: step == 0)
    with pytest.raises(qfl.QflError, match=f"got other weights at step {middle}"):
        replayed.load_model(middle + 1)


def test_a_run_that_was_stopped_and_a_fork_are_replayed(addition, model_config, tmp_path, dense):
    config = tiny_train_config(n_steps=LAST, n_checkpoints=2, save_every=5, save_optimizer=True)
    with stopped_after(7):
        qfl.train(addition, model_config, config, tmp_path / "stopped", progress=False)
    stopped = replay(tmp_path / "stopped")
    assert stopped.steps == list(range(stopped.steps[-1] + 1))
    assert torch.equal(stopped.load_model(4).W_E, dense.load_model(4).W_E)
    forked = qfl.fork(dense, 5, tmp_path / "fork", progress=False, n_checkpoints=2, save_every=50)
    assert torch.equal(replay(forked).load_model(9).W_E, dense.load_model(9).W_E)


def test_given_weights_are_begun_with(addition, tmp_path, dense):
    given = dense.load_model(7)
    config = tiny_train_config(n_steps=4, n_checkpoints=2, save_every=50)
    run = qfl.train(addition, given, config, tmp_path / "given", progress=False)
    again = qfl.train(addition, given, tiny_train_config(n_steps=4, n_checkpoints=99), tmp_path / "all", progress=False)
    assert torch.equal(replay(run).load_model(2).W_E, again.load_model(2).W_E)


def test_pickled_it_is_replayed_elsewhere(sparse):
    again = pickle.loads(pickle.dumps(replay(sparse, 3)))
    assert again.steps == replay(sparse, 3).steps
    assert torch.equal(again.load_model(3).W_E, replay(sparse).load_model(3).W_E)
    assert again.verify()
