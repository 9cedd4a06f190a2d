"""Options of tasks: what is given is checked, named in the run, and the default is the task as it was."""

from __future__ import annotations

import itertools
import json
import pickle

import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp.data import registry
from qfl_interp.data.examples import in_split
from qfl_interp.data.task_options import TaskOption
from qfl_interp.tasks.modular_addition import ModularAddition
from qfl_interp.tasks.sparse_parity import SparseParity
from qfl_interp.testing import task_contract as contract
from qfl_interp.training.train import plan_run

MODEL = qfl.ModelConfig(d_model=16, n_layers=1, n_heads=2)


def config(**changes) -> qfl.TrainConfig:
    return qfl.TrainConfig(**{"n_steps": 4, "batch_size": 8, "n_val": 16, "n_checkpoints": 2} | changes)


def test_k_relevant_bits_by_counting():
    task = qfl.load_task("sparse_parity", length=6, k=4)
    assert len(set(task.relevant)) == task.k == 4
    every = np.array(list(itertools.product((0, 1), repeat=6)), dtype=np.uint8)
    parity = [sum(row[place] for place in task.relevant) % 2 for row in every.tolist()]
    assert task.encode(every).tokens[:, -1].tolist() == parity
    assert task.features["partial_parity"].labels(every).shape == (64, 3)
    assert task.features["partial_parity"].labels(every)[:, -1].tolist() == parity


def test_a_share_of_the_problems_is_trained_on():
    examples = qfl.load_task("addition").sample(np.random.default_rng(0), 20_000)
    for share in (0.2, 0.6):
        task = qfl.load_task("addition", train_fraction=share)
        assert abs(in_split(task, examples, "train").mean() - share) < 4 * np.sqrt(share * (1 - share) / 20_000)


def test_p_is_the_length_of_modular_addition():
    one, other = qfl.load_task("modular_addition", p=31), qfl.load_task("modular_addition", 31)
    assert one.length == 31
    assert one.parameters == other.parameters
    assert qfl.load_task("modular_addition", 31, p=31).length == 31
    with pytest.raises(ValueError, match=r"p of task 'modular_addition' is its length: give one of them, got p 7 and"):
        qfl.load_task("modular_addition", 31, p=7)
    with pytest.raises(ValueError, match=r"length of task 'modular_addition' must be an integer in \[3, 1000\], got 2"):
        qfl.load_task("modular_addition", p=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, r"k of task 'sparse_parity' must be an integer in \[2, 6\], got 1. It is how many bits"),
        ({"k": 7}, r"k of task .* in \[2, 6\], got 7"),
        ({"k": 3.0}, r"must be an integer in \[2, 6\], got 3.0"),
        ({"k": True}, "must be an integer in .* got True"),
        ({"k": "three"}, "must be an integer in .* got 'three'"),
        ({"train_fraction": 1.0}, r"train_fraction of task .* must be a number in \[0, 0.99\], got 1.0"),
        ({"train_fraction": float("nan")}, "must be a number in .* got nan"),
    ],
)
def test_a_value_out_of_range_is_told_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        qfl.load_task("sparse_parity", 6, **options)


def test_values_at_the_ranges_edges_pass():
    for edges in ({"k": 2, "train_fraction": 0.0}, {"k": 6, "train_fraction": 0.99}):
        assert qfl.load_task("sparse_parity", 6, **edges).options == edges


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda c: c.__name__)
def test_a_task_with_options_keeps_the_contract(check):
    check(qfl.load_task("sparse_parity", 9, k=5, train_fraction=0.5))


def test_an_unknown_option_is_told_the_nearest():
    with pytest.raises(qfl.QflError, match=r"no option of task 'addition' is named 'train_fracton'. Did you mean 'tra"):
        qfl.load_task("addition", train_fracton=0.5)
    with pytest.raises(qfl.QflError, match=r"no option of task 'addition' is named 'p'.* Known: train_fraction"):
        qfl.load_task("addition", p=3)


def test_an_option_at_its_default_is_not_there():
    """Else runs that exist would get other names."""
    plain, said = SparseParity(10), SparseParity(10, k=3, train_fraction=0.75)
    assert said.options == plain.options == {}
    assert repr(said) == repr(plain)
    assert said.parameters == {"length": 10, "train_fraction": 0.75}
    assert plan_run(said, MODEL, config()).digest == plan_run(plain, MODEL, config()).digest
    other = SparseParity(10, train_fraction=0.5, k=4)
    assert other.options == {"k": 4, "train_fraction": 0.5}
    assert other.parameters == {"length": 10, "train_fraction": 0.5, "k": 4}
    assert repr(other).startswith("SparseParity(length=10, train_fraction=0.5, k=4, features=")
    assert plan_run(other, MODEL, config()).digest != plan_run(plain, MODEL, config()).digest
    assert np.float64(0.5) == SparseParity(10, train_fraction=np.float64(0.5)).options["train_fraction"]


def test_a_task_travels_with_its_options():
    task = pickle.loads(pickle.dumps(SparseParity(10, k=5)))
    assert (task.length, task.options, task.relevant) == (10, {"k": 5}, SparseParity(10, k=5).relevant)


def test_a_run_opens_its_task_with_its_options(tmp_path):
    task = qfl.load_task("sparse_parity", 10, k=5, train_fraction=0.5)
    run = qfl.train(task, MODEL, config(), tmp_path / "run", progress=False)
    again = qfl.Run.open(run.path)
    assert again.task.relevant == task.relevant
    assert again.task.train_fraction == 0.5
    assert json.loads((run.path / "config.json").read_text())["task_options"] == {"k": 5, "train_fraction": 0.5}
    with pytest.raises(qfl.QflError, match="k is 5 there and None here"):
        qfl.Run.open(run.path, task=SparseParity(10, train_fraction=0.5))


class Own(SparseParity):
    """A task of a user's with options of its own, and another default."""

    own_options = (TaskOption("coin", "which coin", choices=("fair", "bent")), TaskOption("loud", "whether", low=0))
    coin, loud, k = "fair", False, 2


def test_a_task_adds_options_to_those_of_its_parent():
    assert list(Own.declared_options()) == ["train_fraction", "k", "coin", "loud"]
    task = Own(8, coin="bent", loud=True)
    assert (task.coin, task.loud, task.k, task.options) == ("bent", True, 2, {"coin": "bent", "loud": True})
    with pytest.raises(ValueError, match="coin of task 'sparse_parity' must be one of fair, bent, got 'two'"):
        Own(8, coin="two")
    with pytest.raises(ValueError, match="loud of task 'sparse_parity' must be true or false, got 1"):
        Own(8, loud=1)


class Old(ModularAddition):
    """Written before tasks had options."""

    def __init__(self, length=None):
        super().__init__(length)


def test_a_task_of_before_options_says_so(monkeypatch):
    monkeypatch.setattr(registry, "task_class", lambda name: Old)
    assert qfl.load_task("old", 7).length == 7
    with pytest.raises(qfl.QflError, match=r"task 'old' takes no options, got train_fraction: __init__ of Old must"):
        qfl.load_task("old", 7, train_fraction=0.2)


def test_a_dataset_has_no_options():
    assert qfl.FixedTask.declared_options() == {}
