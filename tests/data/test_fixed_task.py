"""A task over a user's dataset: the contract of every task, and what it refuses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from qfl_interp.data.examples import held_out, in_split
from qfl_interp.data.fixed_task import FixedFeature, FixedTask
from qfl_interp.data.task import NO_POSITION
from qfl_interp.errors import QflError
from qfl_interp.interventions.pairs import patch_pairs
from qfl_interp.models.metrics import evaluate
from qfl_interp.seeding import generator
from qfl_interp.testing import task_contract
from tests.helpers_suite import tiny_text_task

# The constructor refuses a length of its own kind; all other checks apply.
CHECKS = [check for check in task_contract.CHECKS if check is not task_contract.check_description]


def arrays(**changes):
    """Six rows `x y = x+y end`, the last ones a shorter prompt, with a feature of each kind."""
    x, y = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 1, 2, 1, 0])
    tokens = np.stack([x, y, np.full(6, 5), x + y, np.full(6, 6)], axis=1)
    mask = np.tile([False, False, True, True, True], (6, 1))
    tokens[4:, 1:] = np.stack([np.full(2, 5), x[4:], np.full(2, 6), np.full(2, 7)], axis=1)
    mask[4:] = [False, True, True, True, False]
    at = np.zeros((6, 1), dtype=np.int64)
    features = {
        "low": FixedFeature("binary", (x < 1).astype(int)[:, None], at),
        "x": FixedFeature("categorical", np.stack([x, y], axis=1), np.stack([x * 0, np.where(y > 1, -1, 1)], axis=1)),
        "bits": FixedFeature("multilabel", np.stack([x & 1, x >> 1], axis=1)[:, None], at),
        "half": FixedFeature("scalar", x[:, None] / 2, at, "Half of x.", by_default=False),
    }
    return {"name": "six", "tokens": tokens, "loss_mask": mask, "features": features} | changes


def rows(*numbers):
    return np.array(numbers, dtype=np.int64)[:, None]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    task = tiny_text_task(600)
    keywords = task.__reduce__()[0].keywords | {"train_fraction": 0.5}
    check(FixedTask(task.name, task._tokens, task._loss_mask, task._fixed, **keywords))


def test_rows_come_back_as_they_were_given():
    given = arrays(str_tokens=list("abcdefgh"))
    task = FixedTask(**given)
    batch = task.encode(rows(4, 0, 4))
    assert torch.equal(batch.tokens, torch.tensor(given["tokens"][[4, 0, 4]]))
    assert torch.equal(batch.loss_mask, torch.tensor(given["loss_mask"][[4, 0, 4]]))
    for name, feature in given["features"].items():
        np.testing.assert_array_equal(task.feature(name).labels(rows(5, 1)), feature.labels[[5, 1]])
        np.testing.assert_array_equal(task.feature(name).positions(rows(5, 1)), feature.positions[[5, 1]])
        assert task.feature(name).kind == feature.kind
    assert task.feature("half").description == "Half of x."
    assert [f.name for f in task.features.values() if f.by_default] == ["low", "x", "bits"]
    assert task.str_tokens(batch.tokens[1]) == ["a", "a", "f", "a", "g"]
    assert (task.d_vocab, task.n_ctx, len(task)) == (8, 5, 6)
    tensors = {key: torch.tensor(given[key]) for key in ("tokens", "loss_mask")}
    assert FixedTask(**given | tensors).digest == task.digest


def test_what_is_given_may_change_afterwards():
    given = arrays()
    task = FixedTask(**given)
    given["tokens"][:] = 0
    given["loss_mask"][:] = False
    for name in ("low", "half"):
        given["features"][name].labels[:] = 0
    assert int(task.encode(rows(0)).tokens.sum()) == 11
    assert int(task.encode(rows(0)).loss_mask.sum()) == 3
    assert task.feature("half").labels(rows(2)).item() == 1.0
    assert task.feature("low").labels(rows(0, 1)).ravel().tolist() == [1, 0]


def test_vocabulary_from_ids_a_list_or_a_tokenizer():
    assert FixedTask(**arrays()).vocabulary == tuple("01234567")
    assert FixedTask(**arrays(str_tokens=lambda ids: [f"<{i}>" for i in ids])).vocabulary[7] == "<7>"
    assert FixedTask(**arrays(str_tokens=[*"abcdefghij"])).d_vocab == 10


def test_every_row_is_drawn_once_before_any_again():
    task = FixedTask(**arrays())
    drawn = task.sample(generator(1, "x"), 15)[:, 0]
    for start in (0, 6):
        assert sorted(drawn[start : start + 6]) == list(range(6))
    assert len(set(drawn[12:])) == 3


def test_decode_prefers_the_row_to_the_prompt():
    tokens = np.array([[1, 2, 3], [1, 2, 4], [1, 2, 4], [2, 2, 0]])
    mask = np.array([[False, True, True]] * 4)
    task = FixedTask("twins", tokens, mask, {})
    assert task.decode(torch.tensor(tokens))[:, 0].tolist() == [0, 1, 1, 3]
    assert task.decode(torch.tensor([[1, 2, 9]]))[:, 0].tolist() == [0]
    with pytest.raises(ValueError, match=r"prompt of a row of 'twins', got \[3, 2, 0\] in row 1"):
        task.decode(torch.tensor([[1, 2, 3], [3, 2, 0]]))


def test_equal_rows_share_a_split_and_all_rows_are_used():
    tokens = np.repeat(np.arange(200)[:, None] // 2, 3, axis=1)
    task = FixedTask("pairs of rows", tokens, np.array([[False, True, True]] * 200), {})
    everything = np.arange(200)[:, None]
    val, test = (in_split(task, everything, split) for split in ("val", "test"))
    assert (val ^ test).all()
    assert 40 < val.sum() < 160
    np.testing.assert_array_equal(val[::2], val[1::2])
    assert len(held_out(task, "val", 1000, seed=0, stream="x")) == val.sum()
    half = FixedTask("pairs of rows", tokens, task._loss_mask, {}, train_fraction=0.5)
    assert 40 < in_split(half, everything, "train").sum() < 160


def test_baseline_by_hand():
    task = FixedTask(**arrays())
    # After the prompt: sums 0 1 3 2 and then 6 four times; for the others 1 2, then 6 twice.
    first, second = np.array([1, 2, 2, 1]) / 6, np.array([6]) / 6
    expected = -sum(6 * p @ np.log(p) for p in (first, second)) / 12
    assert task.baselines["base_rate"] == pytest.approx(expected, rel=1e-12)
    assert FixedTask(**arrays(baselines={"base_rate": 0.5})).baselines == {"base_rate": 0.5}


def test_scores_of_a_dataset():
    """A model that is sure of the right answer has loss zero and matches everywhere."""
    task = FixedTask(**arrays())
    batch = task.encode(np.arange(6)[:, None])
    sure = torch.nn.functional.one_hot(batch.tokens.roll(-1, dims=1), task.d_vocab) * 100.0
    scores = evaluate(lambda tokens, span, rows: sure[rows, span], batch)
    assert scores.exact.all()
    assert scores.loss.max() < 1e-12
    assert scores.n_scored.tolist() == [3] * 6


def test_the_answer_alone_can_be_scored():
    """The same dataset, told that its mask begins with the answer: a prompt may then be one token."""
    given = arrays()
    behind = given["loss_mask"] & (given["loss_mask"].cumsum(axis=1) > 1)
    both, alone = FixedTask(**given), FixedTask(**given | {"loss_mask": behind, "prompt_end": False})
    every = np.arange(6)[:, None]
    assert torch.equal(both.encode(every).answer_mask, alone.encode(every).loss_mask)
    assert torch.equal(alone.encode(every).answer_mask, alone.encode(every).loss_mask)
    assert alone.baselines == both.baselines
    np.testing.assert_array_equal(alone.decode(alone.encode(every).tokens), both.decode(both.encode(every).tokens))
    drawn = [task.sample_pairs(generator(0, "p"), 9, "x", 0) for task in (both, alone)]
    np.testing.assert_array_equal(*drawn)
    one, other = (patch_pairs(task, drawn[0]) for task in (both, alone))
    for field in ("clean", "corrupted", "corrupted_answer", "loss_mask", "contrast"):
        assert torch.equal(getattr(one, field), getattr(other, field))
    assert pickle.loads(pickle.dumps(alone)).digest == alone.digest != both.digest
    assert FixedTask("pair", np.eye(2, dtype=int), np.array([[False, True]] * 2), {}, prompt_end=False).n_ctx == 2


# Pairs


def test_searched_pairs_are_all_that_fit_and_no_others():
    task = FixedTask(**arrays())
    pairs = task.sample_pairs(generator(0, "x"), 400, "x", 1)
    found = {(int(a), int(b)) for a, b in zip(pairs.clean[:, 0], pairs.corrupted[:, 0], strict=True)}
    # Label 1 is y = 0 0 1 2 1 0; row 3 has none; rows 4 and 5 have a shorter prompt.
    assert found == {(0, 2), (1, 2), (2, 0), (2, 1), (4, 5), (5, 4)}
    counts = np.bincount(pairs.clean[:, 0], minlength=6)
    assert counts[[0, 1, 2, 4, 5]].min() > 50, "each row that has a partner is as likely"


def test_given_pairs_that_fit_the_label_are_used_and_no_others():
    task = FixedTask(**arrays(pairs={"x": np.array([[0, 1], [1, 0], [1, 2]])}))
    for label, expected in ((0, {(0, 1), (1, 0), (1, 2)}), (1, {(1, 2)})):
        pairs = task.sample_pairs(generator(0, "x"), 100, "x", label)
        assert {(int(a), int(b)) for a, b in zip(pairs.clean[:, 0], pairs.corrupted[:, 0], strict=True)} == expected
    searched = task.sample_pairs(generator(0, "x"), 100, "low", 0)
    assert len({(int(a), int(b)) for a, b in zip(searched.clean[:, 0], searched.corrupted[:, 0], strict=True)}) > 3


def test_pairs_that_do_not_exist_are_said_so():
    same = FixedFeature("binary", np.zeros((6, 1), int), np.zeros((6, 1), int))
    task = FixedTask(**arrays(features={"same": same}))
    with pytest.raises(QflError, match=r"no two rows of 'six' differ in 'same' at label 0.*equally long prompts"):
        task.sample_pairs(generator(0, "x"), 5, "same", 0)
    given = FixedTask(**arrays(pairs={"x": np.array([[0, 1]])}))
    with pytest.raises(QflError, match=r"differ in 'x' at label 1.*among the pairs given"):
        given.sample_pairs(generator(0, "x"), 5, "x", 1)
    with pytest.raises(ValueError, match=r"label of 'x' must lie in \[0, 2\), got 2"):
        given.sample_pairs(generator(0, "x"), 5, "x", 2)
    with pytest.raises(QflError, match="no feature of six is named 'y'"):
        given.sample_pairs(generator(0, "x"), 5, "y", 0)


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ({"x": [[0, 6]]}, ValueError, r"row numbers \[pair, 2\] in \[0, 6\)"),
        ({"x": [[0, 1, 2]]}, ValueError, r"of shape \(1, 3\)"),
        ({"x": [[0.0, 1.0]]}, ValueError, "got float64"),
        ({"x": [[0, 1], [0, 4]]}, ValueError, r"got \[3, 2\] tokens in pairs\['x'\]\[1\]"),
        ({"z": [[0, 1]]}, QflError, r"no feature of six \(in pairs\) is named 'z'"),
    ],
    ids=["row", "shape", "float", "prompts", "feature"],
)
def test_bad_pairs(pairs, error, message):
    with pytest.raises(error, match=message):
        FixedTask(**arrays(pairs={key: np.array(value) for key, value in pairs.items()}))


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.zeros(6, int)}, r"integers \[row, pos\], got int64 of shape \(6,\)"),
        ({"tokens": np.zeros((6, 5))}, "got float64"),
        ({"tokens": np.zeros((0, 5), int)}, r"of shape \(0, 5\)"),
        ({"tokens": np.full((6, 5), -1)}, "with -1 among them"),
        ({"loss_mask": np.ones((6, 5), int)}, r"must be boolean.*\(6, 5\), got int64"),
        ({"loss_mask": np.ones((6, 4), bool)}, r"got bool of shape \(6, 4\)"),
        ({"loss_mask": np.ones((6, 5), bool)}, r"never the first.*\[0, 1, 2, 3, 4\] in row 0, one of 6"),
        ({"loss_mask": np.eye(6, 5, 1).astype(bool)}, r"one stretch.*got tokens \[1\] in row 0"),
        ({"loss_mask": np.tile([False, True, False, True, True], (6, 1))}, r"got tokens \[1, 3, 4\] in row 0"),
        ({"loss_mask": np.zeros((6, 5), bool), "prompt_end": False}, r"first token of its answer.*got tokens \[\] in"),
        ({"loss_mask": np.eye(6, 5).astype(bool), "prompt_end": False}, r"got tokens \[0\] in row 0, one of 2"),
        ({"str_tokens": ["a", "b"]}, r"each of the 8 ids of the dataset, got 2 of type str"),
        ({"str_tokens": lambda ids: list(ids)}, "got 8 of type int"),
        ({"train_fraction": 1.0}, r"train_fraction must lie in \[0, 1\), got 1.0"),
    ],
    ids=[
        "flat",
        "float",
        "empty",
        "negative",
        "int-mask",
        "short-mask",
        "first",
        "one",
        "holes",
        "none",
        "alone",
        "few",
        "ids",
        "all",
    ],
)
def test_bad_datasets(changes, message):
    with pytest.raises(ValueError, match=message):
        FixedTask(**arrays(**changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("low", {"kind": "ordinal"}, "kind of feature 'low' must be one of .*got 'ordinal'"),
        ("low", {"labels": np.full((6, 1), 2)}, "binary feature 'low' must be integers, 0 or 1, got int64 from 2 to 2"),
        ("low", {"labels": np.zeros((5, 1), int)}, r"for 6 rows, got shape \(5, 1\)"),
        ("low", {"labels": np.zeros((6, 1))}, "must be integers, 0 or 1, got float64"),
        ("x", {"labels": np.full((6, 2), -1)}, "class ids from 0, got int64 from -1"),
        ("x", {"positions": np.zeros((6, 1), int)}, r"\(6, 2\), got int64 of shape \(6, 1\)"),
        ("x", {"positions": np.full((6, 2), 5)}, r"must lie in \[0, 5\).*got 5 in row 0, label 0"),
        ("x", {"positions": np.full((6, 2), -2)}, "got -2 in row 0, label 0"),
        ("x", {"positions": np.zeros((6, 2))}, "positions of feature 'x' must be integers.*got float64"),
        ("bits", {"labels": np.zeros((6, 1), int)}, r"must be \[row, label, output\] for 6 rows, got shape \(6, 1\)"),
        ("half", {"labels": np.full((6, 1), np.nan)}, "scalar feature 'half' must be finite numbers"),
    ],
)
def test_bad_features(name, changes, message):
    given = arrays()
    for field, value in changes.items():
        # Users run without the type checker, which would refuse some of these first.
        object.__setattr__(given["features"][name], field, value)
    with pytest.raises(ValueError, match=message):
        FixedTask(**given)


def test_absent_labels_have_no_position():
    task = FixedTask(**arrays())
    assert task.feature("x").positions(rows(3))[0].tolist() == [0, NO_POSITION]


# Elsewhere


def test_a_pickled_dataset_is_the_same():
    task = FixedTask(**arrays(str_tokens=lambda ids: [f"<{i}>" for i in ids], pairs={"x": np.array([[0, 1]])}))
    other = pickle.loads(pickle.dumps(task))
    assert other.digest == task.digest
    assert other.vocabulary == task.vocabulary
    for name in task.features:
        np.testing.assert_array_equal(other.feature(name).labels(rows(2, 4)), task.feature(name).labels(rows(2, 4)))
    for one, two in zip(*(t.sample_pairs(generator(0, "p"), 9, "x", 0) for t in (task, other)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_digest_names_what_decides_the_numbers():
    base = FixedTask(**arrays()).digest
    assert FixedTask(**arrays(name="other", str_tokens=[*"abcdefgh"])).digest == base
    tokens = arrays()["tokens"]
    tokens[0, 0] = 1
    moved = arrays()
    moved["features"]["low"].positions[:] = 1
    pairs = {"x": np.array([[0, 1]])}
    for changed in (
        arrays(tokens=tokens),
        moved,
        arrays(features={}),
        arrays(train_fraction=0.25),
        arrays(pairs=pairs),
        arrays(prompt_end=False),
    ):
        assert FixedTask(**changed).digest != base


# A split that is given


def whose(task):
    """The split of each row."""
    every = task.problems()
    names = np.array(["train", "val", "test"])
    return names[np.stack([in_split(task, every, name) for name in names]).argmax(axis=0)]


def distinct_rows(n=40, **changes):
    tokens = np.stack([np.arange(n), np.full(n, n), np.arange(n)], axis=1)
    mask = np.tile([False, False, True], (n, 1))
    labels = FixedFeature("binary", np.arange(n)[:, None] % 2, np.zeros((n, 1), dtype=int))
    return FixedTask("rows", tokens, mask, {"odd": labels}, prompt_end=False, **changes)


def test_rows_that_were_trained_on():
    trained = np.arange(40) % 3 == 0
    tasks = [distinct_rows(split=given) for given in (trained, torch.from_numpy(trained), np.flatnonzero(trained))]
    for task in tasks:
        found = whose(task)
        np.testing.assert_array_equal(found == "train", trained)
        assert 5 <= (found == "val").sum() <= 21
        np.testing.assert_array_equal(found, whose(tasks[0]))
        assert task.train_fraction == trained.mean()
        held = {name: held_out(task, name, 40, seed=0, stream="x")[:, 0].tolist() for name in ("train", "val", "test")}
        assert sorted(row for rows_of in held.values() for row in rows_of) == list(range(40))
        assert sorted(held["train"]) == np.flatnonzero(trained).tolist()
    assert len({task.digest for task in tasks}) == 1
    assert len({distinct_rows(split=given).digest for given in ([0], [1])} | {distinct_rows().digest}) == 3


def test_a_split_by_names():
    names = np.array(["train", "train", "val", "test"] * 10)
    task = distinct_rows(split=names)
    np.testing.assert_array_equal(whose(task), names)
    again = pickle.loads(pickle.dumps(task))
    np.testing.assert_array_equal(whose(again), names)
    assert again.digest == task.digest
    untrained = distinct_rows(split=["val", "test"] * 20)
    assert in_split(untrained, untrained.problems(), "val").tolist() == [True, False] * 20
    with pytest.raises(QflError, match=r"the train split of .* is empty"):
        in_split(distinct_rows(split=[]), untrained.problems(), "train")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ([True] * 40, "must leave rows for val and test, got 40 of 40 in train"),
        (["train", "val"] * 20, "must leave rows for test"),
        ([0, 40], r"must name rows in \[0, 40\), got numbers from 0 to 40"),
        ([-1], r"must name rows in \[0, 40\)"),
        ([True] * 39, r"a boolean or a name for each of the 40 rows, got bool of shape \(39,\)"),
        (["train", "valid"] * 20, "must say train, val, test of each row, got 'valid'"),
        (np.full(40, 0.5), "got float64"),
    ],
)
def test_splits_that_are_refused(split, message):
    with pytest.raises(ValueError, match=message):
        distinct_rows(split=split)


def test_equal_rows_stay_together():
    given = arrays()
    twice = {name: np.concatenate([given[name]] * 2) for name in ("tokens", "loss_mask")}
    FixedTask("twice", **twice, features={}, split=[0, 6])
    with pytest.raises(ValueError, match="equal tokens must be in one split, got row 0 in train and row 6 in "):
        FixedTask("twice", **twice, features={}, split=[0])
    with pytest.raises(ValueError, match="give train_fraction or split, got both"):
        distinct_rows(split=[0], train_fraction=0.5)


def test_the_answer_alone_is_offered():
    with pytest.raises(ValueError, match=r"one of 6 such rows\. Give prompt_end=False to score the answer alone"):
        FixedTask(**arrays(loss_mask=np.tile([False, False, True, False, False], (6, 1)), features={}))
