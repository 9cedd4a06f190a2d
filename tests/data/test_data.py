"""Streams and splits: nothing overlaps, everything can be made again."""

from __future__ import annotations

import numpy as np
import pytest

import qfl_interp as qfl
from qfl_interp.data import examples as data
from qfl_interp.data.examples import ExampleStream, held_out, held_out_pairs, in_split, split_hash


def test_no_example_or_swap_is_in_two_splits(addition):
    """Exhaustive at length 6: all 4,096 ordered pairs of operands."""
    numbers = np.arange(2**12)
    every = (numbers[:, None] >> np.arange(11, -1, -1) & 1).astype(np.uint8)
    swapped = np.hstack([every[:, 6:], every[:, :6]])
    membership = np.stack([in_split(addition, every, s) for s in ("train", "val", "test")])
    assert (membership.sum(axis=0) == 1).all()
    np.testing.assert_array_equal(membership, [in_split(addition, swapped, s) for s in ("train", "val", "test")])
    shares = membership.mean(axis=1)
    np.testing.assert_allclose(shares, [0.75, 0.125, 0.125], atol=4 * np.sqrt(0.19 / 2080))


def test_hash_is_uniform_and_depends_on_every_word():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**63, size=(40_000, 2)).astype(np.uint64)
    eighths = np.bincount(split_hash(words) >> np.uint64(61), minlength=8)
    assert ((eighths - 5000) ** 2 / 5000).sum() < 24.3, "the 0.999 quantile with 7 degrees of freedom"
    few = words[:500]
    for column in range(2):
        for bit in range(64):
            changed = few.copy()
            changed[:, column] ^= np.uint64(1) << np.uint64(bit)
            assert (split_hash(changed) != split_hash(few)).all(), (column, bit)
    assert (split_hash(words) != split_hash(words[:, ::-1])).all()


def test_stream_depends_on_seed_step_and_split():
    task = qfl.load_task("addition", 16)
    stream = ExampleStream(task, seed=1, batch_size=64)
    first = stream.examples(10)
    assert first.shape == (64, 32)
    assert in_split(task, first, "train").all()
    np.testing.assert_array_equal(first, ExampleStream(task, seed=1, batch_size=64).examples(10))
    for other in (
        ExampleStream(task, seed=2, batch_size=64).examples(10),
        stream.examples(11),
        ExampleStream(task, seed=1, batch_size=64, split="val").examples(10),
    ):
        assert not {r.tobytes() for r in first} & {r.tobytes() for r in other}


def test_held_out_sets_are_distinct_and_differ_by_use():
    task = qfl.load_task("addition", 16)
    kept = held_out(task, "test", 300, seed=0, stream="probe")
    assert len({row.tobytes() for row in kept}) == 300
    assert in_split(task, kept, "test").all()
    np.testing.assert_array_equal(kept, held_out(task, "test", 300, seed=0, stream="probe"))
    assert (kept != held_out(task, "test", 300, seed=0, stream="other")).any()


def test_a_short_length_gives_all_it_has():
    """Length 3 has 64 ordered pairs; a split's share of them is all that can come back."""
    task = qfl.load_task("addition", 3)
    numbers = np.arange(64)
    every = (numbers[:, None] >> np.arange(5, -1, -1) & 1).astype(np.uint8)
    expected = {row.tobytes() for row in every[in_split(task, every, "val")]}
    assert 0 < len(expected) < 64
    assert {row.tobytes() for row in held_out(task, "val", 1000, seed=0, stream="x")} == expected


def test_an_empty_split_is_an_error():
    task = qfl.load_task("addition", 1)
    numbers = np.arange(4)
    every = (numbers[:, None] >> np.arange(1, -1, -1) & 1).astype(np.uint8)
    empty = [s for s in ("train", "val", "test") if not in_split(task, every, s).any()]
    assert empty, "three unordered pairs do not fill three splits here"
    with pytest.raises(qfl.QflError, match=f"the {empty[0]} split of"):
        held_out(task, empty[0], 10, seed=0, stream="x")
    with pytest.raises(qfl.QflError, match=f"the {empty[0]} split of"):
        ExampleStream(task, seed=0, batch_size=4, split=empty[0]).examples(0)


