"""Fixed training sets: every draw against a count by hand, and nothing held out among them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp import memory
from qfl_interp.data.examples import ExampleStream, in_split
from qfl_interp.data.task import MOST_PROBLEMS
from qfl_interp.data.training_stream import batch_sizes, make_stream, training_problems
from qfl_interp.seeding import generator

MODEL = qfl.ModelConfig(d_model=16, n_layers=1, n_heads=2)
DRAWS = [{"batch_size": "all"}, {"batch_size": 10, "draw": "batch"}, {"batch_size": 10, "draw": "epoch"}]


def config(**changes) -> qfl.TrainConfig:
    return qfl.TrainConfig(**{"n_steps": 12, "n_val": 8, "n_checkpoints": 4} | changes)


def rows(examples) -> list[tuple[int, ...]]:
    return [tuple(row) for row in examples.tolist()]


@pytest.fixture
def task():
    return qfl.load_task("modular_addition", p=7, train_fraction=0.5)


@pytest.mark.parametrize(
    ("name", "length", "by_hand"),
    [
        ("modular_addition", 5, itertools.product(range(5), repeat=2)),
        ("sparse_parity", 4, itertools.product(range(2), repeat=4)),
        ("majority_of_majorities", 2, itertools.product(range(2), repeat=4)),
        ("addition", 2, itertools.product(range(2), repeat=4)),
        ("multiplication", 2, itertools.product(range(2), repeat=4)),
        ("decimal_addition", 1, itertools.product(range(10), repeat=2)),
    ],
)
def test_problems_are_every_one_in_order(name, length, by_hand):
    task = qfl.load_task(name, length)
    found = task.problems()
    assert rows(found) == list(by_hand)
    drawn = task.sample(np.random.default_rng(0), 1000)
    assert found.dtype == drawn.dtype
    assert set(rows(drawn)) == set(rows(found)), "what can be drawn, and no more"


def test_too_many_problems_are_not_listed():
    assert len(qfl.load_task("sparse_parity", 20).problems()) == MOST_PROBLEMS
    for name, length in (("sparse_parity", 21), ("addition", 11), ("decimal_addition", 4), ("maximum_subarray", 5)):
        assert qfl.load_task(name, length).problems() is None
    with pytest.raises(qfl.QflError, match=r"need a task that lists its problems, got Addition\(length=16.*smaller"):
        batch_sizes(qfl.load_task("addition", 16), config(batch_size="all"))


def test_all_is_the_training_split_in_its_order(task):
    every = [(a, b) for a in range(7) for b in range(7)]
    is_trained = in_split(task, np.array(every, dtype=np.int32), "train")
    wanted = [problem for problem, trained in zip(every, is_trained, strict=True) if trained]
    stream = make_stream(task, config(batch_size="all"))
    assert stream.batch_size == len(wanted) == 18
    for step in (0, 5):
        assert rows(stream.examples(step)) == wanted
        assert [tuple(row) for row in stream.batch(step).tokens[:, [0, 2]].tolist()] == wanted
    assert 0 < len(wanted) < 49


def test_a_dataset_lists_its_rows():
    tokens = np.arange(40).reshape(20, 2)
    task = qfl.FixedTask("rows", tokens, np.tile([False, True], (20, 1)), {}, train_fraction=0.5, prompt_end=False)
    stream = make_stream(task, config(batch_size="all"))
    kept = in_split(task, np.arange(20)[:, None], "train")
    np.testing.assert_array_equal(stream.batch(3).tokens.numpy(), tokens[kept])


@pytest.mark.parametrize("size", [5, 10, 18])
def test_an_epoch_holds_every_problem_once(task, size):
    stream = make_stream(task, config(batch_size=size, draw="epoch"))
    row = [problem for step in range(36) for problem in rows(stream.examples(step))]
    wanted = sorted(rows(training_problems(task)))
    epochs = [row[start : start + 18] for start in range(0, 36 * size - 17, 18)]
    assert all(sorted(epoch) == wanted for epoch in epochs)
    assert epochs[0] != epochs[1], "each in an order of its own"


def test_a_batch_is_without_replacement_and_drawn_as_the_networks_at_the_edge_draw(task):
    stream = make_stream(task, config(batch_size=10, draw="batch", seed=3))
    problems = training_problems(task)
    for step in range(30):
        drawn = generator(3, "homogeneous/batches", step).permutation(18)[:10]
        assert rows(stream.examples(step)) == rows(problems[drawn])
        assert len(set(rows(stream.examples(step)))) == 10
    whole = make_stream(task, config(batch_size=18, draw="batch"))
    assert rows(whole.examples(4)) == rows(problems), "of all of them none is drawn"


@pytest.mark.parametrize("changes", DRAWS, ids=["all", "batch", "epoch"])
def test_a_step_follows_from_seed_and_step_alone(task, changes):
    stream, again = (make_stream(task, config(**changes)) for _ in range(2))
    backwards = {step: rows(again.examples(step)) for step in reversed(range(20))}
    assert [rows(stream.examples(step)) for step in range(20)] == [backwards[step] for step in range(20)]
    batch = stream.batch(6)
    encoded = task.encode(stream.examples(6))
    assert torch.equal(batch.tokens, encoded.tokens)
    assert torch.equal(batch.loss_mask, encoded.loss_mask)
    if "draw" in changes:
        other = make_stream(task, config(**changes, seed=1))
        assert backwards[0] != backwards[1] != rows(other.examples(1))


@pytest.mark.parametrize("changes", DRAWS, ids=["all", "batch", "epoch"])
def test_nothing_that_is_held_out_is_trained_on(changes):
    task = qfl.load_task("sparse_parity", 8, train_fraction=0.4)
    stream = make_stream(task, config(**changes))
    trained = {row for step in range(40) for row in rows(stream.examples(step))}
    for split in ("val", "test"):
        assert not trained & set(rows(qfl.held_out(task, split, 1000, seed=0, stream="x")))


def test_fresh_examples_are_those_of_before(addition):
    stream = make_stream(addition, config(batch_size=16, seed=4))
    assert isinstance(stream, ExampleStream)
    assert rows(stream.examples(7)) == rows(ExampleStream(addition, seed=4, batch_size=16).examples(7))


def test_a_batch_larger_than_the_set_is_refused(task):
    with pytest.raises(qfl.QflError, match=r"at most the 18 training problems of .* with draw 'batch', got 19. Take"):
        make_stream(task, config(batch_size=19, draw="batch"))
    none = qfl.load_task("modular_addition", p=7, train_fraction=0.0)
    with pytest.raises(qfl.QflError, match="is empty: its train_fraction is 0"):
        training_problems(none)


def test_a_set_that_memory_does_not_hold_is_refused_with_the_number(task, monkeypatch):
    monkeypatch.setattr(memory, "_machine", lambda: 1000)
    with pytest.raises(qfl.QflError, match="18 training problems of modular_addition need about"):
        make_stream(task, config(batch_size="all"))
    plan = qfl.training.train.plan_run(task, MODEL, config(batch_size="all"), n_ctx_real=5.0)
    with pytest.raises(
        qfl.QflError, match=r"batch_size 18 \(all training problems\) of .* GiB .*a number as batch_size"
    ):
        qfl.training.footprint.require_room(plan, "cpu")