def test_unknown_split(addition):
    with pytest.raises(ValueError, match="split must be one of"):
        in_split(addition, addition.sample(np.random.default_rng(0), 3), "validation")


def test_a_task_sets_its_share_of_training_problems(monkeypatch):
    """At 0.3 every training problem lies in the first 0.3 of the hashes, and the rest is halved."""
    task = qfl.load_task("addition", 10)
    examples = np.unique(task.sample(np.random.default_rng(0), 20_000), axis=0)
    wide = in_split(task, examples, "train")
    monkeypatch.setattr(type(task), "train_fraction", 0.3)
    shares = {split: in_split(task, examples, split) for split in ("train", "val", "test")}
    np.testing.assert_array_equal(sum(s.astype(int) for s in shares.values()), 1)
    assert (wide | ~shares["train"]).all(), "what trains at 0.3 trains at 0.75 too"
    for split, share in {"train": 0.3, "val": 0.35, "test": 0.35}.items():
        # Swapped operands share a split, which doubles the variance at most.
        assert abs(shares[split].mean() - share) < 4 * np.sqrt(2 * share * (1 - share) / len(examples)), split
    drawn = ExampleStream(task, seed=0, batch_size=500).examples(0)
    assert in_split(task, drawn, "train").all()


def test_a_set_larger_than_the_split_is_the_split(monkeypatch):
    """In rounds of a bounded size, whatever is asked for."""
    task = qfl.load_task("addition", 4)
    sizes, real = [], type(task).sample
    monkeypatch.setattr(type(task), "sample", lambda self, rng, n: sizes.append(n) or real(self, rng, n))
    monkeypatch.setattr(data, "_ROUND", 500)
    everything = held_out(task, "val", 10**9, seed=0, stream="x")
    assert max(sizes) < 500 / 0.05
    numbers = np.arange(256)
    every = (numbers[:, None] >> np.arange(7, -1, -1) & 1).astype(np.uint8)
    assert {row.tobytes() for row in everything} == {row.tobytes() for row in every[in_split(task, every, "val")]}
    wide = qfl.load_task("addition", 16)
    several = held_out(wide, "val", 1700, seed=0, stream="x")
    assert len({row.tobytes() for row in several}) == 1700
    assert in_split(wide, several, "val").all()


def test_held_out_pairs_differ_in_the_label_and_keep_the_split(addition):
    pairs = held_out_pairs(addition, "test", 50, "carry", 3, seed=1, stream="x")
    carry = addition.features["carry"]
    assert len(pairs.clean) == len(pairs.corrupted) == 50
    assert in_split(addition, pairs.clean, "test").all()
    assert (carry.labels(pairs.clean)[:, 3] != carry.labels(pairs.corrupted)[:, 3]).all()
    again = held_out_pairs(addition, "test", 50, "carry", 3, seed=1, stream="x")
    np.testing.assert_array_equal(pairs.clean, again.clean)
    other = held_out_pairs(addition, "test", 50, "carry", 3, seed=1, stream="y")
    assert (pairs.clean != other.clean).any()
    with pytest.raises(ValueError, match="label of carry must lie in"):
        held_out_pairs(addition, "test", 50, "carry", 6, seed=1, stream="x")


def test_held_out_pairs_say_when_a_split_holds_none(addition, monkeypatch):
    monkeypatch.setattr(data, "in_split", lambda _task, examples, _split: np.zeros(len(examples), dtype=bool))
    with pytest.raises(qfl.QflError, match=r"no pair that differs in label 0 of 'carry'.*test split"):
        held_out_pairs(addition, "test", 5, "carry", 0, seed=1, stream="x")
